"""``lmkit data``: what the data of a recipe looks like, before anything is trained. No torch."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from lmkit import console
from lmkit.errors import RecipeError
from lmkit.flow.singles import check_repeat, is_repeated, single_runs
from lmkit.recipe import load_recipe
from lmkit.tasks.registry import names, problem

if TYPE_CHECKING:
    from lmkit.data.rows import Rows
    from lmkit.tasks.answers import Answer
    from lmkit.tasks.fields import Field

SHOWN_LABELS, SHOWN_LETTERS = 30, 200


def look(source: str | Mapping[str, Any], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Rows, lengths, labels and repetitions of every split that the recipe names, after all checks.

    Returns:
        For ``--json``: by split ``rows``, ``left_out``, ``files``, ``characters`` (of a row: shortest, median, longest,
        and in all), ``repeated`` (rows whose text an earlier row of the split has, too), ``in_train``, ``labels``, ``first``.

    Raises:
        LmkitError: what training would refuse in the data.
    """
    recipe = load_recipe(source, overrides)
    if not recipe.task:
        raise RecipeError("no task", place="task", remedy=f"one of: {', '.join(names())}")
    if is_repeated(recipe):
        check_repeat(recipe)
        runs = single_runs(recipe)
        recipe = runs[0][1]
        console.say(f"{len(runs)} runs; this is the data of the first")
    from lmkit.data.splits import (
        load_splits,  # after the recipe is known to be right: mistakes in it answer at once
    )

    splits = load_splits(recipe, problem(recipe.task), wanted=("train", "validation", "test"))
    solved = problem(recipe.task)
    fields, answer = solved.fields(recipe, splits.facts), solved.answer(splits.facts)
    known = {hash(text) for text in _texts(splits.rows["train"], fields)}
    found = {
        split: _described(rows, fields, answer, known if split != "train" else None)
        for split, rows in splits.rows.items()
    }
    return {"recipe": recipe.name, "task": recipe.task, "splits": found}


def _described(
    rows: Rows, fields: Sequence[Field], answer: Answer, known: set[int] | None
) -> dict[str, Any]:
    """Describe one split; ``known``: hashes of the training texts."""
    lengths, repeated, in_train = [], 0, 0
    seen: set[int] = set()
    for text in _texts(rows, fields):
        lengths.append(len(text))
        key = hash(text)
        repeated += key in seen
        in_train += known is not None and key in known
        seen.add(key)
    shown = {
        "shortest": min(lengths),
        "median": round(median(lengths)),
        "longest": max(lengths),
        "in_all": sum(lengths),
    }
    return {
        "rows": len(rows),
        "left_out": len(rows.rejected),
        "files": [
            {"path": file.path, "rows": file.rows, "bytes": file.bytes} for file in rows.files
        ],
        "characters": shown,
        "repeated": repeated,
        **({} if known is None else {"in_train": in_train}),
        **({"labels": labels} if (labels := _labels(rows, fields, answer)) else {}),
        "first": rows[0],
    }


def _texts(rows: Rows, fields: Sequence[Field]) -> Iterator[str]:
    """Yield what is read of each row as one text, as overlap with training is judged: case and white space aside."""
    from lmkit.evaluation.overlap import normalised

    names = [field.name for field in fields if not field.gold]
    for row in rows:
        values = [
            " ".join(row[name]) if isinstance(row[name], list) else str(row[name]) for name in names
        ]
        yield normalised("\n".join(values))


def _labels(rows: Rows, fields: Sequence[Field], answer: Answer) -> dict[str, int]:
    """Count how often each label occurs; the commonest first."""
    counts: Counter[str] = Counter()
    for name in (field.name for field in fields if field.gold):
        for row in rows:
            counts.update(answer.occurrences(row[name]))
    return dict(counts.most_common())


def tables(found: dict[str, Any]) -> str:
    """The same for people."""
    splits = found["splits"]
    rows = [
        [
            split,
            f"{each['rows']:,}",
            f"{each['left_out']:,}",
            " / ".join(f"{each['characters'][key]:,}" for key in ("shortest", "median", "longest")),
            f"{each['characters']['in_all']:,}",
            f"{each['repeated']:,}",
            f"{each['in_train']:,}" if "in_train" in each else "-",
        ]
        for split, each in splits.items()
    ]
    header = [
        "split",
        "rows",
        "left out",
        "characters: shortest / median / longest",
        "in all",
        "repeated",
        "also in train",
    ]
    parts = [console.table(header, rows)]
    labels = dict.fromkeys(label for each in splits.values() for label in each.get("labels", {}))
    if labels:
        shown = [
            [label, *(each.get("labels", {}).get(label, 0) for each in splits.values())]
            for label in list(labels)[:SHOWN_LABELS]
        ]
        parts.append(console.table(["label", *splits], shown))
        if len(labels) > SHOWN_LABELS:
            parts.append(f"... and {len(labels) - SHOWN_LABELS} labels more (--json has all)")
    for split, each in splits.items():
        parts.append(f"{split}, the first row: {_short(each['first'])}")
    return "\n\n".join(parts)


def _short(row: dict[str, Any]) -> str:
    text = json.dumps({key: value for key, value in row.items() if key != "id"}, ensure_ascii=False)
    return text if len(text) <= SHOWN_LETTERS else text[: SHOWN_LETTERS - 3] + "..."
