"""Several processes on this machine, through the launcher that torchrun and ``accelerate launch`` use."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading

from lmkit.train.device import share_of_cores


class ProcessFailed(Exception):
    """A process ended with this exit status, and has said why itself; or by a signal, and could say nothing.

    Attributes:
        is_killed: whether a signal ended it that nobody sent to stop the run.
    """

    def __init__(self, status: int, *, killed: tuple[int, int] | None = None):
        """``killed``: rank and number of the signal."""
        what = (
            f"process {killed[0]} was ended by {_name(killed[1])}"
            if killed
            else f"a process ended with exit status {status}"
        )
        super().__init__(what)
        self.status, self.is_killed = status, killed is not None


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def launch(arguments: list[str], *, processes: int) -> None:
    """Run ``python ARGUMENTS`` as ``processes`` ranks; when one fails, the others are ended.

    Raises:
        ProcessFailed: with the exit status of the first that failed.
    """
    import torch
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in [
        name
        for name in logging.root.manager.loggerDict
        if name.startswith("torch.distributed.elastic")
    ]:
        logging.getLogger(name).setLevel(
            logging.CRITICAL
        )  # the processes say themselves what went wrong
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
    before = {
        number: signal.getsignal(number)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    }
    try:
        elastic_launch(config, sys.executable)(*arguments)
    except ChildFailedError as error:
        raise _failed(
            {rank: failure.exitcode for rank, failure in error.failures.items()},
            error.get_first_failure()[0],
        ) from None
    except SignalException as error:  # the processes were ended, each after a checkpoint
        raise ProcessFailed(128 + int(error.sigval)) from None
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():  # the launcher leaves its own behind
                signal.signal(number, handler)


def _failed(codes: dict[int, int], first: int) -> ProcessFailed:
    """Pick the exit status to report: a killed rank first, since the others fail because of it. Negative codes are signals."""
    stopped = (signal.SIGINT, signal.SIGTERM)
    killed = next(
        ((rank, -code) for rank, code in codes.items() if code < 0 and -code not in stopped), None
    )
    if killed is not None:
        return ProcessFailed(1, killed=killed)
    return ProcessFailed(codes[first] if codes[first] > 0 else 128 - codes[first])
