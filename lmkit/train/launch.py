"""Several processes on this machine, through the launcher that torchrun and ``accelerate launch`` use."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading

from lmkit.train.device import share_of_cores


class ProcessFailed(Exception):
    """A process ended with this exit status; it has said why itself."""

    def __init__(self, status: int):
        super().__init__(f"a process ended with exit status {status}")
        self.status = status


def launch(arguments: list[str], *, processes: int) -> None:
    """Run ``python ARGUMENTS`` as ``processes`` ranks; when one fails, the others are ended.

    Raises:
        ProcessFailed: with the exit status of the first that failed.
    """
    import torch
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in [name for name in logging.root.manager.loggerDict if name.startswith("torch.distributed.elastic")]:
        logging.getLogger(name).setLevel(logging.CRITICAL)  # the processes say themselves what went wrong
    if not torch.cuda.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"
    os.environ.setdefault("OMP_NUM_THREADS", str(share_of_cores(processes)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id="lmkit",
        max_restarts=0,
        monitor_interval=0.2,
    )
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)}
    try:
        elastic_launch(config, sys.executable)(*arguments)
    except ChildFailedError as error:
        status = error.get_first_failure()[1].exitcode
        raise ProcessFailed(status if status > 0 else 1) from None
    except SignalException as error:  # the processes were ended, each after a checkpoint
        raise ProcessFailed(128 + int(error.sigval)) from None
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():  # the launcher leaves its own behind
                signal.signal(number, handler)
