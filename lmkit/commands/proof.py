"""``lmkit doctor RECIPE``: that neither the hardware section nor an interruption changes what the recipe learns.

usage, as one of the processes it starts: python -m lmkit.commands.proof steps|fit FOLDER
"""

from __future__ import annotations

import os
import pickle
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmkit import console
from lmkit.data.splits import Splits, load_splits
from lmkit.errors import ProofFailed
from lmkit.flow.smoke import few_rows, tiny_recipe
from lmkit.models.source import ModelSource, find_model
from lmkit.preflight import check_model_keys, check_stage
from lmkit.recipe import Recipe, load_recipe
from lmkit.run import TIMES, Run
from lmkit.tasks.registry import problem

if TYPE_CHECKING:
    from lmkit.train.measured import Measured

TOLERANCE = 1e-5  # largest relative difference, fp32
ALL_AT_ONCE = 1 << 40  # tokens
BATCH, STEPS = 3, 24
CASE, MEASURED = "case.pickle", "measured.safetensors"


@dataclass(frozen=True)
class Case:
    """A recipe in small, with everything that its processes need."""

    recipe: Recipe
    splits: Splits
    source: ModelSource | None


@dataclass(frozen=True)
class Verdict:
    """One comparison: what was varied, and the largest differences relative to the largest value.

    Args:
        loss, gradients: None where there is nothing to compare.
        verdict: ``ok``, ``FAILED`` or ``skipped``. note: why.
    """

    varied: str
    loss: float | None
    gradients: float | None
    verdict: str
    note: str = ""


@dataclass(frozen=True)
class ProofReport:
    """The proofs on a recipe.

    Args:
        seed: of the moments at which the run was killed; None: none was.
    """

    recipe: str
    task: str
    proofs: tuple[Verdict, ...]
    seed: int | None

    @property
    def is_ok(self) -> bool:
        return all(proof.verdict != "FAILED" for proof in self.proofs)

    def to_json(self) -> dict[str, Any]:
        proofs = [asdict(proof) for proof in self.proofs]
        values = {"recipe": self.recipe, "task": self.task, "ok": self.is_ok, "proofs": proofs}
        return values if self.seed is None else values | {"seed": self.seed}

    def to_text(self) -> str:
        rows = [
            [proof.varied, _shown(proof.loss), _shown(proof.gradients), proof.verdict, proof.note]
            for proof in self.proofs
        ]
        return "\n" + console.table(["what was varied", "loss", "gradients", "verdict", ""], rows)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def prove(
    source: str,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    kills: int = 3,
    seed: int | None = None,
) -> ProofReport:
    """Shrink a recipe as ``--smoke`` does and prove on it what training promises.

    Args:
        resume: prove that a killed run goes on as if it were not, instead of that the split changes nothing.
        seed: of the moments at which it is killed; None: another every time.
    """
    recipe = load_recipe(source, overrides)
    with tempfile.TemporaryDirectory(prefix="lmkit-proof-") as folder:
        if resume:
            seed = random.randrange(10**6) if seed is None else seed
            proofs = prove_resume(
                shrunk(recipe, Path(folder), dropout=0.1), Path(folder), kills=kills, seed=seed
            )
        else:
            proofs = prove_splits(shrunk(recipe, Path(folder), dropout=0.0), Path(folder))
    return ProofReport(recipe.name, recipe.task, tuple(proofs), seed if resume else None)


def shrunk(recipe: Recipe, folder: Path, *, dropout: float) -> Case:
    """The same task, architecture and options with a tiny model, a few rows and short steps, in fp32 on one process."""
    check_stage(recipe, problem(recipe.task).stage if recipe.task else "finetune")
    if recipe.model.base is None or recipe.model.preset:
        check_model_keys(recipe, None)
    splits = few_rows(load_splits(recipe, problem(recipe.task), wanted=("train", "validation")))
    values = tiny_recipe(recipe, splits, folder).model_dump()
    values["train"] |= {
        "batch_size": BATCH,
        "dropout": dropout,
        "max_grad_norm": None,
        "max_steps": STEPS,
        "eval_every": 8,
    }
    values["train"]["early_stopping"] = None
    values["hardware"] |= {
        "precision": "fp32",
        "checkpoint_every": 2,
        "workers": 2 if dropout else 0,
    }
    if values["lora"] is not None:
        values["lora"] |= {"dropout": dropout, "quantize": None}
    tiny = load_recipe(values)
    source = find_model(tiny.model.base) if tiny.model.base else None
    check_model_keys(tiny, source)
    return Case(tiny, splits, source)


# ---------------------------------------------------------------------------------- the split


def prove_splits(case: Case, folder: Path) -> list[Verdict]:
    """Loss and gradients of every step of an epoch, and evaluation, however the work is cut."""
    from lmkit.train.measured import Bench

    bench = Bench(case.recipe, case.splits, case.source)
    whole = bench.steps(budget=ALL_AT_ONCE)
    found = [
        _steps("micro-batch: one example", whole, lambda: bench.steps(budget=1)),
        _steps("micro-batch: the recipe's", whole, lambda: bench.steps(budget=bench.budget)),
    ]
    if bench.packing is not None:
        found.append(
            _steps("packed, one example", whole, lambda: bench.steps(budget=1, packed=True))
        )
        found.append(
            _steps(
                "packed, all at once", whole, lambda: bench.steps(budget=ALL_AT_ONCE, packed=True)
            )
        )
    else:
        found.append(
            Verdict("packed", None, None, "skipped", "the task or the model does not pack")
        )
    found.append(
        _steps("loader workers: 2", whole, lambda: bench.steps(budget=bench.budget, workers=2))
    )
    found.append(_two_processes(case, whole, folder))
    if "validation" in case.splits.rows:
        everything = bench.evaluation(budget=ALL_AT_ONCE)
        for name, budget in (("one example", 1), ("the recipe's", 2 * bench.budget)):
            loss, predictions = everything.differences(bench.evaluation(budget=budget))
            note = f"predictions: {predictions:.1e}"
            found.append(
                _verdict(
                    f"evaluation batch: {name}",
                    loss,
                    None,
                    loss <= TOLERANCE and predictions <= TOLERANCE,
                    note,
                )
            )
    else:
        found.append(Verdict("evaluation batch", None, None, "skipped", "no validation rows"))
    return found


