"""The translation task: teacher forcing in training, beam search in evaluation."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from lmkit.batch import IGNORE, Batch, Columns, Piece, Row, flat, lay_out, pad
from lmkit.heads import logits_at, unwrap
from lmkit.tasks.base import Facts, Problem, Task, TooLong
from lmkit.tasks.generation import generate, set_generation, shift
from lmkit.tasks.languages import set_languages, target_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lmkit.recipe.schema import Recipe


class Translation(Task):
    predicts_tokens = True

    def __init__(
        self,
        problem: Problem,
        recipe: Recipe,
        facts: Facts,
        tokenizer: PreTrainedTokenizerBase,
    ):
        super().__init__(problem, recipe, facts, tokenizer)
        self.languages = set_languages(tokenizer, recipe.translation)
        self.target_tokenizer = target_of(tokenizer)
        self._end_marks = max(
            1, len(getattr(tokenizer, "suffix_tokens", ()))
        )  # mBART-25: </s> and the language

    def encoding_options(self) -> Any:
        return self.recipe.translation.model_dump()

    def configure(self, model: Any) -> None:
        """Write the options of generation into the model, so that a plain ``generate`` does the same wherever it is loaded.

        The end mark is not forced on the last token (``forced_eos_token_id``): that would hide what was cut off.
        """
        inner = unwrap(model)
        set_generation(inner, self.recipe.generation)
        self.languages.tell(inner.generation_config)
        if inner.generation_config.decoder_start_token_id is None:
            inner.generation_config.decoder_start_token_id = (
                inner.generation_config.eos_token_id
            )  # mBART wraps the labels around
        inner.config.decoder_start_token_id = inner.generation_config.decoder_start_token_id

    def cost(self, piece: Piece) -> int:
        """Count source tokens, and those of the beams, at twice the source and some unless ``max_new_tokens`` is less."""
        source, options = len(piece["input_ids"]), self.recipe.generation
        written = options.num_beams * min(options.max_new_tokens, 2 * source + 16)
        return source + max(written, len(piece["labels"]))

    def encode(self, rows: Sequence[Row]) -> Columns:
        sources = self.tokenizer(
            [self.languages.prefix + row["source"] for row in rows], verbose=False
        )["input_ids"]
        with_gold = bool(rows) and "target" in rows[0]
        targets = (
            self.target_tokenizer(text_target=[row["target"] for row in rows], verbose=False)[
                "input_ids"
            ]
            if with_gold
            else [[] for _ in rows]
        )
        longest = [
            max(len(source), len(target)) for source, target in zip(sources, targets, strict=True)
        ]
        long = [
            (position, length)
            for position, length in enumerate(longest)
            if length > self.max_length
        ]
        if long and self.recipe.data.long_text != "head":
            raise TooLong(long, self.max_length)
        columns: Columns = {
            "input_ids": [self._head(ids) for ids in sources],
            "labels": [self._head(ids) for ids in targets],
        }
        columns["row"] = list(range(len(rows)))
        columns["length"] = [
            len(source) + len(target)
            for source, target in zip(columns["input_ids"], columns["labels"], strict=True)
        ]
        columns["cut"] = [int(length > self.max_length) for length in longest]
        return columns

    def _head(self, ids: list[int]) -> list[int]:
        """Return the first tokens, with the end marks kept (``long_text: head``)."""
        marks = self._end_marks
        return (
            ids if len(ids) <= self.max_length else [*ids[: self.max_length - marks], *ids[-marks:]]
        )

    def collate(
        self, examples: Sequence[Sequence[Piece]], *, epoch: int = 0, packed: bool = False
    ) -> Batch:
        batch = lay_out(examples, columns={"input_ids": self.tokenizer.pad_token_id}, packed=False)
        batch.labels = pad([piece["labels"] for piece in flat(examples)], IGNORE)
        return batch

    def inputs(self, model: PreTrainedModel, batch: Batch) -> dict[str, Any]:
        shifted = shift(unwrap(model), batch.labels)
        return super().inputs(model, batch) | {"decoder_input_ids": shifted, "use_cache": False}

    def predict(
        self, model: PreTrainedModel, batch: Batch, pieces: Sequence[Piece]
    ) -> list[dict[str, Any]]:
        """Encode the source once, for the loss of the gold and for the search."""
        import torch
        from torch.nn.functional import cross_entropy

        inner = unwrap(model)
        encoded = inner.get_encoder()(**batch.inputs, return_dict=True)
        nll, items = [0.0] * len(pieces), [0] * len(pieces)
        if batch.labels.shape[1]:
            counted = batch.labels != IGNORE
            given = self.inputs(model, batch) | {"encoder_outputs": encoded}
            logits, labels = logits_at(model, given, batch.labels, counted)
            losses = cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="none")
            owners = counted.nonzero()[:, 0]
            nll = (
                losses.new_zeros(len(pieces), dtype=torch.double)
                .index_add_(0, owners, losses.double())
                .tolist()
            )
            items = counted.sum(1).tolist()
        search = getattr(inner, "lmkit_search", None) or partial(generate, inner)
        written, scores = search(batch.inputs, encoded)
        ends = inner.generation_config.eos_token_id
        marks = set(ends) if isinstance(ends, list) else {ends}
        texts = self.target_tokenizer.batch_decode(
            [self._spoken(ids) for ids in written], skip_special_tokens=True
        )
        certain = [None] * len(texts) if scores is None else [math.exp(score) for score in scores]
        return [
            {
                "text": one_line(text),
                "score": score,
                "truncated": not marks & set(ids),
                "nll": loss,
                "items": count,
            }
            for text, score, ids, loss, count in zip(
                texts, certain, written, nll, items, strict=True
            )
        ]

    def _spoken(self, ids: list[int]) -> list[int]:
        """Leave out the token of the language, which M2M-100's tokenizer does not take for a special one."""
        return ids[1:] if ids[:1] == [self.languages.target_id] else ids

    def combine(self, row: Row, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
        (part,) = parts
        record = {
            "id": row["id"],
            "source": row["source"],
            "gold": row.get("target"),
            "prediction": part["text"],
            "score": part["score"],
            "truncated": part["truncated"],
        }
        return record | {key: part[key] for key in ("nll", "items")}


def one_line(text: str) -> str:
    """Write a translation as the line of a file, which is what the sacrebleu command reads.

    >>> one_line(" two\\nlines ")
    'two lines'
    """
    return re.sub(r"[\r\n]+", " ", text).strip()
