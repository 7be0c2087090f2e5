"""Attention that is differentiated in fp32 although the model computes in bf16."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lmkit.models.attention import train_attention_in_fp32

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}


@pytest.fixture
def in_fp32() -> Iterator[None]:
    plain = AttentionInterface._global_mapping["sdpa"]
    train_attention_in_fp32()
    yield
    AttentionInterface.register("sdpa", plain)


def tiny_llama() -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **TINY, vocab_size=50))
    return model


def seen_by_the_kernel(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> set[torch.dtype]:
    """Of values, what the fused kernel is given under bf16 autocast."""
    kernel, seen = torch.nn.functional.scaled_dot_product_attention, set()

    def watch(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: object) -> torch.Tensor:
        seen.add(value.dtype)
        return kernel(query, key, value, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watch)
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.arange(12)[None], use_cache=False)
    return seen


def test_what_is_differentiated_is_fp32(in_fp32: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert seen_by_the_kernel(tiny_llama(), monkeypatch) == {torch.float32}


def test_without_gradients_it_is_bf16(in_fp32: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.inference_mode():
        assert seen_by_the_kernel(tiny_llama(), monkeypatch) == {torch.bfloat16}


def test_gradients_are_no_further_from_fp32_than_bf16_attention_s(in_fp32: None) -> None:
    model, tokens = tiny_llama(), torch.arange(24).view(2, 12)

    def gradients(*, half: bool) -> torch.Tensor:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = model(tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])  # type: ignore[union-attr]

    exact, mine = gradients(half=False), gradients(half=True)
    train = AttentionInterface._global_mapping["sdpa"]
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    AttentionInterface.register("sdpa", sdpa_attention_forward)
    plain = gradients(half=True)
    AttentionInterface.register("sdpa", train)
    assert 0 < (mine - exact).norm() <= 1.2 * (plain - exact).norm()
