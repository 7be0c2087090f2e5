"""The denoising task: a text with gaps in, what is missing or the whole text out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from lmkit.batch import IGNORE, Batch, Columns, Piece, Row, flat, keyed_rng, lay_out, pad
from lmkit.errors import ModelError, RecipeError
from lmkit.heads import unwrap
from lmkit.tasks.base import Facts
from lmkit.tasks.denoise.problem import DENOISING, sentinels_of
from lmkit.tasks.generation import set_generation, shift
from lmkit.tasks.language import EVALUATION_EPOCH, LanguageModeling
from lmkit.tasks.languages import set_source

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lmkit.recipe.schema import Recipe

Span = tuple[int, int]  # the first token and the one behind the last


class Denoising(LanguageModeling):
    problem = DENOISING

    def __init__(
        self, recipe: Recipe, facts: Facts, tokenizer: PreTrainedTokenizerBase
    ):
        super().__init__(recipe, facts, tokenizer)
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
        """Blocks of a document, without the marks around them; no token is lost."""
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
        seen, wanted = zip(
            *(self._with_gaps(piece, epoch) for piece in flat(examples)), strict=True
        )
        columns = {"input_ids": self.tokenizer.pad_token_id}
        batch = lay_out([[{"input_ids": ids}] for ids in seen], columns=columns, packed=False)
        batch.labels = pad(wanted, IGNORE)
        return batch

    def _with_gaps(self, piece: Piece, epoch: int) -> tuple[list[int], list[int]]:
        """What the encoder reads and the decoder writes of a piece, which depends on nothing but the piece."""
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


def surroundings(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before a text and behind it."""
    whole = tokenizer("a", verbose=False)["input_ids"]
    text = tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"]
    start = next(start for start in range(len(whole)) if whole[start : start + len(text)] == text)
    return whole[:start], whole[start + len(text) :]


def draw_spans(
    size: int, share: float, mean: float, *, rng: Any, poisson: bool = False
) -> list[Span]:
    """Where the gaps of a text lie: apart from one another, any way of placing them as likely as any other.

    The number of tokens in gaps is ``share * size``, rounded up or down at random so that the share holds for short texts,
    too; but at least one, and not all of several. Without ``poisson`` as many gaps as their ``mean`` length wants, rounded alike,
    all ways of dividing the tokens among them equally likely (Raffel et al. 2020; unlike theirs, a text may begin with a gap
    and need not end with one). With ``poisson`` lengths are drawn until there are enough tokens (Lewis et al. 2020); some are 0.

    Args:
        size: tokens of the text; 0 has no gap.
    """
    import numpy as np

    if not size:
        return []
    tokens = max(1, min(size - 1, int(size * share + rng.random())))
    places = size - tokens + 1  # before, between and behind the tokens that stay
    if poisson:
        drawn = rng.poisson(mean, 4 * tokens + 8)
        enough = 1 + int(np.searchsorted(np.cumsum(drawn), tokens))
        lengths = drawn[
            : min(enough, places, tokens)
        ]  # no more marks than tokens that they hide: the text grows no longer
        lengths[-1] += tokens - lengths.sum()
        lengths = rng.permutation(lengths)
    else:
        count = min(places, max(1, int(tokens / mean + rng.random())))
        cuts = np.sort(rng.choice(tokens - 1, count - 1, replace=False)) + 1
        lengths = np.diff([0, *cuts, tokens])
    ends = np.sort(rng.choice(places, len(lengths), replace=False)) + np.cumsum(lengths)
    return list(zip((ends - lengths).tolist(), ends.tolist(), strict=True))


def corrupt(
    tokens: Sequence[int], spans: Sequence[Span], marks: Sequence[int]
) -> tuple[list[int], list[int]]:
    """The text with a mark for every span, and the spans, each behind its mark; one mark more where the text goes on.

    >>> corrupt([1, 2, 3, 4, 5, 6], [(1, 3), (4, 5)], [-1, -2, -3])
    ([1, -1, 4, -2, 6], [-1, 2, 3, -2, 5, -3])
    >>> corrupt([1, 2, 3], [(0, 1), (2, 3)], [-1, -2, -3])
    ([-1, 2, -2], [-1, 1, -2, 3])
    """
    seen: list[int] = []
    missing: list[int] = []
    last = 0
    for (start, end), mark in zip(spans, marks, strict=False):
        seen += [*tokens[last:start], mark]
        missing += [mark, *tokens[start:end]]
        last = end
    if last < len(tokens):
        seen += tokens[last:]
        missing.append(marks[len(spans)])
    return seen, missing
