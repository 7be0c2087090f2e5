"""Models that predict the next token: encoders are told to look back only, and nothing is believed of any (``check_causal``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmkit.errors import ModelError
from lmkit.heads import unwrap
from lmkit.models.trials import TOLERANCE, TRIAL_ERRORS, in_evaluation

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def decoder_fields(config: PretrainedConfig) -> dict[str, Any]:
    """What makes a decoder of an architecture that can be both: BERT attends both ways unless it is told otherwise."""
    return {
        name: True
        for name in ("is_decoder", "causal")
        if isinstance(getattr(config, name, None), bool)
    }


def check_causal(model: Any) -> None:
    """Refuse a model whose logits depend on later tokens: its loss would be of words that it was shown.

    Raises:
        ModelError: changing the last of twelve tokens changes what is predicted before it.
    """
    import torch

    inner = unwrap(model)
    if getattr(inner.config, "attention_type", None) == "block_sparse":
        return  # BigBird turns to full attention for good once it has read a short text
    try:
        rows = len(inner.get_input_embeddings().weight)
        ids = (torch.arange(12, device=inner.device)[None] * 5 + 7) % rows
        other = ids.clone()
        other[0, -1] = (ids[0, -1] + 3) % rows
        with in_evaluation(inner), torch.inference_mode():
            before, after = (
                inner(input_ids=each, attention_mask=torch.ones_like(each), use_cache=False)
                .logits[:, :-1]
                .float()
                for each in (ids, other)
            )
    except TRIAL_ERRORS:
        return  # it says itself what it lacks, where it is used
    if (before - after).abs().max() > TOLERANCE * before.abs().max():
        raise ModelError(
            f"this {inner.config.model_type} sees the tokens that it is to predict",
            place="model",
            remedy="task: mlm suits it, or take a decoder: model.preset=llama-mini",
        )
