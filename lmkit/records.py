"""What lmkit keeps of evaluations and comparisons, each with its JSON form: what is on the disk, and what ``--json`` prints."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any


def finite(value: float | None) -> float | None:
    """Return None for what JSON cannot say: inf and nan."""
    return value if value is not None and math.isfinite(value) else None


def jsonable(value: Any) -> Any:
    """Return the JSON form of a value at any depth; null stands for inf and nan."""
    if isinstance(value, Stored):
        return value.to_json()
    if isinstance(value, Mapping):
        return {key: jsonable(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(entry) for entry in value]
    return finite(value) if isinstance(value, float) else value


class Stored:
    """A dataclass with a JSON form: its fields by name, those left out that have their default."""

    def to_json(self) -> dict[str, Any]:
        stored = {}
        for one in fields(self):  # type: ignore[arg-type]
            value = getattr(self, one.name)
            if value != one.default and not (one.default_factory is dict and value == {}):
                stored[one.name] = jsonable(value)
        return stored


@dataclass(frozen=True)
class Interval(Stored):
    """A metric and its confidence interval; the bounds are None where none can be given."""

    value: float | None
    low: float | None = None
    high: float | None = None

    def to_json(self) -> dict[str, float | None]:
        return {
            "value": finite(self.value),
            "low": finite(self.low),
            "high": finite(self.high),
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, float | None]) -> Interval:
        return cls(stored["value"], stored["low"], stored["high"])


@dataclass(frozen=True, eq=False)
class Record(Stored, Mapping[str, Any]):
    """A line of predictions.jsonl: a row's id, what was read, the answer, and whatever else its task says of it.

    Records of every task have ``id``, ``nll`` (nats, summed) and ``items`` (labels that count). A language model's have no
    ``gold`` and no ``prediction``.
    """

    fields: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.fields)

    def __len__(self) -> int:
        return len(self.fields)

    @property
    def loss(self) -> float:
        """Nats per label that counts; nan without any."""
        return self["nll"] / self["items"] if self.get("items") else math.nan

    def with_answer(self, prediction: Any) -> Record:
        """Return the record of another system that answers so."""
        return Record({**self.fields, "prediction": prediction})

    def to_json(self) -> dict[str, Any]:
        return dict(self.fields)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Record:
        return cls(stored)


@dataclass(frozen=True)
class Verdict(Stored):
    """One system beside another on the same examples.

    Args:
        difference: what b has more than a; ``low`` and ``high`` are the bounds of its interval.
        verdict: ``a is better``, ``b is better`` or ``not distinguishable``.
        mcnemar_p_value: of the exact test, where examples are simply right or wrong.
        p_holm: the p-value that allows for other comparisons, where there were some.
    """

    metric: str
    a: float | None
    b: float | None
    difference: float | None
    low: float | None
    high: float | None
    p_value: float
    verdict: str
    mcnemar_p_value: float | None = None
    p_holm: float | None = None

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Verdict:
        return cls(**stored)


@dataclass(frozen=True)
class BaselineScore(Stored):
    """The metrics of a baseline, and how much more the model has of the headline metric, where that was tested."""

    metrics: Mapping[str, Interval]
    metric: str | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    verdict: str | None = None

    def to_json(self) -> dict[str, Any]:
        stored: dict[str, Any] = {"metrics": jsonable(self.metrics)}
        if self.metric is not None:
            names = ("metric", "difference", "low", "high", "p_value", "verdict")
            stored |= {name: getattr(self, name) for name in names}
        return stored

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> BaselineScore:
        return cls(**{**stored, "metrics": _all_from_json(stored["metrics"])})


@dataclass(frozen=True, kw_only=True)
class Metrics(Stored):
    """The content of metrics.json.

    Args:
        examples: rows. loss: mean over the labels that count, in nats.
        confidence: the level of the intervals of ``metrics``.
        by_label: precision, recall, F1 and support of each label.
        signature: how the numbers were made. seconds: of predicting.
        cut_rows: rows of which a part was left out. rejected_rows: rows that were.
        modules: module and key behind each metric that ``eval.metrics`` brought along.
        baselines: what simple systems reach on the same rows.
    """

    task: str
    split: str
    examples: int
    loss: float | None
    confidence: float
    metrics: Mapping[str, Interval]
    by_label: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    signature: str
    seconds: float
    cut_rows: int = 0
    rejected_rows: int = 0
    modules: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    baselines: Mapping[str, BaselineScore] | None = None

    def interval(self, name: str) -> Interval:
        """Return a metric, or the loss, which has no interval of its own everywhere."""
        if name == "loss" and name not in self.metrics:
            return Interval(self.loss)
        return self.metrics[name]

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Metrics:
        names = {one.name for one in fields(cls)}
        values = {name: value for name, value in stored.items() if name in names}
        values["metrics"] = _all_from_json(stored["metrics"])
        if "baselines" in stored:
            scores = stored["baselines"]
            values["baselines"] = {
                name: BaselineScore.from_json(score) for name, score in scores.items()
            }
        return cls(**values)


def _all_from_json(stored: Mapping[str, Mapping[str, float | None]]) -> dict[str, Interval]:
    return {name: Interval.from_json(interval) for name, interval in stored.items()}
