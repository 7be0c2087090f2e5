"""Processes of the proofs: one that trains and can be killed, and several that measure together.

usage, as one of them: python -m lmkit.flow.proof_processes steps|fit FOLDER
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from lmkit import console
from lmkit.errors import ProofFailed
from lmkit.flow.case import Case
from lmkit.run import Run

if TYPE_CHECKING:
    from lmkit.train.measured import Measured

MODULE = "lmkit.flow.proof_processes"
CASE, MEASURED = "case.pickle", "measured.safetensors"


def write_case(case: Case, folder: Path) -> None:
    """Leave a case for our own processes, in a folder of our own."""
    (folder / CASE).write_bytes(pickle.dumps(case))


def measure_in_two_processes(case: Case, folder: Path) -> Measured:
    """Measure the steps of a case in two processes.

    Raises:
        ProcessFailed: one of them ended before.
    """
    from lmkit.train.launch import launch
    from lmkit.train.measured import Measured

    write_case(case, folder)
    os.environ[console.STARTED_AS] = "[]"
    try:
        launch(["-m", MODULE, "steps", str(folder)], processes=2)
    finally:
        del os.environ[console.STARTED_AS]
    return Measured.load(folder / MEASURED)


def finish(run: Run) -> None:
    """Train a run to its end; its case lies in the folder around it.

    Raises:
        ProofFailed: training failed.
    """
    running = _start(run)
    _, errors = running.communicate()
    if running.returncode:
        message = errors.decode(errors="replace")[-2000:]
        raise ProofFailed(f"the run ended with status {running.returncode}: {message}")


def kill(run: Run, step: int, delay: float) -> int:
    """Kill the run and its loader workers ``delay`` seconds after a step is logged; return the step it had logged."""
    running = _start(run)
    while running.poll() is None and logged_step(run) < step:
        time.sleep(0.002)
    time.sleep(delay)
    if running.poll() is None:
        os.killpg(running.pid, signal.SIGKILL)
    running.communicate()
    return logged_step(run)


def logged_step(run: Run) -> int:
    """Return the step of the last whole line of the log."""
    try:
        lines = run.log_file.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return 0
    return max((int(line.split(b",", 1)[0].rsplit(b" ", 1)[1]) for line in lines), default=0)


def _start(run: Run) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", MODULE, "fit", str(run.path.parent)]
    return subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def run_part(part: str, folder: Path) -> None:
    """Do what one of the started processes is for."""
    console.configure(quiet=True)  # stdout is the command's
    case: Case = pickle.loads((folder / CASE).read_bytes())
    if part == "fit":
        from lmkit.train.fit import fit

        run = Run(case.recipe.output)
        run.start(resume=run.recipe_file.is_file(), overwrite=False)
        fit(case.recipe, case.splits, case.source, run, resume=True)
        return
    from lmkit.train.measured import Bench

    bench = Bench(case.recipe, case.splits, case.source)
    measured = bench.steps(budget=bench.budget)
    if console.is_first_process():
        measured.save(folder / MEASURED)
    bench.setup.parallelism.end()


if __name__ == "__main__":
    run_part(sys.argv[1], Path(sys.argv[2]))
