"""The attention without masks computes what SDPA computes with one, on a stand-in for its kernels; what computes anything else is found out."""

from __future__ import annotations

import contextlib
import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForTokenClassification,
)

from lmkit.batch import IGNORE, Batch, lay_out
from lmkit.data.plan import rows_to_share
from lmkit.fast import flash
from lmkit.fast.flash import Kernel
from lmkit.fast.flash_proof import refuted
from lmkit.fast.packing import Packing, find_packing
from lmkit.fast.token_loss import token_loss
from lmkit.fast.unpadding import find_unpadding, shared_rows
from lmkit.models.build import checkpoint_gradients

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 90,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}
WINDOWED = {
    "num_key_value_heads": 1,
    "head_dim": 16,
    "use_sliding_window": True,
    "sliding_window": 8,
    "max_window_layers": 1,
}
MODELS = {
    "bert": (AutoModelForMaskedLM, {}),
    "roberta": (AutoModelForTokenClassification, {}),
    "modernbert": (AutoModelForMaskedLM, {}),
    "llama": (AutoModelForCausalLM, {"num_key_value_heads": 1}),
    "gpt2": (AutoModelForCausalLM, {}),
    "qwen3": (AutoModelForCausalLM, WINDOWED),
}
LONGEST = 200


def by_text(
    query: Any,
    key: Any,
    value: Any,
    starts: Any,
    longest: int,
    *,
    causal: bool,
    window: int | None,
    scale: float | None,
    dropout: float,
    leak: float = 0.0,
    off_by: int = 0,
) -> torch.Tensor:
    """In the place of a kernel: SDPA on each text; ``leak`` adds a little of all texts, ``off_by`` widens windows."""
    groups, found = query.shape[1] // key.shape[1], []
    for start, end in pairwise(starts.tolist()):
        q, k, v = (states[start:end].transpose(0, 1)[None] for states in (query, key, value))
        k, v = (states.repeat_interleave(groups, 1) for states in (k, v))
        place = torch.arange(end - start)
        near = (place[:, None] - place).abs() <= (longest if window is None else window + off_by)
        mask = near & (place[:, None] >= place) if causal else near
        attend = torch.nn.functional.scaled_dot_product_attention
        found.append(
            attend(q, k, v, attn_mask=mask, scale=scale, dropout_p=dropout)[0].transpose(0, 1)
        )
    everything = value.repeat_interleave(groups, 1).mean(0, keepdim=True)
    return torch.cat(found) + leak * everything if leak else torch.cat(found)


def without_dropout(*arguments: Any, dropout: float, **options: Any) -> torch.Tensor:
    if dropout:
        raise ValueError("has no dropout")
    return by_text(*arguments, dropout=dropout, **options)


STAND_IN = Kernel("stand-in", by_text)
PRECISIONS = {"fp32": nullcontext, "bf16": partial(torch.autocast, "cpu", torch.bfloat16)}


def tiny_model(family: str, **changes: Any) -> Any:
    auto, config = MODELS[family]
    torch.manual_seed(0)
    return auto.from_config(AutoConfig.for_model(family, **TINY | config | changes)).eval()


def packing_of(model: Any, kernel: Kernel | None = STAND_IN) -> Packing:
    find = find_packing if "LM" in type(model).__name__ else find_unpadding
    packing = find(model, longest=LONGEST)
    assert packing is not None
    return replace(packing, kernel=kernel)


def why_not(family: str, kernel: Any, *, precision: str = "fp32", **changes: Any) -> str | None:
    model = tiny_model(family, **changes)
    return refuted(
        model,
        packing_of(model, Kernel("tried", kernel)),
        longest=LONGEST,
        precision=PRECISIONS[precision],
    )


# ---------------------------------------------------------------------------------- the same numbers


