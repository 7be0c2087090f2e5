"""``lmkit predict``: texts from the command line, a file or stdin -> JSON lines, in order."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from lmkit import console
from lmkit.batch import Row
from lmkit.errors import DataError, LmkitError
from lmkit.subject import facts_of, find_subject, tokenizer_of
from lmkit.tasks.base import Task, TooLong
from lmkit.tasks.fields import Field
from lmkit.tasks.registry import problem

if TYPE_CHECKING:
    from lmkit.data.rows import Rows

BATCH_ROWS = 256
TEXT = [Field("text", "text", aliases=("sentence", "content", "document"))]


def predict(
    run: str,
    settings: Sequence[str] = (),
    *,
    texts: Sequence[str] = (),
    file: str | None = None,
    stdin: TextIO,
) -> Iterator[dict[str, Any]]:
    """Answer texts, the rows of a file, or the lines of stdin.

    Args:
        settings: recipe keys as KEY=VALUE.
    """
    if texts and file:
        raise LmkitError("texts and --file were both given", remedy="give one of the two")
    if not texts and not file and stdin.isatty():
        raise LmkitError(
            "nothing to predict on",
            remedy='give texts (lmkit predict RUN "a text"), --file FILE, or lines on stdin',
        )
    predictor = Predictor(run, settings)
    if file:
        return predictor.file(file)
    return predictor.answers(predictor.rows(texts or text_lines(stdin)))


class Predictor:
    """A trained model that answers: ``lmkit.load(run).predict([...])``."""

    def __init__(self, source: str | Path, overrides: Sequence[str] = ()):
        subject = find_subject(str(source), overrides)
        from lmkit.flow.evaluation import load_forward
        from lmkit.train.device import left_as_it_is

        self.recipe, model = subject.recipe, subject.source
        facts, tokenizer = facts_of(model, self.recipe), tokenizer_of(self.recipe, model)
        self.task: Task = problem(self.recipe.task).task(self.recipe, facts, tokenizer)
        with left_as_it_is():
            self.forward = load_forward(subject, self.task)
        self.model = self.forward.model
        self._places_warned_of: set[str] = set()  # because texts were cut there

    def predict(self, texts: str | Sequence[str]) -> list[dict[str, Any]]:
        """Return one JSON-ready answer per text, in order.

        Raises:
            DataError: a text is empty, or longer than the model reads where it cannot be read in windows.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        return list(self.answers(self.rows(texts)))

    def rows(self, texts: Sequence[str]) -> list[Row]:
        """Make rows of raw texts."""
        return self.task.problem.rows(texts, self.task.facts)

    def answers(self, rows: Iterable[Row], *, place: str = "texts") -> Iterator[dict[str, Any]]:
        """Answer checked rows, a batch at a time, and say after the last how many of them were cut."""
        from lmkit.data.encode import say_cut

        remaining, count, cut = iter(rows), 0, 0
        while batch := list(itertools.islice(remaining, BATCH_ROWS)):
            answers, cut_here = self._answer(batch)
            count, cut = count + len(batch), cut + cut_here
            yield from answers
        if cut and place not in self._places_warned_of:  # once, however many calls there are
            say_cut(cut, count, self.recipe.data, place=place)
            self._places_warned_of.add(place)

    def _answer(self, rows: list[Row]) -> tuple[list[dict[str, Any]], int]:
        """Return the answers, and how many of the rows were cut."""
        from lmkit.evaluation.forward import refuse_nan

        fields = self.task.problem.fields(self.recipe, self.task.facts)
        for row in rows:
            if any(_is_empty(row, field) for field in fields):
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
        """Answer the rows of a data file, or its texts where it has no column of the task's."""
        rows, is_text = self._read(path)
        if is_text:
            rows = self.rows([row["text"] for row in rows])
        yield from self.answers(rows, place=path)

    def _read(self, path: str) -> tuple[Iterable[Row], bool]:
        """Read the rows of a file; true where they are texts alone.

        A text file never has a column of the task's: one that ends in .txt, or in nothing that lmkit knows, as
        ``test.en`` of two parallel files.
        """
        from lmkit.data.formats import find_format, may_be_text

        named = self.recipe.data.columns
        every_field = self.task.problem.fields(self.recipe, self.task.facts)
        fields = [field for field in every_field if not field.gold]
        columns = {field.name: named[field.name] for field in fields if field.name in named}
        text = {"text": named["text"]} if "text" in named else {}
        attempts = [(fields, columns), (fields, {}), (TEXT, text), (TEXT, {})]
        source: str | dict[str, str] = path
        file_format = find_format(Path(path))
        if file_format is None and Path(path).expanduser().is_file():
            source, attempts = {"text": path}, [(TEXT, {})]
        elif file_format is not None and file_format.is_text:
            attempts = [(TEXT, {})]
        first: DataError | None = None
        for tried_fields, tried_columns in attempts:
            try:
                rows = self._load(source, tried_fields, tried_columns)
            except DataError as error:
                first = first or error
                if not error.problem.startswith("no column for"):
                    break
                continue
            is_text = tried_fields is TEXT
            if is_text and may_be_text(Path(path)) and self.recipe.data.document == "line":
                _say_blank_lines(rows)
            return rows, is_text
        assert first is not None
        raise _for_predict(first)

    def _load(
        self, source: str | dict[str, str], fields: Sequence[Field], columns: dict[str, str]
    ) -> Rows:
        from lmkit.data.check.columns import Roles
        from lmkit.data.readers import ReadOptions
        from lmkit.data.reading import load_rows
        from lmkit.data.sources import Source
        from lmkit.data.splits import cache_folder

        place = Source(source, "--file", "test")
        options = ReadOptions(document=self.recipe.data.document)
        return load_rows(place, Roles(fields, columns=columns), options, cache_folder())


def _say_blank_lines(rows: Rows) -> None:
    """Say that blank lines are no rows, before somebody lays the answers beside the lines of another file."""
    path, _, line = rows.place(len(rows) - 1).rpartition(":")
    if blank := int(line) - len(rows):
        console.warn(f"{path}: blank lines get no answer ({blank} here)")


def _for_predict(error: DataError) -> DataError:
    """Rewrite the remedy for ``lmkit predict``: rows cannot be skipped, and keys are set with --set."""
    remedy = re.sub(r"[;,]? or leave [^;]*data\.on_bad_row=skip", "", error.remedy or "")
    return DataError(
        error.problem,
        place=error.place,
        remedy=re.sub(r"(data\.\w+=)", r"--set \1", remedy) or None,
    )


def text_lines(stream: Iterable[str]) -> list[str]:
    """Return the lines of stdin as texts; an empty line is an empty text, and an error later."""
    lines = [line.rstrip("\r\n") for line in stream]
    if not lines:
        raise DataError(
            "no line came", place="stdin", remedy="give texts, --file FILE, or lines on stdin"
        )
    return lines


def _is_empty(row: Row, field: Field) -> bool:
    """Tell if a row has nothing to read where a model reads text or words."""
    if field.kind == "text" and not field.gold:
        return not str(row.get(field.name, "x")).strip()
    return field.kind == "words" and row.get(field.name) == []
