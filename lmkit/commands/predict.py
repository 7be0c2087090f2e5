"""``lmkit predict``: texts from the command line, a file or stdin -> JSON lines, in order."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmkit import console
from lmkit.batch import Row
from lmkit.errors import DataError
from lmkit.subject import facts_of, find_subject, tokenizer_of
from lmkit.tasks.base import Task, TooLong
from lmkit.tasks.fields import Field
from lmkit.tasks.registry import problem

if TYPE_CHECKING:
    from lmkit.data.rows import Rows

BATCH_ROWS = 256


class Predictor:
    """A trained model that answers: ``lmkit.load(run).predict([...])``."""

    def __init__(self, source: str | Path, overrides: Sequence[str] = ()):
        subject = find_subject(str(source), overrides)
        recipe, found = subject.recipe, subject.source
        from lmkit.evaluation.forward import Forward
        from lmkit.models.build import load_trained
        from lmkit.train.device import build_accelerator, micro_batch_tokens

        facts = facts_of(found, recipe)
        self.recipe = recipe
        self.task: Task = problem(recipe.task).task(recipe, facts, tokenizer_of(recipe, found))
        self.accelerator = build_accelerator(
            recipe.hardware.model_copy(update={"processes": "auto"})
        )
        self.model = load_trained(found, self.task).to(self.accelerator.device)
        budget = 2 * micro_batch_tokens(recipe.hardware, self.accelerator.device)
        self.forward = Forward(self.task, self.model, self.accelerator, budget)
        self._said: set[str] = set()  # places of which it was said that texts were cut

    def predict(self, texts: str | Sequence[str]) -> list[dict[str, Any]]:
        """One JSON-ready answer per text, in order.

        Raises:
            DataError: a text is empty, or longer than the model reads where it cannot be read in windows.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        return list(self.answers(self.rows(texts)))

    def rows(self, texts: Sequence[str]) -> list[Row]:
        """Make rows of raw texts."""
        return self.task.problem.rows(texts, self.task.facts)

    def answers(self, rows: Iterable[Row], *, place: str = "texts") -> Iterator[dict[str, Any]]:
        """Answers to checked rows, a batch at a time; how many of the rows were cut is said after the last."""
        from lmkit.data.encode import say_cut

        remaining, count, cut = iter(rows), 0, 0
        while batch := list(itertools.islice(remaining, BATCH_ROWS)):
            found, cut_here = self._answer(batch)
            count, cut = count + len(batch), cut + cut_here
            yield from found
        if cut and place not in self._said:  # once, however many calls there are
            say_cut(cut, count, self.recipe.data, place=place)
            self._said.add(place)

    def _answer(self, rows: list[Row]) -> tuple[list[dict[str, Any]], int]:
        """The answers, and how many of the rows were cut."""
        from lmkit.evaluation.forward import refuse_nan

        for row in rows:
            if not str(row.get("text", row.get("source", "x"))).strip() or row.get("tokens") == []:
                raise DataError("empty text", place=f"text {row['id'] + 1}", remedy="leave it out")
        responder = self.task.problem.responder(self.task)
        if responder is not None:
            answers = responder.respond(self.model, rows)
            for answer in answers:
                refuse_nan(answer, place=f"text {answer['id'] + 1}")
            return answers, 0
        try:
            columns = self.task.encode(rows)
        except TooLong as error:
            at, length = error.rows[0]
            raise _for_predict(
                TooLong([(at, length)], error.max_length, place=f"text {rows[at]['id'] + 1}")
            ) from None
        pieces = [
            {name: values[i] for name, values in columns.items()} | {"piece": i}
            for i in range(len(columns["row"]))
        ]
        shown = [
            self.task.problem.show(record, self.task.facts)
            for record in self.forward.records(rows, pieces)
        ]
        return shown, sum(columns.get("cut", ()))

    def file(self, path: str) -> Iterator[dict[str, Any]]:
        """Answers to the rows of a data file, or to its texts where it has no column of the task's.

        A text file never has: one that ends in .txt, or in nothing that lmkit knows, as ``test.en`` of two parallel files.
        """
        from lmkit.data.formats import find_format, may_be_text

        fields = [
            field
            for field in self.task.problem.fields(self.recipe, self.task.facts)
            if not field.gold
        ]
        roles = [field.name for field in fields]
        columns = {
            role: column for role, column in self.recipe.data.columns.items() if role in roles
        }
        raw = [Field("text", "text", aliases=("sentence", "content", "document"))]
        text = {role: column for role, column in self.recipe.data.columns.items() if role == "text"}
        source: str | dict[str, str] = path
        attempts = [(fields, columns), (fields, {}), (raw, text), (raw, {})]
        file_format = find_format(Path(path))
        if file_format is None and Path(path).expanduser().is_file():
            source, attempts = {"text": path}, [(raw, {})]
        elif file_format is not None and file_format.is_text:
            attempts = [(raw, {})]
        first: DataError | None = None
        for wanted, named in attempts:
            try:
                rows = self._load(source, wanted, named)
            except DataError as error:
                first = first or error
                if not error.problem.startswith("no column for"):
                    break
            else:
                if (
                    wanted is raw
                    and may_be_text(Path(path))
                    and self.recipe.data.document == "line"
                ):
                    _say_blank_lines(rows)
                checked = self.rows([row["text"] for row in rows]) if wanted is raw else rows
                yield from self.answers(checked, place=path)
                return
        assert first is not None
        raise _for_predict(first)

    def _load(
        self, source: str | dict[str, str], fields: list[Field], columns: dict[str, str]
    ) -> Rows:
        from lmkit.data.check.columns import Roles
        from lmkit.data.readers import ReadOptions
        from lmkit.data.reading import load_rows
        from lmkit.data.sources import Source
        from lmkit.data.splits import cache_folder

        named = Source(source, "--file", "test", [Path.cwd()])
        options = ReadOptions(document=self.recipe.data.document)
        return load_rows(named, Roles(fields, columns=columns), options, cache_folder())


def _say_blank_lines(rows: Rows) -> None:
    """Blank lines are no rows: say so before somebody lays the answers beside the lines of another file."""
    path, _, line = rows.place(len(rows) - 1).rpartition(":")
    if blank := int(line) - len(rows):
        console.warn(f"{path}: blank lines get no answer ({blank} here)")


def _for_predict(error: DataError) -> DataError:
    """The same mistake with what can be done about it here: a line a row, so none is left out, and keys go through --set."""
    remedy = re.sub(r"[;,]? or leave [^;]*data\.on_bad_row=skip", "", error.remedy or "")
    return DataError(
        error.problem,
        place=error.place,
        remedy=re.sub(r"(data\.\w+=)", r"--set \1", remedy) or None,
    )


def text_lines(stream: Iterable[str]) -> list[str]:
    """Lines of stdin as texts; an empty line is an empty text, and an error later."""
    lines = [line.rstrip("\r\n") for line in stream]
    if not lines:
        raise DataError(
            "no line came", place="stdin", remedy="give texts, --file FILE, or lines on stdin"
        )
    return lines
