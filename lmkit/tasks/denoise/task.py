"""Denoising: an encoder-decoder reads a text with gaps and writes what is missing, or the whole text.

With sentinel tokens (T5) the gaps are numbered, and what fills them is written: span corruption (Raffel et al. 2020). With
a mask token (BART) the whole text is written: text infilling (Lewis et al. 2020).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from lmkit.batch import IGNORE, Batch, Columns, Piece, Row, flat, keyed_rng, lay_out, pad
from lmkit.errors import DataError, ModelError, RecipeError
from lmkit.tasks.base import TooLong
from lmkit.tasks.generation import check_beams, set_generation, shift
from lmkit.tasks.language import EVALUATION_EPOCH, LanguageModeling

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lmkit.recipe.schema import Recipe

SENTINEL = re.compile(r"▁?<extra_id_(\d+)>")  # mT5's have the mark of a space
Span = tuple[int, int]  # the first token and the one behind the last


class Denoising(LanguageModeling):
    name = "denoise"
    model_class = "AutoModelForSeq2SeqLM"
    family = "t5"
    generates = True
    counts_bytes = False

    def __init__(
        self, recipe: Recipe, facts: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase
    ):
        super().__init__(recipe, facts, tokenizer)
        check_beams(recipe.generation)
        if tokenizer is None:  # what can be said before there is one
            return
        from lmkit.models.languages import set_source

        set_source(tokenizer, recipe.translation)
        self._sentinels = sentinels_of(tokenizer)
        if not self._sentinels and tokenizer.mask_token_id is None:
            raise ModelError(
                "this tokenizer has neither sentinel tokens (<extra_id_0>, <extra_id_1>, ...) nor a mask token, and denoise needs either",
                place="tokenizer",
                remedy="take a t5 or bart model, learn a tokenizer with tokenizer.train, or make sentinels with tokenizer.add_tokens",
            )
        self._before, self._behind = surroundings(tokenizer)
        if not self._behind:
            raise ModelError(
                "this tokenizer puts no end mark behind a text, and a decoder would never learn to stop",
                place="tokenizer",
                remedy="take that of a t5 or bart model, or learn one with tokenizer.train",
            )
        self._room = self.max_length - len(self._before) - len(self._behind)
        masking = recipe.masking
        gaps = int((int(self._room * masking.share) + 1) / masking.span) + 1
        if self._sentinels and gaps + 1 > len(self._sentinels):
            raise RecipeError(
                f"{gaps} gaps in {recipe.data.max_length} tokens, and the tokenizer has {len(self._sentinels)} sentinel tokens, one of which stands at the end",
                place="masking.span",
                remedy="raise it, lower masking.share or data.max_length, or give more of them with tokenizer.add_tokens",
            )

    def configure(self, model: Any) -> None:
        """Write the options of generation into the model, as translation does."""
        from lmkit.heads import unwrap

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
            len(tokens), masking.share, masking.span, rng=rng, poisson=not self._sentinels
        )
        marks = self._sentinels or [cast(int, self.tokenizer.mask_token_id)] * (len(spans) + 1)
        seen, missing = corrupt(tokens, spans, marks)
        return self._marked(seen), self._marked(missing if self._sentinels else tokens)

    def _marked(self, ids: list[int]) -> list[int]:
        return [*self._before, *ids, *self._behind]

    def inputs(self, model: PreTrainedModel, batch: Batch) -> dict[str, Any]:
        from lmkit.heads import unwrap

        shifted = shift(unwrap(model), batch.labels)
        return super().inputs(model, batch) | {"decoder_input_ids": shifted, "use_cache": False}

    def respond(self, model: PreTrainedModel, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """What the model writes in every gap of every text, as many ways as there are beams; the best one is gone on with."""
        import torch

        from lmkit.heads import unwrap

        inner, answers = unwrap(model), []
        gap_tokens = {*self._sentinels} or {self.tokenizer.mask_token_id}
        for row in rows:
            ids = self.tokenizer(row["text"], verbose=False)["input_ids"]
            if len(ids) > self.max_length:
                raise TooLong([(0, len(ids))], self.max_length, place=f"text {row['id'] + 1}")
            gaps = [position for position, token in enumerate(ids) if token in gap_tokens]
            if not gaps:
                mark = gap_token(self.tokenizer)
                raise DataError(
                    f"no {mark} in this text: nothing to fill",
                    place=f"text {row['id'] + 1}",
                    remedy=f"put {mark} where something is missing"
                    + (", then <extra_id_1>, ..." if self._sentinels else ""),
                )
            inputs = torch.tensor([ids], device=model.device)
            with torch.inference_mode():
                encoded = inner.get_encoder()(
                    input_ids=inputs, attention_mask=torch.ones_like(inputs), return_dict=True
                )
                written, fills = shift(inner, inputs)[0, :1].tolist(), []
                for last, gap in zip([-1, *gaps], gaps, strict=False):
                    if self._sentinels:
                        written += [*(self._before if last < 0 else ()), ids[gap]]
                        ends = self._sentinels
                    else:
                        written += ids[last + 1 : gap]
                        ends = next(
                            [token]
                            for token in [*ids[gap:], self._behind[0]]
                            if token not in gap_tokens
                        )
                    ways = self._fill(
                        inner,
                        encoded.last_hidden_state,
                        written,
                        ends,
                        place=f"text {row['id'] + 1}",
                    )
                    fills.append(
                        [
                            {
                                "token": self.tokenizer.decode(
                                    way, skip_special_tokens=True
                                ).strip(),
                                "score": p,
                            }
                            for way, p in ways
                        ]
                    )
                    written += ways[0][0]
            answers.append({"id": row["id"], "text": row["text"], "fills": fills})
        return answers

    def _fill(
        self,
        model: Any,
        hidden: torch.Tensor,
        written: list[int],
        ends: Sequence[int],
        *,
        place: str,
    ) -> list[tuple[list[int], float]]:
        """What follows ``written`` up to one of ``ends``: ways to go on, best first, with the mean probability of their tokens."""
        import torch
        from transformers.modeling_outputs import BaseModelOutput

        from lmkit.heads import num_positions

        options, stops = self.recipe.generation, [*ends, self._behind[0]]
        limit = num_positions(model)
        room = (
            options.max_new_tokens
            if limit is None
            else min(options.max_new_tokens, limit - len(written))
        )
        if room < 1:
            raise TooLong([(0, len(written))], limit or 0, place=place)
        output = model.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
            attention_mask=hidden.new_ones(hidden.shape[:2], dtype=torch.long),
            decoder_input_ids=torch.tensor([written], device=hidden.device),
            decoder_start_token_id=written[0],
            eos_token_id=stops,
            max_new_tokens=room,
            no_repeat_ngram_size=0,  # which BART's makers found good for summaries
            num_return_sequences=options.num_beams,
            return_dict_in_generate=True,
            output_scores=True,
        )
        beams = getattr(output, "beam_indices", None)
        scores = model.compute_transition_scores(
            output.sequences, output.scores, beams, normalize_logits=beams is None
        )
        ways: dict[str, tuple[list[int], float]] = {}
        for ids, each in zip(
            output.sequences[:, len(written) :].tolist(), scores.tolist(), strict=True
        ):
            end = next((at for at, token in enumerate(ids) if token in stops), len(ids))
            number = min(len(ids), end + 1)
            likelihood = torch.tensor(each[:number], dtype=torch.double).mean().exp().item()
            ways.setdefault(str(ids[:end]), (ids[:end], likelihood))
        return list(ways.values())


def sentinels_of(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens ``<extra_id_0>``, ``<extra_id_1>``, ... by number; none where the tokenizer has none."""
    found = {
        int(match[1]): number
        for token, number in tokenizer.get_vocab().items()
        if (match := SENTINEL.fullmatch(token))
    }
    return [found[number] for number in sorted(found)]


def gap_token(tokenizer: PreTrainedTokenizerBase) -> str:
    """What marks the first gap of a text."""
    return "<extra_id_0>" if sentinels_of(tokenizer) else str(tokenizer.mask_token)


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
