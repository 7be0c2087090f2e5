"""Models that read padding, whatever the mask says: FNet mixes all places of a row, convolutions reach beyond a text's end."""

from __future__ import annotations

from typing import Any

from lmkit import console
from lmkit.heads import unwrap
from lmkit.models.trials import TOLERANCE, TRIAL_ERRORS, in_evaluation

LENGTHS = (12, 5)  # tokens of the texts that are tried


def warn_of_padding(model: Any) -> None:
    """Say it where the logits of a text depend on longer ones beside it: what is learned and answered depends on the batch, too."""
    import torch

    inner = unwrap(model)
    config = inner.config
    in_fp32 = all(
        parameter.dtype == torch.float32 for parameter in inner.parameters()
    )  # in less it is rounding that differs
    # BigBird turns to full attention for good once it has read a short text
    if (
        getattr(config, "is_encoder_decoder", False)
        or getattr(config, "attention_type", None) == "block_sparse"
        or not in_fp32
    ):
        return
    longest, short = LENGTHS
    try:
        ids = (torch.arange(longest, device=inner.device)[None] * 5 + 7) % (
            len(inner.get_input_embeddings().weight) - 1
        ) + 1
        both, mask = ids.repeat(2, 1), torch.ones_like(ids).repeat(2, 1)
        # XLNet's classifier reads the last place, so its texts are padded before they begin
        padding, text = slice(short, None), slice(None, short)
        if getattr(config, "summary_type", None) == "last":
            padding, text = slice(None, longest - short), slice(longest - short, None)
        both[1, padding], mask[1, padding] = getattr(config, "pad_token_id", None) or 0, 0
        with in_evaluation(inner), torch.inference_mode():
            padded = inner(input_ids=both, attention_mask=mask).logits[1:].float()
            alone = inner(input_ids=both[1:, text], attention_mask=mask[1:, text]).logits.float()
    except TRIAL_ERRORS:
        return  # it says itself what it lacks, where it is used
    if padded.dim() == 3:  # of tokens, not of the text
        padded = padded[:, text]
    if (padded - alone).abs().max() > TOLERANCE * alone.abs().max():
        console.warn(
            f"this {config.model_type} reads padding: what it makes of a text depends on the texts beside it in a batch"
        )
