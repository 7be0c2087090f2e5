"""``lmkit compare``: evaluated runs over the same examples -> paired differences, intervals, p-values, verdicts. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
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
    """The runs that one argument names."""
    runs = []
    for part in filter(None, name.split(",")):
        path = Path(part).expanduser()
        if not path.is_dir():
            beside = (
                [str(found) for found in path.parent.glob("*") if found.is_dir()]
                if path.parent.is_dir()
                else []
            )
            close = nearest(part, beside)
            raise RunError(
                "no such directory",
                place=part,
                remedy=f"did you mean {close}?" if close else "name an evaluated run",
            )
        if (path / "summary.json").is_file():
            summary = _read_json(path / "summary.json")
            each = [path / entry["run"] for entry in summary["runs"]]
            runs += [each] if summary["over"] == "folds" else [[run] for run in each]
        else:
            runs.append([path])
    return System(name, runs)


def evaluations(run: list[Path], split: str | None, systems: Sequence[System]) -> list[Path]:
    """The folders with the predictions of a run's places: of the split asked for, else of the first that all have."""
    every = [place for system in systems for each in system.runs for place in each]
    wanted = (
        [split] if split else [name for name in SPLITS if all(_has(place, name) for place in every)]
    )
    if not wanted:
        wanted = [
            next((name for name in SPLITS if any(_has(place, name) for place in every)), "test")
        ]
    for place in run:
        if not _has(place, wanted[0]):
            there = [
                found.name
                for found in sorted((place / "eval").glob("*"))
                if _has(place, found.name)
            ]
            also = f"; there are: {', '.join(there)} (--split)" if there else ""
            raise RunError(
                f"not evaluated on {wanted[0]}{also}",
                place=str(place),
                remedy=f"lmkit eval {place}",
            )
    return [place if _is_evaluation(place) else place / "eval" / wanted[0] for place in run]


def _is_evaluation(folder: Path) -> bool:
    return (folder / "predictions.jsonl").is_file() and (folder / "metrics.json").is_file()


def _has(place: Path, split: str) -> bool:
    return _is_evaluation(place) or _is_evaluation(place / "eval" / split)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(
            f"not readable as JSON: {error}",
            place=str(path),
            remedy="evaluate it anew: lmkit eval RUN",
        ) from None
    return found


def read_records(folder: Path) -> Iterator[Record]:
    """The lines of predictions.jsonl."""
    path = folder / "predictions.jsonl"
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield Record.from_json(json.loads(line))
            except ValueError as error:
                raise RunError(
                    f"not readable as JSON: {error}",
                    place=f"{path}:{number}",
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
    """The task with what its model learned; where the model is not beside the predictions, the labels that occur."""
    run = place.absolute().parents[1]
    recipe, facts = Recipe(task=name), {}
    if is_run(run) and is_model_directory(run / "model"):
        recipe, facts = (
            load_recipe(Run(run).recipe_file),
            dict(find_model(str(run)).description.get("facts", {})),
        )
    solved = problem(name)
    facts = solved.recover(records[0][0]) | facts
    has_labels = any(field.kind in ("label", "tags") for field in solved.fields(recipe))
    if "labels" not in facts and has_labels:
        values = [
            record[key]
            for side in records
            for found in side
            for record in found
            for key in ("gold", "prediction")
        ]
        facts["labels"] = sorted(
            {label for value in values for label in (value if isinstance(value, list) else [value])}
        )
    return Scored(solved, recipe, facts)


def check_examples(task: Scored, runs: Sequence[tuple[str, Sequence[Record]]]) -> None:
    """Refuse runs over different examples, naming the first line that differs from the first run's.

    Raises:
        RunError: another number of lines, another id, input or gold.
    """
    fields = task.problem.fields(task.recipe, task.facts)
    keys = ["id", "gold", *(field.name for field in fields if not field.gold)]
    (first, reference), *others = runs
    for place, records in others:
        for number, (mine, its) in enumerate(zip_longest(reference, records), 1):
            if mine is None or its is None:
                difference = f"{len(records)} examples, and {first} has {len(reference)}"
            elif key := next((key for key in keys if mine.get(key) != its.get(key)), None):
                difference = f"line {number} is another example than in {first}: {key} is {_short(its.get(key))}, there {_short(mine.get(key))}"
            else:
                continue
            raise RunError(
                difference,
                place=f"{place}/predictions.jsonl",
                remedy="evaluate both on the same file: lmkit eval RUN data.test=FILE",
            )


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
    manifests = [run[0].absolute().parents[1] / "manifest.json" for side in places for run in side]
    if is_pretrained and all(path.is_file() for path in manifests):
        differ = (
            len({_read_json(path)["tokenizer"]["sha256"] for path in manifests}) > 1
        )  # masks may, with the seed
    else:
        items = [[record["items"] for record in run] for side in records for run in side]
        differ = any(each != items[0] for each in items[1:])
    if differ:
        remedy = (
            "--metric bits_per_byte does not depend on tokens"
            if any(each.name == "bits_per_byte" for each in task.problem.metrics(task.facts))
            else "compare runs with one tokenizer"
        )
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
