"""``lmkit compare``: evaluated runs over the same examples -> paired differences, intervals, p-values, verdicts. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from lmkit import console
from lmkit.errors import RunError, nearest
from lmkit.evaluation.compare import Pair, compare_all, score_by_module, score_together
from lmkit.evaluation.compare import Test as Test
from lmkit.metrics.custom import MOST_RESAMPLES, Module
from lmkit.models.source import find_model, is_model_directory
from lmkit.recipe import Recipe, load_recipe
from lmkit.records import Record
from lmkit.run import Run, is_run
from lmkit.tasks.base import Scored
from lmkit.tasks.registry import problem

Format = Literal["table", "markdown", "latex"]
SPLITS = ("test", "validation")


@dataclass(frozen=True)
class System:
    """One side of a comparison.

    Args:
        name: as it was given.
        runs: the places of its runs; a run of several places is a cross-validation, whose folds make the whole data.
    """

    name: str
    runs: list[list[Path]]


@dataclass(frozen=True)
class Comparison:
    """Systems beside each other, pair by pair.

    Args:
        names: the systems as they were given.
    """

    names: tuple[str, ...]
    metric: str
    task: str
    split: str
    examples: int
    test: Test
    pairs: tuple[Pair, ...]

    def to_json(self) -> dict[str, Any]:
        about = {
            "task": self.task,
            "split": self.split,
            "examples": self.examples,
            "method": self.test.method,
            "confidence": self.test.confidence,
            "resamples": self.test.resamples,
        }
        if len(self.pairs) == 1:
            return self.pairs[0].verdict.to_json() | {"runs": list(self.names)} | about
        pairs = []
        for pair in self.pairs:
            runs = [self.names[pair.first], self.names[pair.second]]
            pairs.append({"runs": runs} | pair.verdict.to_json())
        return {"metric": self.metric, "runs": list(self.names), "pairs": pairs} | about

    def to_text(self, style: Format = "table") -> str:
        lines = [_grid(self, style)]
        for pair in self.pairs:
            exact = pair.verdict.mcnemar_p_value
            if exact is not None:
                first, second = self.names[pair.first], self.names[pair.second]
                lines.append(f"McNemar, exact: {first} and {second}: p = {exact:.4g}")
        return "\n".join(lines)


def compare(
    names: Sequence[str],
    test: Test | None = None,
    *,
    metric: str | None = None,
    split: str | None = None,
) -> Comparison:
    """Compare two or more evaluated systems.

    Args:
        names: run directories, or directories with metrics.json and predictions.jsonl; several seeds of one recipe as a
            list with commas, or as the directory that ``seeds:`` or ``data.folds:`` made.
        test: default: the paired bootstrap.
        metric: default: the task's first that is not a loss.
        split: default: test where all have it, else validation.

    Raises:
        RunError: not evaluated, another task, or other examples.
    """
    test = test or Test()
    systems = _find_systems(names, test)
    places = [[evaluations(run, split, systems) for run in system.runs] for system in systems]
    every_place = [place for side in places for run in side for place in run]
    described = [(place, _read_json(place / "metrics.json")) for place in every_place]
    name = _one_task(described)
    records = [[_read_all(run) for run in side] for side in places]
    task = _task(places[0][0][0], name, records)
    chosen = metric or task.problem.headline(task.facts)
    runs = zip(chain(*places), chain(*records), strict=True)
    check_examples(task, [(str(run[0]), lines) for run, lines in runs])
    _check_tokens(task, chosen, places, records)
    modules = [metrics.get("modules", {}).get(chosen) for _, metrics in described]
    module = next((module for module in modules if module), None)
    if module is None:
        scored = score_together(task, records, chosen)
    else:
        test = _test_by_module(test)
        scored = score_by_module(task, records, chosen, Module(**module))
    return Comparison(
        names=tuple(names),
        metric=chosen,
        task=name,
        split=described[0][1]["split"],
        examples=len(records[0][0]),
        test=test,
        pairs=tuple(compare_all(scored, chosen, test)),
    )


def _find_systems(names: Sequence[str], test: Test) -> list[System]:
    """Find two systems or more, which the test can compare."""
    if len(names) < 2:
        raise RunError(
            "nothing to compare with",
            place=names[0],
            remedy="name two runs or more: lmkit compare RUN_A RUN_B",
        )
    systems = [find_system(name) for name in names]
    if test.method == "permutation" and any(len(system.runs) > 1 for system in systems):
        raise RunError(
            "exchanges outputs of one run with those of one other, and here are several seeds",
            place="--method permutation",
            remedy="use --method bootstrap, which knows both sources of variance",
        )
    return systems


def _test_by_module(test: Test) -> Test:
    """Limit the test to what a metric of ``eval.metrics`` allows."""
    if test.method == "permutation":
        raise RunError(
            "not for metrics of eval.metrics",
            place="--method permutation",
            remedy="use --method bootstrap",
        )
    if test.resamples <= MOST_RESAMPLES:
        return test
    console.say(f"{MOST_RESAMPLES} resamples, for each computes the metric of a module anew")
    return replace(test, resamples=MOST_RESAMPLES)


# ---------------------------------------------------------------------------------- finding


def find_system(name: str) -> System:
    """Find the runs that one argument names."""
    runs: list[list[Path]] = []
    for part in filter(None, name.split(",")):
        folder = Path(part).expanduser()
        if not folder.is_dir():
            raise _no_directory(part)
        if not (folder / "summary.json").is_file():
            runs.append([folder])
            continue
        summary = _read_json(folder / "summary.json")
        parts = [folder / entry["run"] for entry in summary["runs"]]
        runs += [parts] if summary["over"] == "folds" else [[run] for run in parts]
    return System(name, runs)


def _no_directory(name: str) -> RunError:
    """Return the error for a directory that is not there, with the nearest beside it."""
    folders = [path for path in Path(name).expanduser().parent.glob("*") if path.is_dir()]
    close = nearest(name, map(str, folders))
    remedy = f"did you mean {close}?" if close else "name an evaluated run"
    return RunError("no such directory", place=name, remedy=remedy)


def evaluations(run: list[Path], split: str | None, systems: Sequence[System]) -> list[Path]:
    """Find the predictions of a run's places: of the split asked for, else of the first that all have."""
    split = split or _common_split(systems)
    for place in run:
        if _has(place, split):
            continue
        splits = [folder.name for folder in sorted((place / "eval").glob("*"))]
        splits = [name for name in splits if _has(place, name)]
        also = f"; there are: {', '.join(splits)} (--split)" if splits else ""
        raise RunError(
            f"not evaluated on {split}{also}",
            place=str(place),
            remedy=f"lmkit eval {place}",
        )
    return [place if _is_evaluation(place) else place / "eval" / split for place in run]


