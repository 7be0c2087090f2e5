"""Compare the working tree with an earlier commit: what it learns, bit for bit, and how fast it is.

    python tests/bench/two_commits.py [--base REV] [--only demo/ner,pretrain/clm] [--precision fp32] [--processes 1]
    python tests/bench/two_commits.py --time 5 [--only clm,startup]

Each recipe that ships is run with few rows, a tiny preset and a few steps, once by each commit, both at the same time.
A recipe with ``model.base`` starts from a model that the base commit made by the recipe that comes first. The losses
and gradient norms of all steps, the weights of the model and of the checkpoints, the predictions and the metrics must
be equal. ``lmkit eval`` on the test rows and ``lmkit predict`` follow where one process trained. The exit status is 1
where something differs.

``--time N`` runs the benches of tests/bench/speed.py in turn (base, tree, base, tree, ...) and reports the median of
the N ratios, with their range; above 1 the working tree is faster.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import speed
import yaml

ROOT = Path(__file__).parents[2]
RECIPES = [
    f"{path.parent.name}/{path.stem}"
    for folder in ("demo", "finetune", "pretrain")
    for path in sorted((ROOT / "recipes" / folder).glob("*.yaml"))
]
BENCHES = ("mlm", "clm", "classification", "ner", "translation", "generate", "startup")
MADE_BY_TASK = {"mlm": "pretrain", "clm": "pretrain", "denoise": "pretrain"}  # else finetune
SMALL = [
    "data.max_rows=96",
    "train.epochs=null",
    "train.max_steps=10",  # more than an epoch
    "train.batch_size=8",
    "train.eval_every=4",
    "logging.every=1",
    "eval.resamples=20",
    "hardware.checkpoint_every=4",
]
TIMES = ("seconds", "tokens_per_second", "data_wait")  # what may differ in a log and in metrics
ENOUGH = {"ner": ["data.max_rows=600", "train.batch_size=64"]}  # all tags of the validation rows
TEXTS = "I am [MASK] <extra_id_0> about it\n123 [MASK] Street, <extra_id_0>\n"


# Importing torch and its friends takes longer than a small run, so it is done once and every command is a fork.
SERVER = """
import json, os, sys
import torch, accelerate, datasets, peft, transformers.modeling_utils
for line in sys.stdin:
    arguments, files = json.loads(line)
    child = os.fork()
    if child == 0:
        for number, name in enumerate(files):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | (os.O_APPEND if number else 0)), number)
        sys.stdin, sys.argv = open(0, closefd=False), ["lmkit", *arguments]
        status = 1
        try:
            from lmkit.cli import main
            main()
        except SystemExit as end:
            status = end.code or 0
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=sys.__stdout__, flush=True)
"""


@dataclass
class Side:
    """A commit: where its code lies, where its runs go, and the process that runs its commands."""

    name: str
    code: Path
    folder: Path
    server: subprocess.Popen[str] | None = None

    def start(self, *arguments: str, log: Path) -> None:
        """Start ``lmkit ARGUMENTS`` with this commit's code, its standard input being some texts."""
        if self.server is None:
            self.server = self._open_server()
        assert self.server.stdin is not None
        log.parent.mkdir(parents=True, exist_ok=True)
        files = [self.folder / "texts.txt", log.with_suffix(".out"), log]
        files[0].write_text(TEXTS)
        self.server.stdin.write(json.dumps([arguments, [str(name) for name in files]]) + "\n")
        self.server.stdin.flush()

    def wait(self) -> int:
        """Wait for the command that was started, and return its exit status."""
        assert self.server is not None
        assert self.server.stdout is not None
        return int(self.server.stdout.readline())

    def _open_server(self) -> subprocess.Popen[str]:
        variables = {
            "PYTHONPATH": str(self.code),
            "LMKIT_CACHE": str(self.folder / "cache"),
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
        }
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", SERVER],
            cwd=self.folder,
            env=os.environ | variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )


@dataclass(frozen=True)
class Case:
    """A recipe in one precision on so many processes."""

    recipe: str
    precision: str
    processes: int

    @property
    def name(self) -> str:
        return f"{self.recipe}, {self.precision}, {self.processes}"

    def run_of(self, side: Side) -> Path:
        return side.folder / self.recipe / f"{self.precision}-{self.processes}"

    def log_of(self, side: Side) -> Path:
        return self.run_of(side).with_suffix(".log")

    def commands(self, side: Side, base: Path) -> Iterator[list[str]]:
        """Yield the commands of one side, one after the other."""
        path, run = side.code / "recipes" / f"{self.recipe}.yaml", self.run_of(side)
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        hardware = [
            f"hardware.precision={self.precision}",
            f"hardware.processes={self.processes}",
        ]
        stage = MADE_BY_TASK.get(values["task"], "finetune")
        yield [stage, str(path), "-o", str(run), *changes_of(values, base), *hardware]
        if self.processes == 1:
            yield ["eval", str(run)]
            yield ["predict", str(run)]


FIRST = Case("demo/mlm", "fp32", 1)  # recipes with model.base start from the base commit's


