"""Models that read padding, whatever the mask says: FNet mixes all places of a row, Funnel pools them."""

from __future__ import annotations

from typing import Any

from lmkit.errors import ModelError
from lmkit.models.heads import unwrap
from lmkit.models.packing import TOLERANCE, TRIAL_ERRORS, in_evaluation
from lmkit.recipe.schema import Hardware

LENGTHS = (12, 5)  # tokens of the texts that are tried


def check_padding(model: Any, hardware: Hardware) -> None:
    """Refuse a model whose logits of a text depend on the longer ones beside it, unless each text is computed alone.

    Raises:
        ModelError: what it learns and what it answers would depend on how texts are put together.
    """
    import torch

    inner = unwrap(model)
    is_exact = all(parameter.dtype == torch.float32 for parameter in inner.parameters())  # in less it is rounding that differs
    if hardware.micro_batch_tokens == 1 or getattr(inner.config, "is_encoder_decoder", False) or not is_exact:
        return
    try:
        rows = len(inner.get_input_embeddings().weight)
        ids = (torch.arange(LENGTHS[0], device=inner.device)[None] * 5 + 7) % (rows - 1) + 1
        mask = torch.ones_like(ids)
        both, beside = ids.repeat(2, 1), mask.repeat(2, 1)
        both[1, LENGTHS[1] :] = getattr(inner.config, "pad_token_id", None) or 0
        beside[1, LENGTHS[1] :] = 0
        with in_evaluation(inner), torch.inference_mode():
            padded = inner(input_ids=both, attention_mask=beside).logits[1:].float()
            alone = inner(input_ids=ids[:, : LENGTHS[1]], attention_mask=mask[:, : LENGTHS[1]]).logits.float()
    except TRIAL_ERRORS:
        return  # it says itself what it lacks, where it is used
    padded = padded[:, : alone.shape[1]]  # of tokens; of classes as many as there are
    if (padded - alone).abs().max() > TOLERANCE * alone.abs().max():
        raise ModelError(
            f"this {inner.config.model_type} reads padding: what it makes of a text depends on the texts beside it",
            place="model",
            remedy="hardware.micro_batch_tokens=1 gives it one text at a time; or take another model",
        )
