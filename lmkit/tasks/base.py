"""What a problem is, and the task that solves it: a folder each. Nothing here imports torch when it is imported.

Words used throughout: a *row* is one example of the data. A *piece* is what the model reads as one
text: a whole row, or one window or block of it. An *example* is what ``train.batch_size`` counts:
all windows of a row, or (pretraining) the pieces that together fill ``data.max_length`` tokens.
A *record* is a line of predictions.jsonl. *Facts* are what the training rows taught, as JSON.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lmkit.batch import IGNORE, Batch, Columns, Piece, Row
from lmkit.errors import DataError, RecipeError
from lmkit.records import Record
from lmkit.tasks.answers import Answer
from lmkit.tasks.fields import Field, Form

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from lmkit.metrics.statistics import Statistics
    from lmkit.recipe.schema import Recipe

Facts = Mapping[str, Any]
Peek = Callable[[Field], list[Any] | None]


class TooLong(DataError):
    """Rows that are longer than the model reads; ``rows`` are (position in the batch, tokens)."""

    def __init__(
        self, rows: Sequence[tuple[int, int]], max_length: int, *, place: str | None = None
    ):
        self.rows, self.max_length = list(rows), max_length
        longest = max(length for _, length in rows)
        remedy = f"raise data.max_length (to {longest}, if the model reads that much), cut with data.long_text=head, or leave such rows out with data.on_bad_row=skip"
        super().__init__(
            f"{rows[0][1]} tokens, more than data.max_length = {max_length}",
            place=place,
            remedy=remedy,
        )


@dataclass(frozen=True)
class Metric:
    """A number that a problem is measured by.

    Args:
        name: as metrics.json has it.
        less_is_better: as of a loss.
        selects: ``train.select_best`` may name it; some are measured in an evaluation alone.
    """

    name: str
    less_is_better: bool = False
    selects: bool = True


@dataclass(frozen=True)
class Baseline:
    """A simple way to predict, learned from rows alone.

    Args:
        predict: learns from training rows, and returns the predictions for other rows; None where there is nothing
            to learn.
    """

    name: str
    predict: Callable[[Sequence[Row], Sequence[Row]], Sequence[Any] | None]


@dataclass(frozen=True)
class Card:
    """How a model is used, as its README says; DIR stands for the place of the model.

    Args:
        command: asks the model from a terminal.
        python: opens it in plain transformers and gets the same answer.
    """

    command: str
    python: str


class Problem(ABC):
    """All that can be said of one kind of problem without a model: no torch, no tokenizer.

    ``docs/new-task.md`` shows how to add one.
    """

    name: ClassVar[str]  # as ``task:`` of a recipe has it
    aliases: ClassVar[tuple[str, ...]] = ()  # other names that a recipe may have
    foreign_names: ClassVar[tuple[str, ...]] = ()  # in other tools, answered with its name here
    stage: ClassVar[Literal["pretrain", "finetune"]]
    section: ClassVar[str | None] = None  # its own part of the recipe
    section_type: ClassVar[Any] = None  # a Section, where recipe/schema.py has no such part
    keys: ClassVar[
        tuple[str, ...]
    ] = ()  # keys of lmkit's recipe that some tasks ignore and it reads
    decided_keys: ClassVar[tuple[str, ...]] = ()  # those of ``keys`` that are fixed after training
    eval_keys: ClassVar[frozenset[str]] = frozenset()  # keys of ``eval`` that only some tasks read
    auto_class: ClassVar[str]  # of transformers
    smoke_preset: ClassVar[str]  # the family that stands in where a smoke run has no model
    architecture: ClassVar[Literal["any", "decoder", "encoder-decoder"]] = "any"
    packs: ClassVar[bool] = False  # an example is the pieces that fill ``data.max_length``
    writes: ClassVar[bool] = False  # predicting is a search for a text, a token at a time
    forms: ClassVar[tuple[Form, ...]] = ()  # other forms in which rows may come
    long_text: ClassVar[tuple[str, ...]] = ("windows", "head", "error")  # values it knows
    measures: ClassVar[tuple[Metric, ...]]  # all metrics it has; the first is the headline
    select_by: ClassVar[str | None] = None  # chooses the checkpoint; None: the headline

    @abstractmethod
    def fields(
        self, recipe: Recipe, facts: Facts | None = None, peek: Peek | None = None
    ) -> tuple[Field, ...]:
        """Return the columns of a row.

        Args:
            facts: what a trained model knows; None before it is learned.
            peek: gives the first values of a field's column, None where the data has no such column. Without facts and
                without ``peek`` the columns are those of the most usual rows.
        """

    def check(self, recipe: Recipe, facts: Facts | None = None) -> None:
        """Refuse keys that contradict each other, or the facts.

        Raises:
            RecipeError: names the key.
        """
        if recipe.data.long_text == "head_tail" and "head_tail" not in self.long_text:
            raise RecipeError(
                f"{self.name} cannot do without the middle of a text",
                place="data.long_text",
                remedy="head, or error",
            )

    def learn(self, rows: Sequence[Row], labels: Sequence[str]) -> dict[str, Any]:
        """Return what has to be known of the training rows, and of their labels, before a model is built."""
        return {}

    def recover(self, records: Sequence[Record]) -> dict[str, Any]:
        """Return what stored predictions tell of the facts, where their model is not beside them."""
        return {}

    def read_config(
        self, config: PretrainedConfig, recipe: Recipe, peek: Peek | None = None
    ) -> dict[str, Any]:
        """Return what the config of a model that lmkit did not make tells of the facts.

        Only asked where a field of the rows has labels. ``peek`` is as of ``fields``.
        """
        names = config.id2label or {}
        return {"labels": recipe.data.labels or [str(names[number]) for number in sorted(names)]}

    @abstractmethod
    def answer(self, facts: Facts) -> Answer:
        """Return the kind of answer that is given to a row."""

    def metrics(self, facts: Facts) -> tuple[Metric, ...]:
        """Return those of ``measures`` that these facts allow."""
        return self.measures

    def headline(self, facts: Facts) -> str:
        """Return the name of the metric that stands for all."""
        return self.headline_among([metric.name for metric in self.metrics(facts)])

    def headline_among(self, names: Collection[str]) -> str:
        """Return the first of ``measures`` that is among these names; if none is, the first name."""
        measures = (metric.name for metric in self.measures)
        return next((name for name in measures if name in names), next(iter(names)))

    def measured(self, recipe: Recipe, facts: Facts) -> tuple[Metric, ...]:
        """Return the metrics that an evaluation has as this recipe says it is made."""
        return self.metrics(facts)

    def selecting(self, facts: Facts) -> tuple[str, ...]:
        """Return what ``train.select_best`` may name, the default first."""
        names = [metric.name for metric in self.metrics(facts) if metric.selects]
        return tuple(sorted(names, key=lambda name: name != (self.select_by or names[0])))

    @abstractmethod
    def score(self, facts: Facts, records: Sequence[Record]) -> Statistics:
        """Return the sums by record that metrics and their intervals are functions of."""

    def tunes(self, recipe: Recipe, facts: Facts) -> bool:
        """Tell if ``tune`` has something to learn."""
        return False

    def tune(self, facts: Facts, records: Sequence[Record]) -> dict[str, Any]:
        """Return facts that the records of the validation rows teach once the model is chosen."""
        return {}

    def baselines(self, facts: Facts) -> tuple[Baseline, ...]:
        """Return simple ways to predict that an evaluation sets beside the model."""
        return ()

    @abstractmethod
    def card(self, facts: Facts, tokenizer: Any) -> Card:
        """Return how the model is used."""

    def rows(self, texts: Sequence[str], facts: Facts) -> list[Row]:
        """Make rows without gold of raw texts, for ``lmkit predict``."""
        return [{"id": number, "text": text} for number, text in enumerate(texts)]

    def show(self, record: Record, facts: Facts) -> dict[str, Any]:
        """Make a line of ``lmkit predict`` of a record without gold."""
        return {key: value for key, value in record.items() if key not in ("gold", "nll", "items")}

    def tokenizer_role(self, model_type: str, role: str) -> str:
        """Return which marks a new tokenizer needs for this architecture; ``role`` is the usual answer."""
        return role

    @abstractmethod
    def task(self, recipe: Recipe, facts: Facts, tokenizer: PreTrainedTokenizerBase) -> Task:
        """Return the task: the problem with its facts, recipe and tokenizer."""

    def scorer(self, task: Task) -> Task:
        """Return the task as the ``eval`` section of its recipe says it is measured."""
        return task

    def responder(self, task: Task) -> Responder | None:
        """Return what answers ``lmkit predict``, where that is not what an evaluation measures."""
        return None


@dataclass(frozen=True)
class Scored:
    """A problem with its recipe and facts: enough to score records, for which no tokenizer is needed."""

    problem: Problem
    recipe: Recipe
    facts: Facts

    @property
    def name(self) -> str:
        """Return the name of the problem."""
        return self.problem.name

    @property
    def answer(self) -> Answer:
        """Return the kind of answer that is given to a row."""
        return self.problem.answer(self.facts)


class Task(ABC):
    """A problem with its facts, recipe and tokenizer. It answers six questions, and is complete once constructed.

    They are ``model_config``, ``encode``, ``collate``, ``loss``, ``predict`` and ``combine``. The other methods have
    defaults that most tasks keep.

    Args:
        facts: what the training rows taught (``Problem.learn``), stored beside the model.
        tokenizer: the one the model was or will be trained with.
    """

    predicts_tokens: ClassVar[bool] = False  # its classes are the vocabulary
    signature: str | None = None  # how it is measured, where that is not the usual way

    def __init__(
        self,
        problem: Problem,
        recipe: Recipe,
        facts: Facts,
        tokenizer: PreTrainedTokenizerBase,
    ):
        problem.check(recipe, facts)
        self.problem = problem
        self.recipe, self.facts, self.tokenizer = recipe, dict(facts), tokenizer
        self.max_length = recipe.data.max_length

    @property
    def name(self) -> str:
        """Return the name of the problem."""
        return self.problem.name

    @property
    def answer(self) -> Answer:
        """Return the kind of answer that is given to a row."""
        return self.problem.answer(self.facts)

    # ------------------------------------------------------------------ the six questions

    def model_config(self) -> dict[str, Any]:
        """Return the fields of the Hugging Face config that this task decides."""
        return {}

    @abstractmethod
    def encode(self, rows: Sequence[Row]) -> Columns:
        """Make pieces of rows, as columns of equal length; rows without gold do, too.

        ``row`` is the position in ``rows`` that a piece belongs to, ``length`` its tokens.
        """

    @abstractmethod
    def collate(
        self, examples: Sequence[Sequence[Piece]], *, epoch: int = 0, packed: bool = False
    ) -> Batch:
        """Make padded tensors of examples, ``labels`` aligned with the logits and -100 where nothing counts.

        A pure function of the pieces, the seed and the epoch: randomness is keyed, never drawn.
        """

    def loss(self, model: PreTrainedModel, batch: Batch) -> torch.Tensor:
        """Return the *sum* of the cross-entropies of the labels that count, in nats; its weight is ``batch.items``."""
        from torch.nn.functional import cross_entropy

        from lmkit.heads import unwrap

        smoothing = self.recipe.train.label_smoothing if model.training else 0.0
        without_logits = getattr(unwrap(model), "lmkit_token_loss", None)
        if self.predicts_tokens and without_logits is not None:
            loss: torch.Tensor | None = without_logits(
                self.inputs(model, batch), batch.labels, label_smoothing=smoothing
            )
            if loss is not None:
                return loss
        logits, labels = self.logits(model, batch)
        return cross_entropy(
            logits.flatten(0, -2).float(),
            labels.flatten(),
            ignore_index=IGNORE,
            reduction="sum",
            label_smoothing=smoothing,
        )

    @abstractmethod
    def predict(
        self, model: PreTrainedModel, batch: Batch, pieces: Sequence[Piece]
    ) -> list[dict[str, Any]]:
        """Return a JSON-ready part a piece; with gold it has ``nll`` (summed) and ``items``, too."""

    @abstractmethod
    def combine(self, row: Row, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Make a record of a row and the parts of its pieces, in order. No tensors."""

    # ------------------------------------------------------------------ what most tasks leave as it is

    def configure(self, model: Any) -> None:  # noqa: B027  # most tasks have nothing to say
        """Tell a model that was built or loaded what its config does not say; called before it is adapted or used."""

    def inputs(self, model: PreTrainedModel, batch: Batch) -> dict[str, Any]:
        """Return what the model's forward pass takes of a batch."""
        return dict(batch.inputs)

    def logits(self, model: PreTrainedModel, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits ``(..., classes)`` and the labels ``(...)`` aligned with them."""
        return model(**self.inputs(model, batch)).logits, batch.labels

    def cost(self, piece: Piece) -> int:
        """Return the tokens that predicting a piece takes: what the batches of evaluation are made by."""
        return int(piece["length"])

    def encoding_options(self) -> Any:
        """Return what decides ``encode`` besides ``data``, the labels and the tokenizer: JSON-ready, for the cache's key.

        The default is the section of the recipe that the problem brought along (``section_type``).
        """
        section = self.problem.section
        if section is None or self.problem.section_type is None:
            return ()
        return getattr(self.recipe, section).model_dump()


class Scorer(Task):
    """A task that an evaluation measures in another way than it is trained.

    Every method calls that of the trained task. A subclass overrides those that differ.
    """

    def __init__(self, task: Task):
        self.task, self.problem = task, task.problem
        self.recipe, self.facts, self.tokenizer = task.recipe, task.facts, task.tokenizer
        self.max_length = task.max_length

    def encode(self, rows: Sequence[Row]) -> Columns:
        return self.task.encode(rows)

    def collate(
        self, examples: Sequence[Sequence[Piece]], *, epoch: int = 0, packed: bool = False
    ) -> Batch:
        return self.task.collate(examples, epoch=epoch, packed=packed)

    def loss(self, model: PreTrainedModel, batch: Batch) -> torch.Tensor:
        return self.task.loss(model, batch)

    def predict(self, model: PreTrainedModel, batch: Batch, pieces: Sequence[Piece]) -> list[Any]:
        return self.task.predict(model, batch, pieces)

    def combine(self, row: Row, parts: Sequence[Any]) -> dict[str, Any]:
        return self.task.combine(row, parts)

    def inputs(self, model: PreTrainedModel, batch: Batch) -> dict[str, Any]:
        return self.task.inputs(model, batch)

    def logits(self, model: PreTrainedModel, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        return self.task.logits(model, batch)

    def configure(self, model: Any) -> None:
        self.task.configure(model)

    def model_config(self) -> dict[str, Any]:
        return self.task.model_config()

    def cost(self, piece: Piece) -> int:
        return self.task.cost(piece)

    def encoding_options(self) -> Any:
        return self.task.encoding_options()


class Responder(ABC):
    """What answers ``lmkit predict`` in place of ``predict`` and ``combine``."""

    @abstractmethod
    def respond(self, model: PreTrainedModel, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Return a line of ``lmkit predict`` a row."""
