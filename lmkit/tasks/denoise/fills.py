"""What fills the gaps of a text: what ``lmkit predict`` answers with a denoising model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lmkit.batch import Row
from lmkit.errors import DataError
from lmkit.heads import num_positions, unwrap
from lmkit.tasks.base import Responder, TooLong
from lmkit.tasks.denoise.gaps import gap_token
from lmkit.tasks.denoise.task import Denoising
from lmkit.tasks.generation import shift

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class Fills(Responder):
    """What the model writes in every gap of every text, as many ways as there are beams."""

    def __init__(self, task: Denoising):
        self.task = task

    def respond(self, model: PreTrainedModel, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Return what the model writes in every gap of every text, as many ways as there are beams; it goes on with the best."""
        import torch

        task = self.task
        inner, answers = unwrap(model), []
        gap_tokens = {*task.sentinels} or {task.tokenizer.mask_token_id}
        for row in rows:
            ids = task.tokenizer(row["text"], verbose=False)["input_ids"]
            if len(ids) > task.max_length:
                raise TooLong([(0, len(ids))], task.max_length, place=f"text {row['id'] + 1}")
            gaps = [position for position, token in enumerate(ids) if token in gap_tokens]
            if not gaps:
                mark = gap_token(task.tokenizer)
                raise DataError(
                    f"no {mark} in this text: nothing to fill",
                    place=f"text {row['id'] + 1}",
                    remedy=f"put {mark} where something is missing"
                    + (", then <extra_id_1>, ..." if task.sentinels else ""),
                )
            inputs = torch.tensor([ids], device=model.device)
            with torch.inference_mode():
                encoded = inner.get_encoder()(
                    input_ids=inputs, attention_mask=torch.ones_like(inputs), return_dict=True
                )
                written, fills = shift(inner, inputs)[0, :1].tolist(), []
                for last, gap in zip([-1, *gaps], gaps, strict=False):
                    if task.sentinels:
                        written += [*(task.before if last < 0 else ()), ids[gap]]
                        ends = task.sentinels
                    else:
                        written += ids[last + 1 : gap]
                        ends = next(
                            [token]
                            for token in [*ids[gap:], task.behind[0]]
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
                                "token": task.tokenizer.decode(
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
        """Return what follows ``written`` up to one of ``ends``: ways to go on, best first, with the mean probability of their tokens."""
        import torch
        from transformers.modeling_outputs import BaseModelOutput

        task = self.task
        options, stops = task.recipe.generation, [*ends, task.behind[0]]
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
