"""The denoising task: a text with gaps in, what is missing or the whole text out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from lmkit.batch import IGNORE, Batch, Columns, Piece, Row, flat, keyed_rng, lay_out, pad
from lmkit.errors import ModelError, RecipeError
from lmkit.heads import unwrap
from lmkit.tasks.base import Facts, Problem
from lmkit.tasks.denoise.gaps import corrupt, draw_spans, sentinels_of, surroundings
from lmkit.tasks.generation import set_generation, shift
from lmkit.tasks.language import EVALUATION_EPOCH, LanguageModeling
from lmkit.tasks.languages import set_source

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lmkit.recipe.schema import Recipe


class Denoising(LanguageModeling):
    def __init__(
        self,
        problem: Problem,
        recipe: Recipe,
        facts: Facts,
        tokenizer: PreTrainedTokenizerBase,
    ):
        super().__init__(problem, recipe, facts, tokenizer)
        set_source(tokenizer, recipe.translation)
        self.sentinels = sentinels_of(tokenizer)
        if not self.sentinels and tokenizer.mask_token_id is None:
            raise ModelError(
                "this tokenizer has neither sentinel tokens (<extra_id_0>, <extra_id_1>, ...) nor a mask token, and denoise needs either",
                place="tokenizer",
                remedy="take a t5 or bart model, learn a tokenizer with tokenizer.train, or make sentinels with tokenizer.add_tokens",
            )
        self.before, self.behind = surroundings(tokenizer)
        if not self.behind:
            raise ModelError(
                "this tokenizer puts no end mark behind a text, and a decoder would never learn to stop",
                place="tokenizer",
                remedy="take that of a t5 or bart model, or learn one with tokenizer.train",
            )
        self._room = self.max_length - len(self.before) - len(self.behind)
        masking = recipe.masking
        gaps = int((int(self._room * masking.share) + 1) / masking.span) + 1
        if self.sentinels and gaps + 1 > len(self.sentinels):
            raise RecipeError(
                f"{gaps} gaps in {recipe.data.max_length} tokens, and the tokenizer has {len(self.sentinels)} sentinel tokens, one of which stands at the end",
                place="masking.span",
                remedy="raise it, lower masking.share or data.max_length, or give more of them with tokenizer.add_tokens",
            )

    def configure(self, model: Any) -> None:
        """Write the options of generation into the model, as translation does."""
        set_generation(unwrap(model), self.recipe.generation)

    def encode(self, rows: Sequence[Row]) -> Columns:
        """Cut documents into blocks, without the marks around them; no token is lost."""
        columns: Columns = {"input_ids": [], "row": [], "length": []}
        encoded = self.tokenizer(
            [row["text"] for row in rows], add_special_tokens=False, verbose=False
        )["input_ids"]
        for number, ids in enumerate(encoded):
            for start in range(0, max(1, len(ids)), self._room):
                block = ids[start : start + self._room]
                columns["input_ids"].append(block)
                columns["row"].append(number)
                columns["length"].append(len(block) + self.max_length - self._room)
        return columns

    def collate(
        self,
        examples: Sequence[Sequence[Piece]],
        *,
        epoch: int = EVALUATION_EPOCH,
        packed: bool = False,
    ) -> Batch:
        assert not packed, "an encoder-decoder has one text a row"
        seen, written = zip(
            *(self._with_gaps(piece, epoch) for piece in flat(examples)), strict=True
        )
        columns = {"input_ids": self.tokenizer.pad_token_id}
        batch = lay_out([[{"input_ids": ids}] for ids in seen], columns=columns, packed=False)
        batch.labels = pad(written, IGNORE)
        return batch

    def _with_gaps(self, piece: Piece, epoch: int) -> tuple[list[int], list[int]]:
        """Return what the encoder reads and the decoder writes of a piece, which depends on nothing but the piece."""
        masking, tokens = self.recipe.masking, piece["input_ids"]
        rng = keyed_rng(self.recipe.seed, epoch, piece["piece"])
        spans = draw_spans(
            len(tokens), masking.share, masking.span, rng=rng, poisson=not self.sentinels
        )
        marks = self.sentinels or [cast(int, self.tokenizer.mask_token_id)] * (len(spans) + 1)
        seen, missing = corrupt(tokens, spans, marks)
        return self._marked(seen), self._marked(missing if self.sentinels else tokens)

    def _marked(self, ids: list[int]) -> list[int]:
        return [*self.before, *ids, *self.behind]

    def inputs(self, model: PreTrainedModel, batch: Batch) -> dict[str, Any]:
        shifted = shift(unwrap(model), batch.labels)
        return super().inputs(model, batch) | {"decoder_input_ids": shifted, "use_cache": False}
