"""What a task is: six questions, answered in one file per task. Nothing here imports torch at module level.

Words used throughout: a *row* is one example of the data. A *piece* is what the model reads as one
text: a whole row, or one window or block of it. An *example* is what ``train.batch_size`` counts:
all windows of a row, or (pretraining) the pieces that together fill ``data.max_length`` tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lmkit.batch import IGNORE, Batch, Columns, Piece, Row
from lmkit.errors import DataError, RecipeError
from lmkit.recipe.schema import Recipe
from lmkit.tasks.fields import Field, Form

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lmkit.metrics.statistics import Statistics


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


class Task(ABC):
    """One kind of problem.

    Args:
        recipe: the options; only ``data``, ``masking``, ``generation``, ``train.label_smoothing`` and ``seed`` are read.
        facts: what the training rows taught (``learn``), stored beside the model.
        tokenizer: the one the model was or will be trained with.
    """

    name: ClassVar[str]
    stage: ClassVar[Literal["pretrain", "finetune"]]
    model_class: ClassVar[str]  # the Auto class of transformers
    family: ClassVar[str]  # the preset that stands in where a smoke run has no model
    fields: ClassVar[tuple[Field, ...]]
    forms: ClassVar[tuple[Form, ...]] = ()  # other forms in which rows may come
    further: ClassVar[tuple[str, ...]] = ()  # what an evaluation measures besides ``metrics``
    packs: ClassVar[bool] = False  # several pieces may share a row of the batch
    cuts_the_middle: ClassVar[bool] = False  # data.long_text: head_tail makes sense
    generates: ClassVar[bool] = False  # needs an encoder-decoder
    causal: ClassVar[bool] = False  # a token is predicted from those before it
    predicts_tokens: ClassVar[bool] = (
        False  # the classes are the vocabulary, too many for logits that nobody reads
    )
    headlines: ClassVar[tuple[str, ...]]  # the first that an evaluation has stands for all metrics
    reading: tuple[
        Any, ...
    ] = ()  # options besides the data's that decide ``encode``; part of the cache key

    def __init__(
        self, recipe: Recipe, facts: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase
    ):
        self.recipe, self.facts, self.tokenizer = recipe, dict(facts), tokenizer
        self.max_length = recipe.data.max_length
        if recipe.data.long_text == "head_tail" and not self.cuts_the_middle:
            raise RecipeError(
                f"{self.name} cannot do without the middle of a text",
                place="data.long_text",
                remedy="head, or error",
            )

    @classmethod
    def fields_of(
        cls,
        recipe: Recipe,
        facts: Mapping[str, Any] | None,
        peek: Callable[[Field], list[Any] | None] | None,
    ) -> tuple[Field, ...]:
        """The columns of this recipe's rows, where they depend on the data.

        Args:
            facts: what a trained model knows; None before it is learned.
            peek: without facts, gives the first values of a field's column, None where the data has no such column.
        """
        return cls.fields

    @property
    @abstractmethod
    def metrics(self) -> tuple[str, ...]:
        """What ``train.select_best`` may name; the first is the default."""

    def for_evaluation(self) -> Task:
        """The task as the ``eval`` section says it is measured, where that is not how it learns."""
        return self

    def as_measured(self, records: Sequence[Mapping[str, Any]]) -> Task:
        """The task as these lines of predictions.jsonl were measured, whatever the recipe says now."""
        return self

    @classmethod
    def learn(cls, rows: Sequence[Row], labels: Sequence[str]) -> dict[str, Any]:
        """What has to be known of the training rows, and of their labels, before a model is built: JSON-ready."""
        return {}

    @classmethod
    def recover(cls, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return what stored predictions tell of the facts, where their model is not beside them."""
        return {}

    def model_config(self) -> dict[str, Any]:
        """Fields of the Hugging Face config that this task decides."""
        return {}

    def encoding_options(self) -> Any:
        """What decides the encoding besides ``data``, the labels and the tokenizer: JSON-ready, for the cache's key."""
        return self.reading

    def configure(self, model: Any) -> None:  # noqa: B027  # most tasks have nothing to say
        """Tell a model that was built or loaded what its config does not say; called before it is adapted or used."""

    def cost(self, piece: Piece) -> int:
        """Tokens that predicting a piece takes: what the batches of evaluation are made by."""
        return int(piece["length"])

    @abstractmethod
    def encode(self, rows: Sequence[Row]) -> Columns:
        """Rows -> pieces, as columns of equal length; works on rows without gold too.

        ``row`` is the position in ``rows`` that a piece belongs to, ``length`` its tokens.
        """

    @abstractmethod
    def collate(
        self, examples: Sequence[Sequence[Piece]], *, epoch: int = 0, packed: bool = False
    ) -> Batch:
        """Examples -> padded tensors, ``labels`` aligned with the logits and -100 where nothing counts.

        A pure function of the pieces, the seed and the epoch: randomness is keyed, never drawn.
        """

    def inputs(self, model: PreTrainedModel, batch: Batch) -> dict[str, Any]:
        """What of a batch the model's forward pass takes."""
        return dict(batch.inputs)

    def logits(self, model: PreTrainedModel, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits ``(..., classes)`` and the labels ``(...)`` aligned with them."""
        return model(**self.inputs(model, batch)).logits, batch.labels

    def loss(self, model: PreTrainedModel, batch: Batch) -> torch.Tensor:
        """The *sum* of the cross-entropies of the labels that count, in nats; its weight is ``batch.items``."""
        from torch.nn.functional import cross_entropy

        smoothing = self.recipe.train.label_smoothing if model.training else 0.0
        if self.predicts_tokens:
            from lmkit.fast.token_loss import token_loss

            loss = token_loss(
                model, self.inputs(model, batch), batch.labels, label_smoothing=smoothing
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
        """One JSON-ready part per piece; with gold also ``nll`` (summed) and ``items``."""

    @abstractmethod
    def combine(self, row: Row, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The parts of one row, in order -> its line of predictions.jsonl."""

    @abstractmethod
    def score(self, records: Sequence[Mapping[str, Any]]) -> Statistics:
        """Lines of predictions.jsonl -> the statistics that metrics and intervals are made of. No tensors."""

    def tune(self, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What is learned of the validation rows' records once the model is chosen: facts that are stored with it."""
        return {}

    @property
    def tunes(self) -> bool:
        """Whether ``tune`` has something to learn."""
        return False

    def show(self, record: dict[str, Any]) -> dict[str, Any]:
        """A line of predictions.jsonl without gold -> a line of ``lmkit predict``."""
        return {key: value for key, value in record.items() if key not in ("gold", "nll", "items")}

    def text_rows(self, texts: Sequence[str]) -> list[Row]:
        """Raw texts -> rows without gold (``lmkit predict``)."""
        return [{"id": number, "text": text} for number, text in enumerate(texts)]

    def respond(self, model: PreTrainedModel, rows: Sequence[Row]) -> list[dict[str, Any]] | None:
        """What ``lmkit predict`` says, where that is not what evaluation measures; None: the same."""
        return None