def _common_split(systems: Sequence[System]) -> str:
    """Return the first split that all were evaluated on, else one that some were."""
    places = [place for system in systems for run in system.runs for place in run]
    for name in SPLITS:
        if all(_has(place, name) for place in places):
            return name
    for name in SPLITS:
        if any(_has(place, name) for place in places):
            return name
    return SPLITS[0]


def _is_evaluation(folder: Path) -> bool:
    return (folder / "predictions.jsonl").is_file() and (folder / "metrics.json").is_file()


def _has(place: Path, split: str) -> bool:
    return _is_evaluation(place) or _is_evaluation(place / "eval" / split)


def _read_json(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = _parse(path.read_text(encoding="utf-8"), str(path))
    return values


def read_records(folder: Path) -> Iterator[Record]:
    """Yield the lines of predictions.jsonl."""
    path = folder / "predictions.jsonl"
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            yield Record.from_json(_parse(line, f"{path}:{number}"))


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise RunError(
            f"not readable as JSON: {error}",
            place=place,
            remedy="evaluate it anew: lmkit eval RUN",
        ) from None


def _read_all(run: Sequence[Path]) -> list[Record]:
    return [record for place in run for record in read_records(place)]


# ---------------------------------------------------------------------------------- checking


def _one_task(described: Sequence[tuple[Path, dict[str, Any]]]) -> str:
    first, about = described[0]
    for place, other in described[1:]:
        if other["task"] != about["task"]:
            raise RunError(
                f"different tasks: {first} is {about['task']}, this is {other['task']}",
                place=str(place),
                remedy="compare runs of one task, on the same examples",
            )
    return str(about["task"])


def _task(place: Path, name: str, records: Sequence[Sequence[Sequence[Record]]]) -> Scored:
    """Return the task with what its model learned; where the model is not beside the predictions, with the labels in them."""
    run = place.absolute().parents[1]
    recipe, facts = Recipe(task=name), {}
    if is_run(run) and is_model_directory(run / "model"):
        recipe = load_recipe(Run(run).recipe_file)
        facts = dict(find_model(str(run)).description.get("facts", {}))
    solved = problem(name)
    facts = solved.recover(records[0][0]) | facts
    has_labels = any(field.kind in ("label", "tags") for field in solved.fields(recipe))
    if "labels" not in facts and has_labels:
        facts["labels"] = sorted(_labels_in(chain(*chain(*records))))
    return Scored(solved, recipe, facts)


def _labels_in(records: Iterable[Record]) -> set[str]:
    labels: set[str] = set()
    for record in records:
        for value in (record["gold"], record["prediction"]):
            labels |= set(value) if isinstance(value, list) else {value}
    return labels


def check_examples(task: Scored, runs: Sequence[tuple[str, Sequence[Record]]]) -> None:
    """Refuse runs over different examples, naming the first line that differs from the first run's.

    Raises:
        RunError: another number of lines, another id, input or gold.
    """
    fields = task.problem.fields(task.recipe, task.facts)
    keys = ["id", "gold", *(field.name for field in fields if not field.gold)]
    first, reference = runs[0]
    for place, records in runs[1:]:
        difference = _first_difference(keys, reference, records, first)
        if difference is not None:
            raise RunError(
                difference,
                place=f"{place}/predictions.jsonl",
                remedy="evaluate both on the same file: lmkit eval RUN data.test=FILE",
            )


def _first_difference(
    keys: Sequence[str], reference: Sequence[Record], records: Sequence[Record], first: str
) -> str | None:
    """Say where examples first differ from those of the ``first`` run; None: nowhere."""
    for number, (expected, record) in enumerate(zip(reference, records, strict=False), 1):
        for key in keys:
            if expected.get(key) != record.get(key):
                values = f"{_short(record.get(key))}, there {_short(expected.get(key))}"
                return f"line {number} is another example than in {first}: {key} is {values}"
    if len(reference) != len(records):
        return f"{len(records)} examples, and {first} has {len(reference)}"
    return None


def _short(value: Any, most: int = 60) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= most else text[: most - 3] + "..."


def _check_tokens(
    task: Scored,
    metric: str,
    places: list[list[list[Path]]],
    records: list[list[list[Record]]],
) -> None:
    """Refuse losses that are of other tokens: a loss a token says nothing across tokenizers."""
    is_pretrained = task.problem.stage == "pretrain"
    if metric == "bits_per_byte" or (not is_pretrained and metric != "loss"):
        return
    manifests = [run[0].absolute().parents[1] / "manifest.json" for run in chain(*places)]
    if is_pretrained and all(path.is_file() for path in manifests):
        # masks may differ, with the seed
        hashes = {_read_json(path)["tokenizer"]["sha256"] for path in manifests}
        differ = len(hashes) > 1
    else:
        items = [[record["items"] for record in run] for run in chain(*records)]
        differ = any(counts != items[0] for counts in items)
    if differ:
        remedy = "compare runs with one tokenizer"
        if any(measure.name == "bits_per_byte" for measure in task.problem.metrics(task.facts)):
            remedy = "--metric bits_per_byte does not depend on tokens"
        raise RunError(
            "the runs cut the text into different tokens, so what they lose a token is no measure",
            place=f"--metric {metric}",
            remedy=remedy,
        )


# ---------------------------------------------------------------------------------- showing


def _grid(comparison: Comparison, style: Format) -> str:
    pairs, names = comparison.pairs, comparison.names
    interval = f"{comparison.test.confidence * 100:g} % interval"
    header = ["a", "b", f"{comparison.metric} of a", "of b", "difference", interval, "p"]
    if len(pairs) > 1:
        header.append("p (Holm)")
    header.append("verdict")
    rows = []
    for pair in pairs:
        verdict = pair.verdict
        bounds = "-"
        if verdict.low is not None and verdict.high is not None:
            bounds = f"{verdict.low:+.4f} ... {verdict.high:+.4f}"
        ps = [f"{p:.4g}" for p in (verdict.p_value, verdict.p_holm) if p is not None]
        values = [_number(verdict.a), _number(verdict.b), _number(verdict.difference, "+")]
        rows.append([names[pair.first], names[pair.second], *values, bounds, *ps, verdict.verdict])
    if style == "markdown":
        return markdown(header, rows)
    return latex(header, rows) if style == "latex" else console.table(header, rows)


def _number(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.4f}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table.

    >>> print(markdown(["a", "p"], [["x|y", "0.1"]]))
    | a | p |
    |---|---|
    | x\\|y | 0.1 |
    """
    lines = [
        ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in part]
        for part in ([header], rows)
    ]
    return "\n".join([*lines[0], "|" + "---|" * len(header), *lines[1]])


LATEX = {sign: "\\" + sign for sign in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def latex(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A LaTeX table for the package booktabs."""
    lines = [
        " & ".join("".join(LATEX.get(sign, sign) for sign in cell) for cell in row) + r" \\"
        for row in [header, *rows]
    ]
    return "\n".join(
        [
            rf"\begin{{tabular}}{{{'l' * len(header)}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )
