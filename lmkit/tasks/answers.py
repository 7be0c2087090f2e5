"""Kinds of answers: what is predicted of a row, and what follows for tables, suspicions, slices and the report.

A *record* is a line of predictions.jsonl. Whoever reads records asks the answer about them, and never its kind.
"""

from __future__ import annotations

import difflib
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lmkit.console import readable
from lmkit.records import Record, Stored

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lmkit.metrics.entities import ErrorCounts, Match, Span

LETTERS = 1000  # of a text that are shown as an excerpt
SHOWN = 80  # characters of the answer that all rows have
FEW = 20  # rows, of which fewer may get one answer by chance
AROUND = 12  # words that stay on both sides of a wrong one


@dataclass(frozen=True)
class Part:
    """A piece of a line, with what it stands for; ``note`` is said beside it."""

    text: str
    mark: Literal["", "gold", "predicted", "inserted", "deleted", "entity", "wrong entity"] = ""
    note: str = ""


LEFT_OUT = Part("…")


@dataclass(frozen=True)
class Line:
    """Parts in a row, with ``joint`` between them."""

    parts: Sequence[Part]
    name: str = ""
    joint: str = " "


@dataclass(frozen=True)
class Display:
    """A record as the report shows it.

    Args:
        lines: what was read, what should have come out, what did.
        about: short lines beside them: the answer, where it is short.
        kinds: kinds of mistakes in it, by which rows can be filtered.
        pairs: gold and predicted labels that differ, to which the confusion table leads.
    """

    lines: Sequence[Line]
    about: Sequence[Line] = ()
    kinds: Sequence[str] = ()
    pairs: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Certainty:
    """How sure a model was of its decisions, and which were right; both ``(decisions,)``.

    Args:
        unit: what a decision is.
        scores: further measures of them, as analysis.json names them.
    """

    unit: str
    confidence: NDArray[np.float64]
    correct: NDArray[np.bool_]
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Doubt(Stored):
    """Gold that the model confidently disagrees with; ``word`` numbers it where words are tagged."""

    id: int
    word: int | None = None
    text: str | None = None
    gold: str
    prediction: str
    score: float
    margin: float | None = None


@dataclass(frozen=True)
class Answer:
    """What every kind of answer can be asked; one that knows nothing of a question says so.

    Args:
        inputs: the fields of a record that hold what the model read, in order.
    """

    kind: ClassVar[str]  # as analysis.json names it
    heading: ClassVar[str] = "Errors"  # of the report's table of rows
    order: ClassVar[str] = "highest loss"  # which rows come first there
    loss_unit: ClassVar[str] = ""  # what a row is, where the distribution of losses tells something
    doubt_unit: ClassVar[str] = "rows"  # what gold is that may be wrong
    has_confusion: ClassVar[bool] = False  # labels are exclusive: one is taken for another
    has_temperature: ClassVar[bool] = False  # probabilities that a temperature can be fitted to

    inputs: tuple[str, ...] = ("source", "text", "text_pair")

    def text(self, record: Record) -> str:
        """Return what the model read as one text; the second of a pair after a line break."""
        return "\n".join(str(record[name]) for name in self.inputs if record.get(name) is not None)

    def words(self, record: Record) -> list[str] | None:
        """Return the words of the input where it is given in words."""
        return None

    def is_wrong(self, record: Record) -> bool | None:
        """Tell if the prediction differs from the gold; None where that cannot be said."""
        return bool(record["gold"] != record["prediction"])

    def badness(self, record: Record) -> float:
        """Return by what the worst rows are found: the loss per label that counts; nan without any."""
        return record.loss

    def labels(self, record: Record) -> list[str]:
        """Return the gold labels of a row, by which it can be sliced."""
        return [str(record["gold"])]

    def label_names(self, value: Any) -> Set[str]:
        """Return the labels in a gold or a prediction; none where it has no labels."""
        return frozenset()

    def decisions(self, value: Any) -> Iterable[Any]:
        """Return the single decisions in a gold or a prediction, as JSON values."""
        return (value,)

    def occurrences(self, value: Any) -> Iterable[str]:
        """Return the labels of a gold as they are counted in the data; none where it has no labels."""
        return ()

    def only_decision(self, records: Sequence[Record]) -> str | None:
        """Return the one decision that the model takes everywhere though the gold differs, as JSON.

        None where decisions differ, or no gold does, and of few rows.
        """
        if len(records) < FEW:
            return None
        first = next(self._all(records, "prediction"), None)
        gold = next(self._all(records, "gold"), None)
        if first is None or all(value == gold for value in self._all(records, "gold")):
            return None
        if any(value != first for value in self._all(records, "prediction")):
            return None
        shown = json.dumps(first, ensure_ascii=False)
        return shown if len(shown) <= SHOWN else f"{shown[:SHOWN]} ..."

    def _all(self, records: Iterable[Record], side: str) -> Iterator[Any]:
        """Return all decisions of one side, read again at each call: memory holds one record at a time."""
        return itertools.chain.from_iterable(self.decisions(record[side]) for record in records)

    def pairs(self, record: Record) -> Iterable[tuple[str, str]]:
        """Return gold and predicted labels that belong together, right ones too: counts of the confusion table."""
        return ()

    def table_labels(self, occurring: Set[str], labels: Sequence[str]) -> list[str]:
        """Return the labels of the confusion table in order: those known to the task first."""
        names = [name for name in labels if name in occurring]
        return names + sorted(occurring - set(names))

    def errors(self, records: Iterable[Record]) -> ErrorCounts | None:
        """Count kinds of mistakes; None where a mistake is only that."""
        return None

    def certainty(self, records: Sequence[Record]) -> Certainty | None:
        """Return confidences beside what was right; None where nothing says how sure the model is."""
        return None

    def doubtful(self, records: Sequence[Record]) -> list[Doubt]:
        """Return gold that the model disagrees with, being surer than it usually is; the surest first.

        The model may also be wrong: these are the rows to look at first.
        """
        return []

    def points(self, records: Iterable[Record]) -> list[tuple[float, float]]:
        """Return gold and predicted numbers; none where answers are no numbers."""
        return []

    def display(self, record: Record) -> Display:
        """Return a record as the report shows it."""
        return Display([Line([Part(excerpt(self.text(record)))])])


@dataclass(frozen=True)
class Label(Answer):
    """One of several labels."""

    kind = "label"
    has_confusion = True
    has_temperature = True

    def label_names(self, value: Any) -> Set[str]:
        return {value}

    def occurrences(self, value: Any) -> Iterable[str]:
        return (value,)

    def pairs(self, record: Record) -> Iterable[tuple[str, str]]:
        return [(record["gold"], record["prediction"])]

    def table_labels(self, occurring: Set[str], labels: Sequence[str]) -> list[str]:
        """Keep labels that never occur."""
        return [*labels, *sorted(occurring - set(labels))]

    def certainty(self, records: Sequence[Record]) -> Certainty | None:
        if not records or "probabilities" not in records[0]:
            return None
        import numpy as np

        table, gold = probabilities_of(records)
        truth = np.zeros_like(table)
        truth[np.arange(len(gold)), gold] = 1
        brier = float(((table - truth) ** 2).sum(1).mean())
        return Certainty("examples", table.max(1), table.argmax(1) == gold, {"brier": brier})

    def doubtful(self, records: Sequence[Record]) -> list[Doubt]:
        """Find them by confident learning (Northcutt et al. 2021).

        A label's threshold is the mean probability that the model gives it where it is the gold; a row is doubtful where
        another label than the gold exceeds its own threshold, ranked by that label's probability less that of the gold.
        """
        if not records or "probabilities" not in records[0]:
            return []
        import numpy as np

        table, gold = probabilities_of(records)
        threshold = np.full(table.shape[1], np.inf)
        for label in np.unique(gold):
            threshold[label] = table[gold == label, label].mean()
        above = np.where(table >= threshold, table, -np.inf)
        likely, rows = above.argmax(1), np.arange(len(gold))
        is_doubtful = (likely != gold) & np.isfinite(above.max(1)) & (table.argmax(1) == likely)
        doubtful = np.flatnonzero(is_doubtful)
        margin = table[rows, likely] - table[rows, gold]
        return [
            Doubt(
                id=records[row]["id"],
                gold=records[row]["gold"],
                prediction=records[row]["prediction"],
                score=float(table[row, likely[row]]),
                margin=float(margin[row]),
            )
            for row in doubtful[np.argsort(-margin[doubtful], kind="stable")].tolist()
        ]

    def display(self, record: Record) -> Display:
        gold, prediction = record["gold"], record["prediction"]
        about = [
            Part(gold, "gold"),
            Part(" taken for "),
            Part(prediction, "predicted"),
            Part(f" ({readable(record.get('score'), 2)})"),
        ]
        lines = super().display(record).lines
        return Display(lines, [Line(about, joint="")], pairs=[(gold, prediction)])


@dataclass(frozen=True)
class LabelSet(Answer):
    """A set of labels, none or several of which apply."""

    kind = "labels"

    def is_wrong(self, record: Record) -> bool | None:
        return set(record["gold"]) != set(record["prediction"])

    def labels(self, record: Record) -> list[str]:
        return sorted(set(record["gold"]))

    def label_names(self, value: Any) -> Set[str]:
        return set(value)

    def occurrences(self, value: Any) -> Iterable[str]:
        return value  # type: ignore[no-any-return]

    def decisions(self, value: Any) -> Iterable[Any]:
        return (sorted(value),)

    def certainty(self, records: Sequence[Record]) -> Certainty | None:
        """Take one label of one row for a decision, and as its confidence that in yes or no."""
        if not records or not isinstance(records[0].get("probabilities"), dict):
            return None
        import numpy as np

        names = list(records[0]["probabilities"])
        table = np.array([[record["probabilities"][name] for name in names] for record in records])
        truth = np.array([[name in record["gold"] for name in names] for record in records])
        decided = np.array([[name in record["prediction"] for name in names] for record in records])
        confidence = np.where(decided, table, 1 - table).ravel()
        brier = float(((table - truth) ** 2).sum(1).mean())
        return Certainty("decisions", confidence, (decided == truth).ravel(), {"brier": brier})

    def display(self, record: Record) -> Display:
        gold, predicted = set(record["gold"]), set(record["prediction"])
        about = [Part(f"+ {name}", "predicted") for name in sorted(predicted - gold)]
        about += [Part(f"− {name}", "gold") for name in sorted(gold - predicted)]
        about += [Part(name) for name in sorted(gold & predicted)]
        return Display(super().display(record).lines, [Line([part]) for part in about])


@dataclass(frozen=True)
class Number(Answer):
    """A number."""

    kind = "number"
    heading = "Predictions"
    order = "farthest from the gold"

    def is_wrong(self, record: Record) -> bool | None:
        return None

    def badness(self, record: Record) -> float:
        return float(abs(record["prediction"] - record["gold"]))

    def only_decision(self, records: Sequence[Record]) -> str | None:
        """Take numbers for one where they differ by less than a thousandth of what the gold does.

        The gold's highest and lowest twentieth are set aside, unless all but these are one number. A regressor that
        learned the mean alone still differs in the last digits.
        """
        if len(records) < FEW:
            return None
        import numpy as np

        predicted = np.fromiter(self._all(records, "prediction"), float)
        gold = np.fromiter(self._all(records, "gold"), float)
        if (gold == gold[0]).all():
            return None
        low, high = np.quantile(gold, [0.05, 0.95])
        spread = (high - low) or np.ptp(gold)
        is_one = np.isfinite(predicted).all() and np.ptp(predicted) <= spread / 1000
        return f"{np.median(predicted):.4g}" if is_one else None

    def points(self, records: Iterable[Record]) -> list[tuple[float, float]]:
        return [(float(record["gold"]), float(record["prediction"])) for record in records]

    def display(self, record: Record) -> Display:
        gold, predicted = readable(record["gold"]), readable(record["prediction"])
        about = Line([Part(f"gold {gold}, predicted {predicted}")])
        return Display(super().display(record).lines, [about])


@dataclass(frozen=True)
class Tags(Answer):
    """A tag for every word."""

    kind = "tags"
    doubt_unit = "words"
    has_confusion = True

    inputs: tuple[str, ...] = ("tokens",)

    def text(self, record: Record) -> str:
        return " ".join(self.words(record))

    def words(self, record: Record) -> list[str]:
        words: list[str] = record[self.inputs[0]]
        return words

    def labels(self, record: Record) -> list[str]:
        return sorted(set(record["gold"]))

    def label_names(self, value: Any) -> Set[str]:
        return set(value)

    def decisions(self, value: Any) -> Iterable[Any]:
        return value  # type: ignore[no-any-return]

    def occurrences(self, value: Any) -> Iterable[str]:
        return value  # type: ignore[no-any-return]

    def pairs(self, record: Record) -> Iterable[tuple[str, str]]:
        return zip(record["gold"], record["prediction"], strict=True)

    def certainty(self, records: Sequence[Record]) -> Certainty | None:
        """Compare the score of each word; a score of 0 says that the tokenizer dropped the word."""
        import numpy as np

        scored = [word for record in records for word in _scored_words(record) if word[0] > 0]
        confidence = np.array([score for score, _, _ in scored])
        correct = np.array([gold == tag for _, gold, tag in scored])
        if not scored:
            return None
        brier = float(((confidence - correct) ** 2).mean())
        return Certainty("words", confidence, correct, {"brier_top": brier})

    def doubtful(self, records: Sequence[Record]) -> list[Doubt]:
        """Compare a word's score, which is all that is known, with the mean score of its tag where that is right."""
        right: dict[str, list[float]] = {}
        for record in records:
            for score, gold, tag in _scored_words(record):
                if gold == tag:
                    right.setdefault(tag, []).append(score)
        threshold = {tag: sum(scores) / len(scores) for tag, scores in right.items()}
        doubts = [
            Doubt(
                id=record["id"],
                word=word,
                text=self.words(record)[word],
                gold=gold,
                prediction=tag,
                score=score,
            )
            for record in records
            for word, (score, gold, tag) in enumerate(_scored_words(record))
            if gold != tag and score >= threshold.get(tag, 2.0)
        ]
        return sorted(doubts, key=lambda doubt: -doubt.score)

    def display(self, record: Record) -> Display:
        pairs = list(self.pairs(record))
        wrong = [number for number, (gold, tag) in enumerate(pairs) if gold != tag]
        near = {number + d for number in wrong for d in range(-AROUND, AROUND + 1)}
        parts: list[Part] = []
        for number, (word, (gold, tag)) in enumerate(zip(self.words(record), pairs, strict=True)):
            if number not in near:
                _leave_out(parts)
            elif gold == tag:
                parts.append(Part(word))
            else:
                parts.append(Part(word, "deleted", f"{gold} → {tag}"))
        return Display([Line(_join_plain(parts))], pairs=[pairs[number] for number in wrong])


@dataclass(frozen=True)
class Entities(Tags):
    """IOB2 tags of words, which mark entities."""

    kind = "entities"

    def labels(self, record: Record) -> list[str]:
        """Return the types of the entities."""
        return sorted(self.label_names(record["gold"])) or ["(no entity)"]

    def label_names(self, value: Any) -> Set[str]:
        from lmkit.metrics.tagging import type_of

        return {type_of(tag) for tag in value if tag != "O"}

    def occurrences(self, value: Any) -> Iterable[str]:
        """Return the type of each entity, and an ``O`` for each word outside of them."""
        from lmkit.metrics.tagging import type_of

        return [tag if tag == "O" else type_of(tag) for tag in value if tag[0] != "I"]

    def pairs(self, record: Record) -> Iterable[tuple[str, str]]:
        """Return the types of entities that are matched; ``(none)`` stands for missed and spurious ones."""
        return [match.types for match in _matches(record)]

    def table_labels(self, occurring: Set[str], labels: Sequence[str]) -> list[str]:
        from lmkit.metrics.entities import NOTHING

        return [*sorted(occurring - {NOTHING}), NOTHING]

    def errors(self, records: Iterable[Record]) -> ErrorCounts | None:
        from lmkit.metrics.entities import count_matches

        return count_matches(match for record in records for match in _matches(record))

    def display(self, record: Record) -> Display:
        matches = [match for match in _matches(record) if match.kind != "correct"]
        wrong = {span for match in matches for span in (match.gold, match.predicted) if span}
        return Display(
            [
                Line(self._marked(record, "gold", wrong), "gold"),
                Line(self._marked(record, "prediction", wrong), "predicted"),
            ],
            kinds=sorted({match.kind for match in matches}),
            pairs=[match.types for match in matches],
        )

    def _marked(self, record: Record, side: str, wrong: Set[Span]) -> list[Part]:
        """Mark the entities of one side in the sentence; far from any wrong one, words are left out."""
        from lmkit.metrics.tagging import chunks

        words = self.words(record)
        near = {word for start, end, _ in wrong for word in range(start - AROUND, end + AROUND)}
        begins = {start: (end, name) for start, end, name in chunks(record[side])}
        parts: list[Part] = []
        position = 0
        while position < len(words):
            end, name = begins.get(position, (position + 1, ""))
            if position not in near and end - 1 not in near:
                _leave_out(parts)
            else:
                text = excerpt(" ".join(words[position:end]), 200)
                is_wrong = (position, end, name) in wrong
                parts.append(Part(text, _entity_mark(name, is_wrong=is_wrong), name))
            position = end
        return _join_plain(parts)


