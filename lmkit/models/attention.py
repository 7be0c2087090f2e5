"""Attention under bf16 on CPUs that have no matrix unit: the fused kernel's backward pass is many times slower there than in fp32."""

from __future__ import annotations

from typing import Any


def train_attention_in_fp32() -> None:
    """Let transformers' "sdpa" compute what is differentiated in fp32, where the model hands it bf16 on a CPU.

    PyTorch's fused CPU kernel multiplies small bf16 blocks without AMX one number at a time. With dropout there is no fused
    kernel, and bf16 is as fast.
    """
    import torch
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def attend(
        module: Any, query: Any, key: Any, value: Any, attention_mask: Any, dropout: float = 0.0, **options: Any
    ) -> tuple[torch.Tensor, None]:
        is_half = value.dtype == torch.bfloat16  # rotary embeddings leave query and key in fp32 under autocast
        if dropout or not is_half or value.device.type != "cpu" or not torch.is_grad_enabled():
            plain: tuple[torch.Tensor, None] = sdpa_attention_forward(
                module, query, key, value, attention_mask, dropout=dropout, **options
            )
            return plain
        if attention_mask is not None and attention_mask.is_floating_point():
            attention_mask = attention_mask.float()
        if options.get("position_bias") is not None:
            options["position_bias"] = options["position_bias"].float()
        with torch.autocast("cpu", enabled=False):
            found, _ = sdpa_attention_forward(module, query.float(), key.float(), value.float(), attention_mask, **options)
        return found.to(value.dtype), None

    AttentionInterface.register("sdpa", attend)
