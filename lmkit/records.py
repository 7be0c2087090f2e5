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
        for item in fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            is_default = value == item.default or (item.default_factory is dict and not value)
            if not is_default:
                stored[item.name] = jsonable(value)
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
        values = _known(cls, stored)
        values["metrics"] = _all_from_json(stored["metrics"])
        if "baselines" in stored:
            scores = stored["baselines"]
            values["baselines"] = {
                name: BaselineScore.from_json(score) for name, score in scores.items()
            }
        return cls(**values)


def _all_from_json(stored: Mapping[str, Mapping[str, float | None]]) -> dict[str, Interval]:
    return {name: Interval.from_json(interval) for name, interval in stored.items()}


@dataclass(frozen=True)
class DataFile(Stored):
    """A file that rows were read from."""

    split: str
    path: str
    rows: int
    sha256: str
    bytes: int

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> DataFile:
        return cls(**stored)


@dataclass(frozen=True, kw_only=True)
class Ending(Stored):
    """What manifest.json says of a run that ended.

    Args:
        averaged_steps: checkpoints whose mean the model is.
        compiled, attention, kernels: what was chosen, and why. decisions: all that was tried and kept.
        seconds: of the steps; ``seconds_in_all`` from the start of the run to its end.
    """

    finished: str
    steps: int
    best_step: int | None
    averaged_steps: list[int]
    tokens_seen: int
    micro_batch_tokens: int | None
    compiled: Mapping[str, Any]
    attention: Mapping[str, Any]
    kernels: Mapping[str, Any]
    decisions: list[Mapping[str, Any]] = field(default_factory=list)
    skipped_steps: int
    seconds: float
    seconds_in_all: float
    peak_memory_bytes: int


@dataclass(frozen=True, kw_only=True)
class Manifest(Stored):
    """The content of manifest.json: what a run was made of, and with what.

    Args:
        examples, cut_rows: by split. parameters: ``trained`` and ``total``.
        model: where the weights come from. new_modules: what no weights were loaded for.
        parent: the run that the weights come from.
        ending: what is known after the last step; None before.
    """

    command: list[str]
    started: str
    task: str
    seed: int
    versions: Mapping[str, str]
    git_commit: str | None
    hardware: Mapping[str, Any]
    data: list[DataFile]
    examples: Mapping[str, int]
    rejected_rows: int
    cut_rows: Mapping[str, int]
    tokenizer: Mapping[str, Any]
    model: str
    new_modules: list[str]
    parent: str | None
    parameters: Mapping[str, int]
    tokens_per_epoch: int
    steps_per_epoch: int
    planned_steps: int | None
    packing: bool
    ending: Ending | None = None

    def to_json(self) -> dict[str, Any]:
        stored = super().to_json()
        ending = stored.pop("ending", {})
        return {**stored, **ending}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Manifest:
        values = _known(cls, stored)
        values["data"] = [DataFile.from_json(entry) for entry in stored["data"]]
        if "finished" in stored:
            values["ending"] = Ending(**_known(Ending, stored))
        return cls(**values)


def _known(cls: type[Stored], stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries that are fields; a later version may have written more."""
    names = {item.name for item in fields(cls)}  # type: ignore[arg-type]
    return {name: value for name, value in stored.items() if name in names}