def _steps(varied: str, whole: Measured, measure: Callable[[], Measured]) -> Verdict:
    loss, gradients = whole.differences(measure())
    return _verdict(
        varied, loss, gradients, loss <= TOLERANCE and gradients <= TOLERANCE
    )  # NaN is not


def _verdict(
    varied: str, loss: float | None, gradients: float | None, holds: bool, note: str = ""
) -> Verdict:
    return Verdict(varied, loss, gradients, "ok" if holds else "FAILED", note)


def _two_processes(case: Case, whole: Measured, folder: Path) -> Verdict:
    import torch

    from lmkit.train.launch import ProcessFailed, launch
    from lmkit.train.measured import Measured

    varied = "processes: 2"
    if "RANK" in os.environ or not torch.distributed.is_available():
        return Verdict(
            varied, None, None, "skipped", "torch.distributed cannot start processes here"
        )
    if torch.cuda.is_available() and torch.cuda.device_count() < 2:
        return Verdict(
            varied, None, None, "skipped", "one GPU; CUDA_VISIBLE_DEVICES= proves it on the CPU"
        )
    _write_case(case, folder)
    os.environ[console.STARTED_AS] = "[]"
    try:
        launch(["-m", "lmkit.commands.proof", "steps", str(folder)], processes=2)
    except ProcessFailed as error:
        return Verdict(varied, None, None, "FAILED", str(error))
    finally:
        del os.environ[console.STARTED_AS]
    return _steps(varied, whole, lambda: Measured.load(folder / MEASURED))


def _write_case(case: Case, folder: Path) -> None:
    (folder / CASE).write_bytes(pickle.dumps(case))  # for our own processes, in a folder of our own


# ---------------------------------------------------------------------------------- resuming


def prove_resume(case: Case, folder: Path, *, kills: int, seed: int) -> list[Verdict]:
    """Train once in peace and once killed ``kills`` times with SIGKILL, each time resumed; compare bit by bit."""
    moments = random.Random(seed)
    runs = []
    for name in ("whole", "killed"):
        (folder / name).mkdir()
        run = Run(folder / name / "run")
        recipe = case.recipe.model_copy(update={"output": str(run.path)})
        _write_case(Case(recipe, case.splits, case.source), folder / name)
        runs.append(run)
    whole, killed = runs
    _finish(whole)
    for number in range(kills):
        share = STEPS // kills
        step, delay = number * share + moments.randrange(1, share), moments.random() * 0.1
        reached = _kill(killed, step, delay)
        console.say(
            f"kill {number + 1} (seed {seed}): {delay:.3f} s after step {step}, at step {reached}"
        )
    _finish(killed)
    return [_same(name, *map(content, runs)) for name, content in COMPARED.items()]


def _start(run: Run) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "lmkit.commands.proof", "fit", str(run.path.parent)]
    return subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def _finish(run: Run) -> None:
    running = _start(run)
    _, told = running.communicate()
    if running.returncode:
        raise ProofFailed(
            f"the run ended with status {running.returncode}: {told.decode(errors='replace')[-2000:]}"
        )


def _kill(run: Run, step: int, delay: float) -> int:
    """SIGKILL the run and its loader workers ``delay`` seconds after a step is logged; returns the step it had logged."""
    running = _start(run)
    while running.poll() is None and _logged(run) < step:
        time.sleep(0.002)
    time.sleep(delay)
    if running.poll() is None:
        os.killpg(running.pid, signal.SIGKILL)
    running.communicate()
    return _logged(run)


def _logged(run: Run) -> int:
    """The step of the last whole line of the log."""
    try:
        lines = run.log_file.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return 0
    return max((int(line.split(b",", 1)[0].rsplit(b" ", 1)[1]) for line in lines), default=0)


def _weights(run: Run) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.model.glob("*.safetensors")}


def _log(run: Run) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in line.items() if key not in TIMES} for line in run.log_lines()
    ]


def _best(run: Run) -> dict[str, bytes]:
    from lmkit.train.checkpoint import MOMENTS, WEIGHTS, name_of

    folder = run.checkpoints / name_of(run.manifest["best_step"] or run.manifest["steps"])
    return {f"{folder.name}/{name}": (folder / name).read_bytes() for name in (WEIGHTS, MOMENTS)}


COMPARED: dict[str, Callable[[Run], Any]] = {
    "final weights": _weights,
    "log": _log,
    "best checkpoint": _best,
}


def _same(name: str, whole: Any, killed: Any) -> Verdict:
    same = whole == killed
    return Verdict(
        name,
        None,
        None,
        "ok" if same else "FAILED",
        "the same bit by bit" if same else "not the same",
    )


# ---------------------------------------------------------------------------------- the processes


def run_part(what: str, folder: Path) -> None:
    """Do what one of the started processes is for."""
    case: Case = pickle.loads((folder / CASE).read_bytes())
    if what == "fit":
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
    # by its name and not as __main__, so that what was pickled is found
    from lmkit.commands.proof import run_part

    run_part(sys.argv[1], Path(sys.argv[2]))
