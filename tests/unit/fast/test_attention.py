"""Attention on CPUs is the attention of transformers, whatever way it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lmkit.fast import attention
from lmkit.fast.attention import CpuAttention

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
}


attend: Any = ALL_ATTENTION_FUNCTIONS[attention.NAME_IN_FP32]


def tiny_llama() -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("llama", **TINY, vocab_size=50)
    )
    return model


def seen_by_the_kernel(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> set[torch.dtype]:
    """Of values, what the fused kernel is given under bf16 autocast."""
    kernel, seen = torch.nn.functional.scaled_dot_product_attention, set()

    def watch(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: object
    ) -> torch.Tensor:
        seen.add(value.dtype)
        return kernel(query, key, value, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watch)
    with CpuAttention(in_fp32=True).applied(model), torch.autocast("cpu", torch.bfloat16):
        model(torch.arange(12)[None], use_cache=False)
    return seen


def test_what_is_differentiated_is_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    assert seen_by_the_kernel(tiny_llama(), monkeypatch) == {torch.float32}


def test_without_gradients_it_is_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.inference_mode():
        assert seen_by_the_kernel(tiny_llama(), monkeypatch) == {torch.bfloat16}


def test_gradients_are_no_further_from_fp32_than_bf16_attention_s() -> None:
    model, tokens = tiny_llama(), torch.arange(24).view(2, 12)

    def gradients(*, half: bool) -> torch.Tensor:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = model(tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])  # type: ignore[union-attr]

    with CpuAttention(in_fp32=True).applied(model):
        exact, mine = gradients(half=False), gradients(half=True)
    plain = gradients(half=True)
    assert 0 < (mine - exact).norm() <= 1.2 * (plain - exact).norm()


class Attention(torch.nn.Module):
    is_causal = False


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("kind", [None, "false where none may look", "added"])
def test_with_dropout_the_mean_is_that_without(
    monkeypatch: pytest.MonkeyPatch, kind: str | None, is_causal: bool
) -> None:
    """Dropout replaced by its mean: what is left is the attention itself, in every form of the mask."""
    monkeypatch.setattr("lmkit.fast.attention.drop", lambda values, rate: values)
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, 5, 4, requires_grad=True) for _ in range(3))
    allowed = torch.rand(2, 1, 5, 5) > 0.3
    allowed[..., 0] = True
    mask = {None: None, "added": torch.zeros(2, 1, 5, 5).masked_fill(~allowed, -1e9)}.get(
        kind, allowed
    )
    found, _ = attend(
        Attention(), query, key, value, mask, dropout=0.1, scaling=0.7, is_causal=is_causal
    )
    wanted, _ = sdpa_attention_forward(
        Attention(), query, key, value, mask, dropout=0.0, scaling=0.7, is_causal=is_causal
    )
    torch.testing.assert_close(found, wanted)


def test_a_mask_hides_keys_of_doubles_too() -> None:
    query, key, value = (
        torch.randn(1, 2, 5, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)
    )
    mask = torch.ones(1, 1, 5, 5, dtype=torch.bool).tril()
    found, _ = attend(Attention(), query, key, value, mask, dropout=0.1)
    found[:, :2].sum().backward()
    assert key.grad is not None
    assert key.grad[:, :, 2:].abs().max() == 0
    assert key.grad[:, :, :2].abs().max() > 0


def test_dropout_drops_shares_of_the_attention() -> None:
    value = torch.ones(1, 1, 1, 1000, requires_grad=True).transpose(
        2, 3
    )  # every query sees 1,000 ones
    query = torch.zeros(1, 1, 4000, 1)
    found, _ = attend(
        Attention(), query, torch.zeros(1, 1, 1000, 1), value, None, dropout=0.25, is_causal=False
    )
    assert found.mean().item() == pytest.approx(1, abs=1e-3)
    # a mean over 1,000 shares, each 0 or 4/3 of 1/1000
    assert found.std().item() == pytest.approx((0.25 / 0.75 / 1000) ** 0.5, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("groups", [1, 2])
def test_keys_that_a_mask_hides_behind_the_query_are_skipped_to_the_same_bit(
    groups: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    module, length = Attention(), 300
    module.num_key_value_groups = groups
    shapes = (2, 4, length, 16), *[(2, 4 // groups, length, 16)] * 2
    inputs = [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]
    texts = torch.arange(length) // torch.tensor([[70], [130]])
    mask = (texts[:, None, :, None] == texts[:, None, None, :]).tril()
    mask[1, :, 40:60] = False  # padding that sees nothing
    grown = torch.randn(2, length, 4, 16).to(dtype)

    def found(attend: Any, *given: torch.Tensor) -> list[torch.Tensor]:
        attended, _ = attend(module, *given, mask, dropout=0.0, scaling=0.3)
        return [attended, *torch.autograd.grad((attended * grown.to(attended.dtype)).sum(), inputs)]

    ours, plain = (
        found(attend, *inputs),
        found(sdpa_attention_forward, *(each.float() for each in inputs)),
    )
    for one, other in zip(ours, plain, strict=True):
        assert torch.equal(one, other.to(one.dtype))
    assert any(added is not None for key, added in attention._added.items() if key is mask)


def test_a_mask_that_shows_a_later_key_is_kept() -> None:
    query, key, value = (torch.randn(1, 2, 6, 4, requires_grad=True) for _ in range(3))
    mask = torch.ones(1, 1, 6, 6, dtype=torch.bool).tril()
    mask[..., 0, 3] = True
    found, _ = attend(Attention(), query, key, value, mask, dropout=0.0)
    wanted, _ = sdpa_attention_forward(Attention(), query, key, value, mask, dropout=0.0)
    torch.testing.assert_close(found, wanted, atol=0, rtol=0)


@pytest.mark.parametrize("kind", ["numbers apart", "another torch"])
def test_what_the_bare_kernel_cannot_take_goes_to_the_public_function(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    query, key, value = (torch.randn(2, 2, 6, 4, requires_grad=True) for _ in range(3))
    if kind == "numbers apart":
        value = torch.randn(2, 2, 4, 6, requires_grad=True).transpose(-1, -2)
    else:
        monkeypatch.setattr(attention, "_kernel", None)
    mask = torch.ones(2, 1, 6, 6, dtype=torch.bool).tril()
    found, _ = attend(Attention(), query, key, value, mask, dropout=0.0)
    wanted, _ = sdpa_attention_forward(Attention(), query, key, value, mask, dropout=0.0)
    torch.testing.assert_close(found, wanted, atol=0, rtol=0)


@pytest.mark.parametrize("shape", [(0, 2, 6, 4), (2, 2, 0, 4)])
def test_nothing_to_attend_to_is_no_crash(shape: tuple[int, ...]) -> None:
    """transformers refuses it; of the bare kernel texts without tokens end the process."""
    inputs = [torch.randn(shape, requires_grad=True)] * 3
    mask = torch.ones(shape[0], 1, shape[2], shape[2], dtype=torch.bool).tril()
    with pytest.raises(RuntimeError, match="0 elements"):
        attend(Attention(), *inputs, mask, dropout=0.0)


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_capped_scores_are_refused_as_by_transformers_and_never_left_uncapped(rate: float) -> None:
    inputs = [torch.randn(1, 2, 6, 4, requires_grad=True)] * 3
    mask = torch.ones(1, 1, 6, 6, dtype=torch.bool).tril()
    with pytest.raises(ValueError, match="softcap"):
        attend(Attention(), *inputs, mask, dropout=rate, softcap=5.0)


def implementations(model: PreTrainedModel) -> list[str]:
    return [
        part.config._attn_implementation
        for part in model.modules()
        if isinstance(part, PreTrainedModel)
    ]


def test_it_is_applied_to_this_model_alone_and_gone_afterwards(tmp_path: Path) -> None:
    model, another = tiny_llama(), tiny_llama()
    registered = dict(ALL_ATTENTION_FUNCTIONS), dict(ALL_MASK_ATTENTION_FUNCTIONS)
    with CpuAttention(in_fp32=False).applied(model):
        assert set(implementations(model)) == {attention.NAME}
        model.save_pretrained(tmp_path)
    assert set(implementations(model)) == set(implementations(another)) == {"sdpa"}
    assert "lmkit" not in (tmp_path / "config.json").read_text(encoding="utf-8")
    assert registered == (dict(ALL_ATTENTION_FUNCTIONS), dict(ALL_MASK_ATTENTION_FUNCTIONS))
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is sdpa_attention_forward


@pytest.mark.parametrize("family", ["falcon", "gpt_neo"])
def test_a_model_that_looks_its_attention_up_elsewhere_has_none_of_ours(family: str) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family))
    assert CpuAttention().available(model, torch.device("cpu")) is not None
