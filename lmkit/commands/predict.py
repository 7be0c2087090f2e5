"""``lmkit predict``: texts from the command line, a file or stdin -> JSON lines, in order."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lmkit.commands.evaluate import facts_of, find_subject
from lmkit.data.check import load_rows
from lmkit.data.splits import cache_folder
from lmkit.errors import DataError
from lmkit.tasks.base import Row, Task, TooLong
from lmkit.tasks.registry import task_class

BATCH_ROWS = 256


class Predictor:
    """A trained model that answers: ``lmkit.load(run).predict([...])``."""

    def __init__(self, source: str | Path, overrides: Sequence[str] = ()):
        recipe, found, _ = find_subject(str(source), overrides)
        from lmkit.models.build import load_trained
        from lmkit.models.tokenizer import for_words, load_tokenizer
        from lmkit.train.device import build_accelerator, micro_batch_tokens

        cls = task_class(recipe.task)
        tokenizer = load_tokenizer(
            found.location, revision=recipe.model.revision, trust_remote_code=recipe.model.trust_remote_code
        )
        words = any(field.kind == "words" for field in cls.fields)
        facts = found.description.get("facts") or facts_of(found, recipe)
        self.recipe = recipe
        self.task: Task = cls(recipe, facts, for_words(tokenizer, found.location) if words else tokenizer)
        self.accelerator = build_accelerator(recipe.hardware.model_copy(update={"processes": "auto"}))
        self.model = load_trained(found, self.task).to(self.accelerator.device)
        self.budget = 2 * micro_batch_tokens(recipe.hardware, self.accelerator.device)

    def predict(self, texts: str | Sequence[str]) -> list[dict[str, Any]]:
        """One JSON-ready answer per text, in order.

        Raises:
            DataError: a text is empty, or longer than the model reads where it cannot be read in windows.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        return list(self.answers(self.task.text_rows(texts)))

    def answers(self, rows: Iterable[Row]) -> Iterator[dict[str, Any]]:
        """Answers to checked rows, a batch at a time."""
        remaining = iter(rows)
        while batch := list(itertools.islice(remaining, BATCH_ROWS)):
            yield from self._answer(batch)

    def _answer(self, rows: list[Row]) -> list[dict[str, Any]]:
        import torch

        from lmkit.data.plan import micro_batches

        for row in rows:
            if not str(row.get("text", row.get("source", "x"))).strip() or row.get("tokens") == []:
                raise DataError("empty text", place=f"text {row['id'] + 1}", remedy="leave it out")
        answers = self.task.respond(self.model, rows)
        if answers is not None:
            return answers
        try:
            columns = self.task.encode(rows)
        except TooLong as error:
            at, length = error.rows[0]
            raise TooLong([(at, length)], error.max_length, place=f"text {rows[at]['id'] + 1}") from None
        pieces = [{name: values[i] for name, values in columns.items()} | {"piece": i} for i in range(len(columns["row"]))]
        parts: list[list[dict[str, Any]]] = [[] for _ in rows]
        found: dict[int, dict[str, Any]] = {}
        import numpy as np

        for numbers in micro_batches(np.arange(len(pieces)), np.asarray(columns["length"]), self.budget):
            chosen = [pieces[i] for i in numbers]
            batch = {
                key: value.to(self.accelerator.device) for key, value in self.task.collate([[piece] for piece in chosen]).items()
            }
            with torch.inference_mode(), self.accelerator.autocast():
                found |= dict(zip(numbers.tolist(), self.task.predict(self.model, batch, chosen), strict=True))
        for number, part in sorted(found.items()):
            parts[pieces[number]["row"]].append(part)
        return [self.task.show(self.task.combine(row, part)) for row, part in zip(rows, parts, strict=True)]

    def file(self, path: str) -> Iterator[dict[str, Any]]:
        """Answers to the rows of a file, or to its raw texts where it has no column of the task's."""
        fields = [field for field in self.task.fields if not field.gold]
        rows = load_rows(
            path,
            key="--file",
            split="test",
            fields=fields,
            columns={
                role: column for role, column in self.recipe.data.columns.items() if role in [field.name for field in fields]
            },
            on_bad_row="error",
            document=self.recipe.data.document,
            max_rows=None,
            folders=[Path.cwd()],
            cache_dir=cache_folder(),
        )
        yield from self.answers(rows)


def text_lines(stream: Iterable[str]) -> list[str]:
    """Lines of stdin as texts; an empty line is an empty text, and an error later."""
    lines = [line.rstrip("\r\n") for line in stream]
    if not lines:
        raise DataError("no line came", place="stdin", remedy="give texts, --file FILE, or lines on stdin")
    return lines