@pytest.mark.parametrize("family", [family for family in MODELS if family != "roberta"])
def test_packed_rows_have_the_logits_and_gradients_that_they_have_with_a_mask(family: str) -> None:
    model = tiny_model(family)
    packing = packing_of(model)
    pieces = [
        [{"input_ids": [(3 * i + n) % 90 for i in range(n)]} for n in row]
        for row in ((5, 150, 1), (40,))
    ]
    batch = lay_out(pieces, columns={"input_ids": 0}, packed=True)
    there = batch.segments > 0
    results = []
    for each in (replace(packing, kernel=None), packing):
        model.zero_grad()
        with shared_rows(model, each, batch) as given:
            logits = model(**given.inputs).logits
            logits[there].square().sum().backward()
        results.append(
            (logits.detach()[there], [parameter.grad.clone() for parameter in model.parameters()])
        )
    torch.testing.assert_close(results[1][0], results[0][0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(results[1][1], results[0][1], atol=1e-4, rtol=1e-4)


def test_texts_that_share_rows_have_the_logits_that_they_have_apart() -> None:
    model, lengths = tiny_model("roberta"), [9, 3, 30, 4, 5]
    mask = (torch.arange(30) < torch.tensor(lengths)[:, None]).long()
    inputs = {"input_ids": torch.arange(150).view(5, 30) % 80 + 5, "attention_mask": mask}
    wanted = model(**inputs).logits
    places = torch.from_numpy(rows_to_share(lengths))
    batch = Batch(inputs, torch.full_like(mask, IGNORE), shared=places)
    with shared_rows(model, packing_of(model), batch) as given:
        found = model(**given.inputs).logits
    torch.testing.assert_close(found[mask == 1], wanted[mask == 1], atol=1e-5, rtol=1e-5)


def test_the_loss_is_still_computed_without_logits() -> None:
    """Its own trial runs in the middle of a batch, on texts of its own."""
    model = tiny_model("llama")
    batch = lay_out(
        [[{"input_ids": [5, 6, 7]}, {"input_ids": [8, 9]}]], columns={"input_ids": 0}, packed=True
    )
    with shared_rows(model, packing_of(model), batch) as given:
        loss = token_loss(model, given.inputs, batch.inputs["input_ids"], label_smoothing=0.0)
        logits = model(**given.inputs).logits
    wanted = torch.nn.functional.cross_entropy(
        logits[0], batch.inputs["input_ids"][0], reduction="sum"
    )
    assert loss is not None
    torch.testing.assert_close(loss, wanted)


def test_layers_that_are_computed_again_still_know_their_rows() -> None:
    model = tiny_model("llama").train()
    checkpoint_gradients(model)
    batch = lay_out(
        [[{"input_ids": [5, 6, 7]}, {"input_ids": [8, 9]}]], columns={"input_ids": 0}, packed=True
    )
    with shared_rows(model, packing_of(model), batch) as given:
        model(**given.inputs).logits.sum().backward()
    assert model.config._attn_implementation == "sdpa"


def test_after_a_batch_the_model_attends_as_before() -> None:
    model = tiny_model("bert")
    before = model.config._attn_implementation
    batch = lay_out(
        [[{"input_ids": [5, 6, 7]}, {"input_ids": [8, 9]}]], columns={"input_ids": 0}, packed=True
    )
    with contextlib.suppress(ZeroDivisionError), shared_rows(model, packing_of(model), batch):
        assert model.config._attn_implementation == flash.NAME
        raise ZeroDivisionError
    assert (model.config._attn_implementation, flash._rows) == (before, [])


def test_a_batch_with_one_text_a_row_keeps_sdpa_and_its_mask() -> None:
    model = tiny_model("bert")
    batch = lay_out([[{"input_ids": [5, 6]}]], columns={"input_ids": 0}, packed=False)
    with shared_rows(model, packing_of(model), batch) as given:
        assert model.config._attn_implementation == "sdpa"
        assert given.inputs["attention_mask"] is batch.inputs["attention_mask"]


# ---------------------------------------------------------------------------------- the proof


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("family", MODELS)
def test_what_computes_the_same_is_not_refuted(family: str, precision: str) -> None:
    assert why_not(family, by_text, precision=precision) is None


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_text_that_sees_a_little_of_another_is_found_out(family: str, precision: str) -> None:
    assert why_not(family, partial(by_text, leak=1e-6), precision=precision) is not None


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("family", ["modernbert", "qwen3"])
def test_a_window_of_another_width_is_found_out(family: str, precision: str) -> None:
    """Also where rounding would hide it."""
    assert why_not(family, partial(by_text, off_by=1), precision=precision) is not None
    assert why_not(family, partial(by_text, off_by=-1), precision=precision) is not None


def test_another_scale_is_found_out() -> None:
    def halved(*arguments: Any, scale: float | None, **options: Any) -> torch.Tensor:
        return by_text(*arguments, scale=None if scale is None else scale / 2, **options)

    assert "something else" in (why_not("modernbert", halved, precision="bf16") or "")


def test_gradients_that_are_wrong_are_found_out() -> None:
    class Louder(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, states: torch.Tensor) -> torch.Tensor:
            return states.clone()

        @staticmethod
        def backward(context: Any, *gradients: torch.Tensor) -> torch.Tensor:
            return gradients[0] * 1.5

    def wrong(query: Any, *arguments: Any, **options: Any) -> torch.Tensor:
        return (
            by_text(query, *arguments, **options)
            if not query.requires_grad
            else Louder.apply(by_text(query, *arguments, **options))
        )  # type: ignore[no-any-return, no-untyped-call]

    assert "computes something else" in (why_not("bert", wrong, precision="bf16") or "")


def test_a_kernel_without_dropout_is_refused_where_attention_has_it() -> None:
    assert why_not("bert", without_dropout) == "has no dropout"
    assert why_not("bert", without_dropout, attention_probs_dropout_prob=0.0) is None


def test_an_error_of_the_kernel_is_the_reason() -> None:
    def failing(*_: Any, **__: Any) -> torch.Tensor:
        raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.\nat flash_api.cpp")

    assert why_not("bert", failing) == "FlashAttention only supports Ampere GPUs or newer."


def test_a_broken_package_is_the_reason_also_where_it_says_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Broken:
        def find_spec(self, name: str, *_: Any) -> None:
            if name.partition(".")[0] == "flash_attn":
                raise AttributeError

    monkeypatch.delitem(sys.modules, "flash_attn", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    assert flash.kernels()["flash-attn's"] == "cannot be loaded: AttributeError"


def test_no_memory_is_a_reason() -> None:
    def greedy(*_: Any, **__: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("Tried to allocate 9 GiB")

    assert why_not("bert", greedy) == "finds no memory to be tried"


def test_gradients_that_come_out_otherwise_each_time_are_refused_where_that_counts() -> None:
    """By less than what rounding is."""
    calls = []

    def unsteady(query: Any, *arguments: Any, **options: Any) -> torch.Tensor:
        calls.append(1)
        found = by_text(query, *arguments, **options)
        return found.detach() + (found - found.detach()) * (1 + 1e-6 * (len(calls) % 2))

    model = tiny_model("bert")
    packing = packing_of(model, Kernel("tried", unsteady))
    options: Any = {"longest": LONGEST, "precision": nullcontext}
    assert refuted(model, packing, **options) is None
    assert "adds in another order each time" in (
        refuted(model, packing, repeatable=True, **options) or ""
    )
    assert refuted(model, packing_of(model), repeatable=True, **options) is None


def test_what_was_shown_before_has_to_keep_texts_apart_still() -> None:
    model = tiny_model("bert")
    rounding = Kernel("tried", lambda *given, **options: by_text(*given, **options) * 1.01)
    leaking = Kernel("tried", partial(by_text, leak=0.1))
    options: Any = {"longest": LONGEST, "precision": nullcontext}
    assert refuted(model, packing_of(model, rounding), **options) is not None
    assert refuted(model, packing_of(model, rounding), again=True, **options) is None
    assert "see another" in (
        refuted(model, packing_of(model, leaking), again=True, **options) or ""
    )


def test_an_attention_of_the_models_own_is_found_out() -> None:
    model = tiny_model("bert")
    packing = packing_of(model)
    for layer in model.bert.encoder.layer:  # as code that never asks what config says
        layer.attention.self.config = type(model.config)(**TINY | {"attn_implementation": "sdpa"})
        layer.attention.self.config._attn_implementation = "sdpa"
    assert "its attention is its own" in (
        refuted(model, packing, longest=LONGEST, precision=nullcontext) or ""
    )


def test_the_proof_leaves_the_model_as_it_was() -> None:
    model = tiny_model("llama").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert refuted(model, packing_of(model), longest=LONGEST, precision=nullcontext) is None
    assert model.training
    assert model.config._attn_implementation == "sdpa"
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.get_input_embeddings()._forward_hooks


# ---------------------------------------------------------------------------------- what there is


def test_a_kernel_that_is_not_installed_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "flash_attn", raising=False)
    monkeypatch.setattr(sys, "path", [])
    assert flash.kernels()["flash-attn's"] == "is not installed (pip install flash-attn)"


@pytest.mark.parametrize(
    ("causal", "window", "sides"),
    [(True, None, (-1, 0)), (False, None, (-1, -1)), (False, 64, (64, 64)), (True, 7, (7, 0))],
)
def test_both_kernels_are_called_by_the_names_of_their_arguments(
    causal: bool, window: int | None, sides: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in flash-attn 2.8 and torch 2.13; what they compute can only be tried on a GPU."""
    called: list[Any] = []

    def flash_attn_varlen_func(
        q: Any,
        k: Any,
        v: Any,
        cu_seqlens_q: Any,
        cu_seqlens_k: Any,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: tuple[int, int] = (-1, -1),
        deterministic: bool = False,
    ) -> Any:
        assert deterministic
        called.append((causal, window_size, dropout_p, softmax_scale, max_seqlen_q, max_seqlen_k))
        return q

    module = ModuleType("flash_attn")
    module.flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    torchs = pytest.importorskip("torch.nn.attention.varlen")

    def varlen_attn(
        query: Any,
        key: Any,
        value: Any,
        cu_seq_q: Any,
        cu_seq_k: Any,
        max_q: int,
        max_k: int,
        *,
        scale: float | None = None,
        window_size: tuple[int, int] = (-1, -1),
        enable_gqa: bool = False,
    ) -> Any:
        called.append((enable_gqa, window_size, 0.0, scale, max_q, max_k))
        return query

    monkeypatch.setattr(torchs, "varlen_attn", varlen_attn)
    query, starts = torch.zeros(5, 2, 8), torch.tensor([0, 5])
    for name, dropout in (("flash-attn's", 0.1), ("PyTorch's", 0.0)):
        kernel = flash.kernels()[name]
        assert isinstance(kernel, Kernel)
        kernel.attend(
            query,
            query[:, :1],
            query[:, :1],
            starts,
            5,
            causal=causal,
            window=window,
            scale=0.5,
            dropout=dropout,
        )
        with (
            pytest.raises(ValueError, match="no dropout") if name == "PyTorch's" else nullcontext()
        ):
            kernel.attend(
                query, query, query, starts, 5, causal=causal, window=window, scale=0.5, dropout=0.1
            )
    assert called[0] == (causal, sides, 0.1, 0.5, 5, 5)
    assert called[-1] == (True, sides, 0.0, 0.5, 5, 5)