@dataclass(frozen=True)
class Text(Answer):
    """A text that the model writes."""

    kind = "translation"
    heading = "Sentences"
    loss_unit = "sentence"

    def display(self, record: Record) -> Display:
        reference, output = differences(excerpt(record["gold"]), excerpt(record["prediction"]))
        source = Line([Part(excerpt(record[self.inputs[0]]))], "source")
        return Display([source, reference, output])


@dataclass(frozen=True)
class Tokens(Answer):
    """The tokens of the text itself: a language model's record has sums of losses and no gold."""

    kind = "language"
    heading = "Documents"
    loss_unit = "document"

    def is_wrong(self, record: Record) -> bool | None:
        return None

    def only_decision(self, records: Sequence[Record]) -> str | None:
        return None

    def display(self, record: Record) -> Display:
        return Display([Line([Part(excerpt(self.text(record), 400))])])


def excerpt(text: str, letters: int = LETTERS) -> str:
    return text if len(text) <= letters else text[: letters - 1] + "…"


def probabilities_of(
    records: Sequence[Record],
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Return probabilities ``(examples, labels)`` and the number of the gold label ``(examples,)``."""
    import numpy as np

    number = {name: i for i, name in enumerate(records[0]["probabilities"])}
    flat = (p for record in records for p in record["probabilities"].values())
    shape = len(records), len(number)
    table = np.fromiter(flat, np.float64, math.prod(shape)).reshape(shape)
    gold = np.fromiter((number[record["gold"]] for record in records), np.intp, len(records))
    return table, gold


def differences(reference: str, output: str) -> tuple[Line, Line]:
    """Return both texts with the words marked that only one of them has.

    >>> [part for part in differences("a b c", "a c d")[0].parts if part.mark]
    [Part(text='b', mark='inserted', note='')]
    """
    left, right = reference.split(), output.split()
    joint = " "
    if len(left) < 2 and len(right) < 2:  # a script without spaces
        left, right, joint = list(reference), list(output), ""
    expected: list[Part] = []
    written: list[Part] = []
    matcher = difflib.SequenceMatcher(None, left, right, autojunk=False)
    for what, a, b, c, d in matcher.get_opcodes():
        if b > a:
            expected.append(Part(joint.join(left[a:b]), "" if what == "equal" else "inserted"))
        if d > c:
            written.append(Part(joint.join(right[c:d]), "" if what == "equal" else "deleted"))
    return Line(expected, "reference", joint), Line(written, "output", joint)


def _scored_words(record: Record) -> Iterator[tuple[float, str, str]]:
    """Return score, gold and prediction of every word."""
    return zip(record["score"], record["gold"], record["prediction"], strict=True)


def _matches(record: Record) -> list[Match]:
    from lmkit.metrics.entities import match_tags

    return match_tags(record["gold"], record["prediction"])


def _entity_mark(name: str, *, is_wrong: bool) -> Literal["", "entity", "wrong entity"]:
    if not name:
        return ""
    return "wrong entity" if is_wrong else "entity"


def _leave_out(parts: list[Part]) -> None:
    """Add a mark for words that are left out, once for all that follow one another."""
    if not parts or parts[-1] is not LEFT_OUT:
        parts.append(LEFT_OUT)


def _join_plain(parts: Iterable[Part]) -> list[Part]:
    """Join words that follow one another without a mark: a page of long texts has a tenth of the parts."""
    joined: list[Part] = []
    for is_plain, group in itertools.groupby(parts, key=lambda part: not part.mark):
        if is_plain:
            joined.append(Part(" ".join(part.text for part in group)))
        else:
            joined += group
    return joined
