"""``lmkit doctor RECIPE``: neither the hardware section nor an interruption changes what the recipe learns."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmkit import console
from lmkit.data.splits import load_splits
from lmkit.flow.case import Case
from lmkit.flow.proof_processes import finish, kill, measure_in_two_processes, write_case
from lmkit.flow.smoke import few_rows, tiny_recipe
from lmkit.models.source import find_model
from lmkit.preflight import check_model_keys, check_stage
from lmkit.recipe import Recipe, load_recipe
from lmkit.run import TIMES, Run
from lmkit.tasks.registry import problem

if TYPE_CHECKING:
    from lmkit.train.measured import Measured

TOLERANCE = 1e-5  # largest relative difference, fp32
ALL_AT_ONCE = 1 << 40  # tokens
BATCH, STEPS = 3, 24


@dataclass(frozen=True)
class Proof:
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

    @classmethod
    def skipped(cls, varied: str, note: str) -> Proof:
        return cls(varied, None, None, "skipped", note)


@dataclass(frozen=True)
class ProofReport:
    """The proofs on a recipe.

    Args:
        seed: of the moments at which the run was killed; None: none was.
    """

    recipe: str
    task: str
    proofs: tuple[Proof, ...]
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
    """Return the same task, architecture and options with a tiny model, a few rows and short steps, in fp32 on one process."""
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


def prove_splits(case: Case, folder: Path) -> list[Proof]:
    """Compare loss and gradients of every step of an epoch, and evaluation, however the work is cut."""
    from lmkit.train.measured import Bench

    bench = Bench(case.recipe, case.splits, case.source)
    budget = bench.budget
    whole = bench.steps(budget=ALL_AT_ONCE)
    proofs = [
        _compare("micro-batch: one example", whole, bench.steps(budget=1)),
        _compare("micro-batch: the recipe's", whole, bench.steps(budget=budget)),
    ]
    if bench.packing is not None:
        one, every = (bench.steps(budget=size, packed=True) for size in (1, ALL_AT_ONCE))
        proofs.append(_compare("packed, one example", whole, one))
        proofs.append(_compare("packed, all at once", whole, every))
    else:
        proofs.append(Proof.skipped("packed", "the task or the model does not pack"))
    proofs.append(_compare("loader workers: 2", whole, bench.steps(budget=budget, workers=2)))
    proofs.append(_two_processes(case, whole, folder))
    if "validation" not in case.splits.rows:
        return [*proofs, Proof.skipped("evaluation batch", "no validation rows")]
    everything = bench.evaluation(budget=ALL_AT_ONCE)
    for name, size in (("one example", 1), ("the recipe's", 2 * budget)):
        loss, predictions = everything.differences(bench.evaluation(budget=size))
        is_same = loss <= TOLERANCE and predictions <= TOLERANCE
        note = f"predictions: {predictions:.1e}"
        proofs.append(_judge(f"evaluation batch: {name}", loss, None, is_same, note))
    return proofs


def _compare(varied: str, whole: Measured, measured: Measured) -> Proof:
    loss, gradients = whole.differences(measured)
    # which nan is not
    is_same = loss <= TOLERANCE and gradients <= TOLERANCE
    return _judge(varied, loss, gradients, is_same)


def _judge(
    varied: str, loss: float | None, gradients: float | None, is_same: bool, note: str = ""
) -> Proof:
    return Proof(varied, loss, gradients, "ok" if is_same else "FAILED", note)


def _two_processes(case: Case, whole: Measured, folder: Path) -> Proof:
    import torch

    from lmkit.train.launch import ProcessFailed

    varied = "processes: 2"
    if "RANK" in os.environ or not torch.distributed.is_available():
        return Proof.skipped(varied, "torch.distributed cannot start processes here")
    if torch.cuda.is_available() and torch.cuda.device_count() < 2:
        return Proof.skipped(varied, "one GPU; CUDA_VISIBLE_DEVICES= proves it on the CPU")
    try:
        measured = measure_in_two_processes(case, folder)
    except ProcessFailed as error:
        return Proof(varied, None, None, "FAILED", str(error))
    return _compare(varied, whole, measured)


# ---------------------------------------------------------------------------------- resuming


def prove_resume(case: Case, folder: Path, *, kills: int, seed: int) -> list[Proof]:
    """Train once in peace and once killed ``kills`` times with SIGKILL, each time resumed; compare bit by bit."""
    moments = random.Random(seed)
    runs = []
    for name in ("whole", "killed"):
        (folder / name).mkdir()
        run = Run(folder / name / "run")
        recipe = case.recipe.model_copy(update={"output": str(run.path)})
        write_case(Case(recipe, case.splits, case.source), folder / name)
        runs.append(run)
    whole, killed = runs
    finish(whole)
    for number in range(kills):
        share = STEPS // kills
        step, delay = number * share + moments.randrange(1, share), moments.random() * 0.1
        reached = kill(killed, step, delay)
        console.say(
            f"kill {number + 1} (seed {seed}): {delay:.3f} s after step {step}, at step {reached}"
        )
    finish(killed)
    return [_same(name, *map(content, runs)) for name, content in COMPARED.items()]


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


def _same(name: str, whole: object, killed: object) -> Proof:
    is_same = whole == killed
    return _judge(name, None, None, is_same, "the same bit by bit" if is_same else "not the same")