def changes_of(values: dict[str, Any], base: Path) -> list[str]:
    """Return the settings that make a recipe small."""
    changes = [*SMALL, *ENOUGH.get(values["task"], [])]
    model = values["model"]
    if "base" in model:
        changes.append(f"model.base={base}")
    if "preset" in model:
        family = model["preset"].partition("-")[0]
        changes.append(f"model.preset={family}-tiny")
    if "tokenizer" in values:
        changes.append("tokenizer.train.vocab_size=1000")
    if "generation" in values:
        changes.append("generation.max_new_tokens=8")
    return changes


# --- what differs ---


def run_case(case: Case, sides: Sequence[Side], base: Path) -> str:
    """Run a case on both sides at the same time; return how one of them failed, or an empty text."""
    commands = zip(*(case.commands(side, base) for side in sides), strict=True)
    for pair in commands:
        for side, command in zip(sides, pair, strict=True):
            side.start(*command, log=case.log_of(side))
        statuses = [side.wait() for side in sides]
        for side, status in zip(sides, statuses, strict=True):
            if status:
                return f"{side.name}: exit status {status}, see {case.log_of(side)}"
    return ""


def differences(case: Case, sides: Sequence[Side]) -> list[str]:
    """Return what differs between the runs of a case."""
    base, tree = (case.run_of(side) for side in sides)
    wrong = log_differences(base, tree)
    for pattern in ("model/*.safetensors", "checkpoints/*/*.safetensors"):
        for name in names_of(base, tree, pattern):
            wrong += tensor_differences(base / name, tree / name)
    for name in names_of(base, tree, "eval/*/predictions.jsonl"):
        wrong += line_differences(base / name, tree / name)
    for name in names_of(base, tree, "eval/*/metrics.json"):
        if metrics_of(base / name) != metrics_of(tree / name):
            wrong.append(f"{name} differs")
    if answers_of(base) != answers_of(tree):
        wrong.append("lmkit predict answers otherwise")
    return wrong


def names_of(base: Path, tree: Path, pattern: str) -> list[str]:
    """Return the files of a run, relative to it; a file that only one side has is among them."""
    files = [path.relative_to(run) for run in (base, tree) for path in run.glob(pattern)]
    return sorted({str(path) for path in files})


def log_differences(base: Path, tree: Path) -> list[str]:
    """Return the first line of log.jsonl that differs in more than times."""
    logs = [log_of(base), log_of(tree)]
    if len(logs[0]) != len(logs[1]):
        return [f"log.jsonl has {len(logs[0])} and {len(logs[1])} lines"]
    for before, after in zip(*logs, strict=True):
        keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
        if keys:
            values = [f"{key} {before.get(key)} and {after.get(key)}" for key in keys]
            return [f"step {before['step']}: {', '.join(values)}"]
    return []


def log_of(run: Path) -> list[dict[str, Any]]:
    lines = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [without_times(json.loads(line)) for line in lines]


def without_times(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in TIMES}


def metrics_of(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    return without_times(json.loads(path.read_text(encoding="utf-8")))


def answers_of(run: Path) -> list[str]:
    """Return what ``lmkit predict`` printed, without what libraries print beside it."""
    lines = run.with_suffix(".out").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.startswith("{")]


def tensor_differences(base: Path, tree: Path) -> list[str]:
    """Return the tensors of two files that are not equal bit for bit."""
    import torch
    from safetensors.torch import load_file

    if not (base.is_file() and tree.is_file()):
        return [f"{base.name} of {base.parent.name} is missing on one side"]
    before, after = load_file(base), load_file(tree)
    if before.keys() != after.keys():
        return [f"{base.name}: other tensors {sorted(before.keys() ^ after.keys())[:3]}"]
    unequal = []
    for name, tensor in before.items():
        same_kind = tensor.dtype == after[name].dtype and tensor.shape == after[name].shape
        if not same_kind or not torch.equal(bits(tensor), bits(after[name])):
            unequal.append(name)
    if not unequal:
        return []
    return [f"{base.parent.name}/{base.name}: {len(unequal)} tensors differ, first {unequal[0]}"]


def bits(tensor: Any) -> Any:
    """View a tensor as bytes, so that equal NaN are equal and 0 is not -0."""
    import torch

    return tensor.contiguous().flatten().view(torch.uint8)


def line_differences(base: Path, tree: Path) -> list[str]:
    """Return the number of the first line that differs between two files."""
    if not (base.is_file() and tree.is_file()):
        return [f"{base.name} is missing on one side"]
    before, after = (path.read_text(encoding="utf-8").splitlines() for path in (base, tree))
    if len(before) != len(after):
        return [f"{base.name} has {len(before)} and {len(after)} lines"]
    for number, lines in enumerate(zip(before, after, strict=True), start=1):
        if lines[0] != lines[1]:
            return [f"{base.parent.name}/{base.name}: line {number} differs"]
    return []


