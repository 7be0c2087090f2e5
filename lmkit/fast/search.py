"""Greedy and beam search that computes nothing for sentences that are finished.

The texts and scores are those of transformers' ``generate`` on each sentence alone, which has a batch go on until its last
sentence ends. Here those that have ended leave the batch, all beams of a sentence share its first step, and what attends to
the source is not copied about while beams change places, nor at all where the attention takes beams together. ``generate`` itself prepares all that precedes the loop: the encoder,
the first token, the processors of the logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from lmkit.batch import Batch
from lmkit.fast.path import has_attribute
from lmkit.heads import unwrap
from lmkit.tasks.generation import Written, ends_of, generate

if TYPE_CHECKING:
    import torch

LEAVING = 0.875  # of the sentences in the batch are left when those that have ended are taken out: taking out costs a copy too
NEVER = -1e9  # the score of what has not ended, as transformers has it


class Search:
    """The path that lets a task search faster: ``lmkit_search`` of the model, while applied."""

    name = "search"
    experimental = False

    def available(self, model: Any, device: torch.device) -> str | None:
        inner = unwrap(model)
        is_writer = inner.config.is_encoder_decoder and inner.can_generate()
        return None if is_writer else "the model writes no text from another"

    def transform(self, batch: Batch) -> Batch:
        return batch

    @contextmanager
    def applied(self, model: Any) -> Iterator[Any]:
        inner = unwrap(model)
        with has_attribute(inner, "lmkit_search", partial(search, inner)):
            yield model


def search(model: Any, batch: dict[str, torch.Tensor], encoded: Any) -> Written:
    """Write what the model's ``generation_config`` says: greedily, or by beam search with ``early_stopping=False``.

    Args and returns are those of ``lmkit.tasks.generation.generate``, which it asks where it cannot do it faster.
    """
    from transformers.modeling_outputs import BaseModelOutput

    from lmkit.fast.attention import CpuAttention

    assert model.generation_config.early_stopping in (None, False)
    assert not model.generation_config.do_sample
    attention = CpuAttention()
    is_ours = attention.available(model, model.device) is None
    with attention.applied(model) if is_ours else nullcontext():
        written: Written | None = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded.last_hidden_state),
            custom_generate=_search,
        )
    return generate(model, batch, encoded) if written is None else written


def _search(
    model: Any,
    input_ids: torch.Tensor,
    *,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: Any,
    **inputs: Any,
) -> Written | None:
    """The loop that takes the place of transformers' own (``custom_generate``); None where it cannot.

    That is where the model's cache is of another kind, or the vocabulary is too small for a first step of one beam.
    """
    from transformers import EncoderDecoderCache

    if not isinstance(inputs.get("past_key_values"), EncoderDecoderCache) or hasattr(
        model, "_reorder_cache"
    ):
        return None
    beams = generation_config.num_beams
    if _num_candidates(generation_config) > len(model.get_output_embeddings().weight):
        return None
    decoder = _Decoder(
        model,
        inputs["encoder_outputs"].last_hidden_state[::beams],
        inputs["attention_mask"][::beams],
        inputs,
    )
    if beams == 1:
        return _greedy(decoder, input_ids, logits_processor, stopping_criteria), None
    return _beam_search(
        decoder, input_ids[::beams], logits_processor, stopping_criteria, generation_config
    )


class _Decoder:
    """The decoder, its cache, and the sources that it attends to; all have a row a beam, but for keys and values that beams share.

    Args:
        hidden: ``(sentences, length, width)``, what the encoder made of the sources.
        mask: ``(sentences, length)``.
    """

    def __init__(
        self, model: Any, hidden: torch.Tensor, mask: torch.Tensor, inputs: dict[str, Any]
    ):
        self._model, self._hidden, self._mask = model, hidden, mask
        self._cache = inputs["past_key_values"]
        self._beams = 1  # that read the same keys and values of a source

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """The logits ``(rows, vocabulary)`` of what follows ``tokens`` ``(rows, new)``."""
        output = self._model(
            encoder_outputs=(self._hidden,),
            attention_mask=self._mask,
            decoder_input_ids=tokens,
            past_key_values=self._cache,
            use_cache=True,
        )
        logits: torch.Tensor = output.logits[:, -1].float()
        return logits

    def widen(self, beams: int) -> None:
        """Every row is followed by copies of itself; what it attends to of the source is copied only where it has to be."""
        from lmkit.fast.attention import takes_beams

        if takes_beams(self._model):
            self._cache.self_attention_cache.batch_repeat_interleave(beams)
            self._beams = beams
        else:
            self._cache.batch_repeat_interleave(beams)
        self._hidden, self._mask = (
            value.repeat_interleave(beams, 0) for value in (self._hidden, self._mask)
        )

    def go_on_with(self, rows: torch.Tensor, *, same_sources: bool) -> None:
        """Each row takes the place of another; with ``same_sources`` that of one that reads the same source."""
        self._cache.self_attention_cache.batch_select_indices(rows)
        if not same_sources:
            self._cache.cross_attention_cache.batch_select_indices(
                rows[:: self._beams] // self._beams
            )
            self._hidden, self._mask = self._hidden[rows], self._mask[rows]


def _greedy(decoder: _Decoder, ids: torch.Tensor, processor: Any, stopping: Any) -> list[list[int]]:
    """Args: ids: ``(sentences, start)`` what the decoder starts with."""
    import torch

    start = ids.shape[1]
    found: list[list[int]] = [[] for _ in ids]
    sentences = torch.arange(len(ids), device=ids.device)
    is_open = torch.ones_like(sentences, dtype=torch.bool)
    tokens = ids
    while True:
        scores = processor(ids, decoder(tokens))
        tokens = scores.argmax(-1, keepdim=True)
        ids = torch.cat([ids, tokens], 1)
        ended = stopping(ids, None) & is_open
        for sentence, written in zip(
            sentences[ended].tolist(), ids[ended, start:].tolist(), strict=True
        ):
            found[sentence] = written
        is_open &= ~ended
        left = int(is_open.sum())
        if not left:
            return found
        if left <= LEAVING * len(sentences):
            kept = is_open.nonzero().flatten()
            decoder.go_on_with(kept, same_sources=False)
            sentences, ids, tokens, is_open = (
                value[kept] for value in (sentences, ids, tokens, is_open)
            )


def _num_candidates(options: Any) -> int:
    """So many that as many as there are beams go on, even if every beam ends in every way."""
    return int(max(2, 1 + len(ends_of(options))) * options.num_beams)


def _beam_search(
    decoder: _Decoder, ids: torch.Tensor, processor: Any, stopping: Any, options: Any
) -> Written:
    """As ``GenerationMixin._beam_search`` of transformers 5.

    A sentence ends when its likeliest unfinished beam, divided by the length so far, is no better than the worst of as many
    finished ones as there are beams.

    Args:
        ids: ``(sentences, start)`` what the decoder starts with.
    """
    import torch

    beams, start = options.num_beams, ids.shape[1]
    candidates = _num_candidates(options)
    found: list[list[int]] = [[] for _ in ids]
    sentences = torch.arange(len(ids), device=ids.device)
    is_open = torch.ones_like(sentences, dtype=torch.bool)
    best = torch.full((len(ids),), NEVER, device=ids.device)
    finished = torch.full((len(ids), beams), NEVER, device=ids.device)
    ids, scores, width = ids[:, None], torch.zeros(len(ids), 1, device=ids.device), 1
    tokens = ids[:, 0]
    while True:
        flat = ids.flatten(0, 1)
        log_probabilities = processor(flat, decoder(tokens).log_softmax(-1))
        likely, following = log_probabilities.topk(
            candidates
        )  # of each beam: no other can be among the best of all beams
        totals = likely.view(len(ids), width, candidates) + scores[:, :, None]
        values, index = totals.flatten(1).topk(candidates)
        parents, tokens = index // candidates, following.view(len(ids), -1).take_along_dim(index, 1)
        written = torch.cat([ids.take_along_dim(parents[:, :, None], 1), tokens[:, :, None]], 2)
        ended = stopping(written.flatten(0, 1), None).view_as(values)
        penalty = (written.shape[2] - start) ** options.length_penalty

        new = torch.where(ended[:, :beams] & is_open[:, None], values[:, :beams] / penalty, NEVER)
        highest, which = new.max(1)
        better = highest > best[sentences]
        best[sentences] = torch.where(better, highest, best[sentences])
        for sentence, text in zip(
            sentences[better].tolist(), written[better, which[better], start:].tolist(), strict=True
        ):
            found[sentence] = text
        finished = torch.cat([finished, new], 1).topk(beams).values

        scores, chosen = (values + ended * NEVER).topk(beams)
        ids = written.take_along_dim(chosen[:, :, None], 1)
        is_open &= (scores[:, 0] / penalty > finished[:, -1]) & ~ended.all(1)
        left = int(is_open.sum())
        if not left:
            return found, best.tolist()
        if width == 1:
            decoder.widen(beams)
        rows = parents.take_along_dim(chosen, 1)
        width = beams
        rows = rows + beams * torch.arange(len(rows), device=rows.device)[:, None]
        leaving = left <= LEAVING * len(sentences)
        if leaving:
            kept = is_open.nonzero().flatten()
            sentences, ids, scores, finished, is_open, rows = (
                value[kept] for value in (sentences, ids, scores, finished, is_open, rows)
            )
        decoder.go_on_with(rows.flatten(), same_sources=not leaving)
        tokens = ids[:, :, -1].flatten()[:, None]
