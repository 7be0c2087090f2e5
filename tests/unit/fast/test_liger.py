"""Fused norms and gated layers compute what the modules compute, on stand-ins for Liger's; anything else is left as it was."""

from __future__ import annotations

import os
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
)

from lmkit.fast.liger import Kernels, fuse, liger_kernels

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 48,
    "vocab_size": 90,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
PRECISIONS = {"fp32": nullcontext, "bf16": partial(torch.autocast, "cpu", torch.bfloat16)}


def norm(
    states: Any, weight: Any, epsilon: float, added: float, cast: str, in_place: bool
) -> torch.Tensor:
    """As Liger's: ``llama`` multiplies in the input's type, ``gemma`` in fp32, and the output is of the input's type."""
    assert not in_place
    normed = states.float() * torch.rsqrt(states.float().square().mean(-1, keepdim=True) + epsilon)
    if cast == "llama":
        normed = normed.to(states.dtype)
    return (normed * (weight + added)).to(states.dtype)


def silu(gate: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.silu(gate.float()).to(other.dtype) * other


def gelu(gate: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.gelu(gate.float(), approximate="tanh").to(other.dtype) * other


STAND_IN = Kernels(norm, {"silu": silu, "gelu": gelu})


def tiny_model(family: str, auto: Any = AutoModelForCausalLM, **changes: Any) -> Any:
    torch.manual_seed(0)
    return auto.from_config(AutoConfig.for_model(family, **SIZES | changes)).train()


def replaced(model: Any) -> int:
    return sum("forward" in vars(module) for module in model.modules())


def gradients(model: Any) -> list[torch.Tensor]:
    model.zero_grad()
    model(input_ids=torch.arange(12).view(2, 6) + 5).logits.square().sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize(
    ("family", "precision", "norms"),
    [
        ("llama", "fp32", 5),
        ("llama", "bf16", 5),
        ("gemma2", "fp32", 9),
        ("gemma2", "bf16", 9),
        ("qwen3", "fp32", 9),
        ("qwen3", "bf16", 5),  # those of queries and keys make fp32 of bf16, which Liger's do not
    ],
)
def test_norms_and_gated_layers_are_found_by_what_they_compute(
    family: str, precision: str, norms: int
) -> None:
    model = tiny_model(family)
    undo, problem, parts = fuse(model, STAND_IN, precision=PRECISIONS[precision])
    assert (problem, sorted(parts.split(" and "))) == (None, ["2 gated layers", f"{norms} norms"])
    undo.close()
    assert replaced(model) == 0


def test_gradients_of_all_parameters_stay_what_they_were() -> None:
    model = tiny_model("llama")
    before = gradients(model)
    undo, _, _ = fuse(model, STAND_IN, precision=nullcontext)
    assert replaced(model) == 7
    torch.testing.assert_close(gradients(model), before, atol=1e-6, rtol=1e-5)
    undo.close()
    torch.testing.assert_close(gradients(model), before, atol=0, rtol=0)


def test_a_layer_with_another_formula_is_left_as_it_is() -> None:
    """SiLU where the kernel is for GELU alone; LayerNorm; ModernBERT's gate in one matrix with the exact GELU."""
    model = tiny_model("llama")
    _, problem, parts = fuse(model, Kernels(norm, {"gelu": gelu}), precision=nullcontext)
    assert (problem, parts) == (None, "5 norms")
    for family, auto in (
        ("bert", AutoModelForMaskedLM),
        ("modernbert", AutoModelForMaskedLM),
        ("gpt2", AutoModelForCausalLM),
    ):
        model = tiny_model(family, auto, cls_token_id=1, sep_token_id=2)
        _, problem, parts = fuse(model, STAND_IN, precision=nullcontext)
        assert (problem, parts, replaced(model)) == (
            "this model has no layers whose formula liger-kernel is shown to have",
            "",
            0,
        )


def test_kernels_that_compute_something_else_replace_nothing() -> None:
    def louder(*arguments: Any) -> torch.Tensor:
        return norm(*arguments) * 1.0001

    model = tiny_model("llama")
    _, problem, parts = fuse(model, Kernels(louder, {}), precision=nullcontext)
    assert (problem, parts, replaced(model)) == (
        "this model has no layers whose formula liger-kernel is shown to have",
        "",
        0,
    )


def test_wrong_gradients_of_a_norms_weight_are_found_out() -> None:
    def without(states: Any, weight: Any, *rest: Any) -> torch.Tensor:
        return norm(states, weight * 2 - weight.detach(), *rest)

    model = tiny_model("llama")
    _, problem, _ = fuse(model, Kernels(without, {}), precision=nullcontext)
    assert problem is not None
    assert replaced(model) == 0


def test_what_goes_wrong_on_the_whole_model_alone_is_found_out_and_taken_back() -> None:
    """As a kernel that overwrites what another module still needs."""
    calls = []

    def overwriting(states: Any, *rest: Any) -> torch.Tensor:
        calls.append(1)
        if states.shape[1] == 12:  # the whole model's texts
            states.data.mul_(1.5)
        return norm(states, *rest)

    model = tiny_model("llama")
    _, problem, _ = fuse(model, Kernels(overwriting, {}), precision=nullcontext)
    assert problem is not None
    assert "of the norm" in problem
    assert (bool(calls), replaced(model)) == (True, 0)


def test_an_error_of_the_compiler_is_the_reason() -> None:
    class CompilationError(Exception):
        pass

    def failing(*_: Any) -> torch.Tensor:
        raise CompilationError("at 12:3: unknown type\nin norm")

    model = tiny_model("llama")
    _, problem, _ = fuse(model, Kernels(failing, {}), precision=nullcontext)
    assert (problem, replaced(model)) == ("CompilationError: at 12:3: unknown type", 0)


def test_no_memory_is_a_reason() -> None:
    def greedy(*_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("Tried to allocate 9 GiB")

    model = tiny_model("llama")
    _, problem, _ = fuse(model, Kernels(greedy, {}), precision=nullcontext)
    assert (problem, replaced(model)) == ("there is no memory to try them", 0)


def test_what_was_found_out_is_done_again_and_not_tried() -> None:
    model, ways = tiny_model("llama"), dict[str, int]()
    fuse(model, Kernels(norm, {}), precision=nullcontext, ways=ways)[0].close()
    assert sorted(ways.values()) == [-1, 0]

    def rounding(*given: Any) -> torch.Tensor:
        return norm(*given) * 1.0001

    undo, problem, parts = fuse(
        model, Kernels(rounding, {"silu": silu}), precision=nullcontext, ways=ways
    )
    assert (problem, parts) == (None, "5 norms")
    undo.close()


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_a_gated_layer_with_dropout_inside_is_left_as_it_is(share: float) -> None:
    """Evaluation shows nothing of it."""
    model = tiny_model("seed_oss", residual_dropout=share)
    state = torch.get_rng_state()
    _, problem, parts = fuse(model, STAND_IN, precision=nullcontext)
    assert (problem, "gated layers" in parts) == (None, share == 0)
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)


def test_an_encoder_decoder_without_such_layers_says_so() -> None:
    config = AutoConfig.for_model(
        "bart", d_model=32, encoder_layers=1, decoder_layers=1, vocab_size=90
    )
    _, problem, parts = fuse(
        AutoModelForSeq2SeqLM.from_config(config), STAND_IN, precision=nullcontext
    )
    assert (problem, parts) == (
        "this model has no layers whose formula liger-kernel is shown to have",
        "",
    )


def test_adapters_in_a_gated_layer_are_kept() -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        tiny_model("llama"), LoraConfig(target_modules="all-linear", init_lora_weights=False)
    )
    before = [value.clone() for value in _adapter_gradients(model)]
    undo, problem, parts = fuse(model, STAND_IN, precision=nullcontext)
    assert (problem, "2 gated layers" in parts) == (None, True)
    torch.testing.assert_close(_adapter_gradients(model), before, atol=1e-6, rtol=1e-5)
    undo.close()


def test_dropout_of_adapters_is_drawn_as_before() -> None:
    from peft import LoraConfig, get_peft_model

    adapters = LoraConfig(target_modules="all-linear", init_lora_weights=False, lora_dropout=0.5)
    model = get_peft_model(tiny_model("llama"), adapters)
    before = [value.clone() for value in _adapter_gradients(model)]
    undo, problem, parts = fuse(model, STAND_IN, precision=nullcontext)
    assert (problem, "2 gated layers" in parts) == (None, True)
    torch.testing.assert_close(_adapter_gradients(model), before, atol=1e-6, rtol=1e-5)
    undo.close()


def _adapter_gradients(model: Any) -> list[torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(0)
    model(input_ids=torch.arange(12).view(2, 6) + 5).logits.square().sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.requires_grad]


def test_without_liger_the_reason_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in [name for name in sys.modules if name.startswith("liger_kernel")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [])
    assert liger_kernels() == "liger-kernel is not installed (pip install 'lmkit[liger]')"


@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1",
    reason="Liger's kernels without a GPU: pip install liger-kernel, TRITON_INTERPRET=1",
)
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
def test_ligers_own_kernels_are_shown_to_be_the_same_under_tritons_interpreter(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton's interpreter has no libdevice and leaves floats as Python's, so both are filled in."""
    np, interpreter = (
        pytest.importorskip("numpy"),
        pytest.importorskip("triton.runtime.interpreter"),
    )
    tl, geglu = (
        pytest.importorskip("triton.language"),
        pytest.importorskip("liger_kernel.ops.geglu"),
    )
    rms_norm = pytest.importorskip("liger_kernel.ops.rms_norm")
    others = interpreter._implicit_cvt

    def as_tensor(value: Any) -> Any:
        if not isinstance(value, float):
            return others(value)
        return tl.tensor(
            interpreter.TensorHandle(np.array([value], dtype=np.float32), tl.float32), tl.float32
        )

    monkeypatch.setattr(interpreter, "_implicit_cvt", as_tensor)
    monkeypatch.setattr(rms_norm, "rsqrt", lambda x: 1 / tl.sqrt(x))
    monkeypatch.setattr(geglu, "tanh", lambda x: 2 * tl.sigmoid(2 * x) - 1)
    model = tiny_model(family)
    before = gradients(model)
    kernels = liger_kernels()
    assert isinstance(kernels, Kernels)
    undo, problem, parts = fuse(model, kernels, precision=nullcontext)
    assert (problem, "norms" in parts, "2 gated layers" in parts) == (None, True, True)
    torch.testing.assert_close(gradients(model), before, atol=1e-5, rtol=1e-4)
    undo.close()