def compare(cases: Sequence[Case], sides: Sequence[Side]) -> bool:
    """Run all cases, print a table, and return whether all are equal."""
    base = FIRST.run_of(sides[0])
    rows = []
    for case in dict.fromkeys([FIRST, *cases]):
        failure = run_case(case, sides, base)
        wrong = [failure] if failure else differences(case, sides)
        rows.append((case, wrong))
        print(f"{case.name}: {'; '.join(wrong) or 'equal'}", file=sys.stderr, flush=True)
    print("\n| recipe | precision | processes | |\n|---|---|---|---|")
    for case, wrong in rows:
        verdict = "; ".join(wrong) or "equal"
        print(f"| {case.recipe} | {case.precision} | {case.processes} | {verdict} |")
    return not any(wrong for _, wrong in rows)


# --- how fast ---


def rate_of(name: str, place: speed.Place, mean: dict[str, float]) -> float:
    run = speed.run_lmkit(name, place)
    return float(speed.result_of(name, run, "lmkit", place, mean)["rate"])


def time_bench(
    name: str, places: Sequence[speed.Place], *, pairs: int, seconds: float
) -> list[float]:
    """Return the working tree's rate over the base's, pair by pair, after one run of each that does not count."""
    if name == "generate":
        speed.translator(places[0], minutes=1.0)
    mean = speed.mean_tokens(name, places[0])
    steps = 1
    if name not in ("generate", "startup"):
        times = speed.run_lmkit(name, replace(places[0], steps=speed.WARM_UP + 5))["times"]
        a_step = (times[-1] - times[speed.WARM_UP - 1]) / 5
        steps = speed.WARM_UP + max(5, math.ceil(seconds / a_step))
    base, tree = (replace(place, steps=steps) for place in places)
    for place in (base, tree):
        rate_of(name, replace(place, steps=min(steps, speed.WARM_UP + 2)), mean)
    ratios = []
    for _ in range(pairs):
        before, after = rate_of(name, base, mean), rate_of(name, tree, mean)
        ratios.append(after / before)
        print(
            f"{name}: {before:.4g} and {after:.4g}, {ratios[-1]:.3f}", file=sys.stderr, flush=True
        )
    return ratios


def time_benches(
    names: Sequence[str], sides: Sequence[Side], root: Path, *, pairs: int, seconds: float
) -> None:
    """Time benches and print a table."""
    places = [speed.Place(root, code=side.code) for side in sides]
    inputs = [str(speed.HERE / "inputs.py"), str(root / "inputs")]
    speed.timed(inputs, places[1], root / "inputs.log")
    rows = []
    for name in names:
        ratios = sorted(time_bench(name, places, pairs=pairs, seconds=seconds))
        median = speed.statistics.median(ratios)
        rows.append(f"| {name} | {median:.3f}x | {ratios[0]:.3f} ... {ratios[-1]:.3f} |")
    print("\n| bench | working tree over base | range |\n|---|---|---|")
    print("\n".join(rows))


# --- the command ---


def extract(revision: str, folder: Path) -> Path:
    """Write a commit's files into a folder."""
    folder.mkdir(parents=True)
    archive = subprocess.run(
        ["git", "archive", revision], cwd=ROOT, stdout=subprocess.PIPE, check=True
    )
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


def copy_tree(folder: Path) -> Path:
    """Copy the working tree's package and recipes, so that it may change meanwhile."""
    for name in ("lmkit", "recipes"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def merge_base() -> str:
    """Return the commit that the working tree came from: where it left main, or the last commit."""
    command = ["git", "merge-base", "HEAD", "main"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "HEAD"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--base", metavar="REV", help="default: where this branch left main")
    parser.add_argument("--only", default="", help="recipes or benches, with commas")
    parser.add_argument("--precision", default="fp32,bf16")
    parser.add_argument("--processes", default="1,2")
    parser.add_argument("--time", type=int, metavar="N", help="pairs of each bench")
    parser.add_argument("--seconds", type=float, default=10.0, help="of training that is timed")
    parser.add_argument("--out", type=Path, help="keep the runs here; default: a temporary folder")
    options = parser.parse_args()
    choices = BENCHES if options.time else RECIPES
    options.only = options.only.split(",") if options.only else list(choices)
    unknown = set(options.only) - set(choices)
    if unknown:
        parser.error(f"no {', '.join(sorted(unknown))}; there are {', '.join(choices)}")
    return options


def main() -> None:
    options = arguments()
    root = (options.out or Path(tempfile.mkdtemp(prefix="two-commits-"))).resolve()
    base = extract(options.base or merge_base(), root / "base" / "code")
    tree = copy_tree(root / "tree" / "code")
    sides = [Side("base", base, base.parent), Side("tree", tree, tree.parent)]
    if options.time:
        time_benches(options.only, sides, root, pairs=options.time, seconds=options.seconds)
        return
    cases = [
        Case(recipe, precision, int(processes))
        for processes in options.processes.split(",")
        for precision in options.precision.split(",")
        for recipe in options.only
    ]
    all_equal = compare(cases, sides)
    if options.out is None and all_equal:
        shutil.rmtree(root)
    sys.exit(0 if all_equal else 1)


if __name__ == "__main__":
    main()
