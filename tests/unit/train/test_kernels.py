"""Which kernels a run has is decided once, said, kept in the manifest, and the same after --resume."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from lmkit.errors import RecipeError
from lmkit.fast import flash, liger
from lmkit.fast.flash import Kernel
from lmkit.fast.liger import Kernels
from lmkit.fast.packing import Packing
from lmkit.train import kernels
from lmkit.train.decisions import ATTENTION, Decision


def by_text(
    query: Any,
    key: Any,
    value: Any,
    starts: Any,
    longest: int,
    *,
    causal: bool,
    window: Any,
    scale: Any,
    dropout: float,
) -> Any:
    """In the place of a kernel, for encoders that see all of a text."""
    assert not causal
    assert window is None
    parts = []
    for start, end in pairwise(starts.tolist()):
        q, k, v = (states[start:end].transpose(0, 1)[None] for states in (query, key, value))
        attend = torch.nn.functional.scaled_dot_product_attention
        parts.append(attend(q, k, v, scale=scale, dropout_p=dropout)[0].transpose(0, 1))
    return torch.cat(parts)


KERNEL = Kernel("stand-in", by_text)
PACKING = Packing(causal=False)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that is taken for a GPU, in bf16, with a kernel."""
    monkeypatch.setattr(kernels, "TRIED_ON", ("cpu",))
    monkeypatch.setattr(kernels, "choose_precision", lambda _: "bf16")
    monkeypatch.setattr(
        flash,
        "kernels",
        lambda: {"missing": "is not installed (pip install x)", "stand-in": KERNEL},
    )


def choose(
    tiny: Any,
    known: dict[str, Any] | None = None,
    *,
    packing: Packing | None = PACKING,
    **wish: Any,
) -> Any:
    setup = tiny.setup(tiny.recipe("mlm", hardware=wish), packing=packing)
    kept = {} if known is None else {ATTENTION: Decision(**known)}
    return kernels.choose_attention(setup, kept), setup.computation.packing


def choose_kernels(tiny: Any, architecture: str | None = None, **wish: Any) -> Decision:
    setup = tiny.setup(tiny.recipe("clm", architecture, hardware=wish))
    with setup.computation.undo:
        return kernels.choose_kernels(setup, {})


# ---------------------------------------------------------------------------------- attention


def test_on_a_cpu_attention_is_sdpa_without_a_word(
    tiny: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    found, packing = choose(tiny)
    assert (found.chosen, found.why, packing) == ("SDPA", "it needs a GPU", PACKING)
    assert "attention" not in capsys.readouterr().out


def test_flash_that_was_asked_for_on_a_cpu_is_refused(tiny: Any) -> None:
    with pytest.raises(
        RecipeError, match="FlashAttention cannot be used here: it needs a GPU"
    ) as error:
        choose(tiny, attention="flash")
    assert "hardware.attention" in str(error.value)


@pytest.mark.usefixtures("gpu")
def test_a_kernel_that_is_proven_is_used_and_said(
    tiny: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    found, packing = choose(tiny)
    assert found.chosen == "FlashAttention, stand-in"
    assert packing == replace(PACKING, kernel=KERNEL)
    assert (
        "attention of shared rows: FlashAttention, stand-in; shown to compute"
        in capsys.readouterr().out
    )


@pytest.mark.usefixtures("gpu")
def test_a_kernel_that_is_refuted_is_not_used_and_the_reason_said(
    tiny: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    leaking = Kernel(
        "stand-in", lambda q, k, v, *rest, **options: by_text(q, k, v, *rest, **options) + v.mean(0)
    )
    monkeypatch.setattr(
        flash, "kernels", lambda: {"missing": "is not installed", "stand-in": leaking}
    )
    found, packing = choose(tiny)
    assert (found.chosen, packing) == ("SDPA", PACKING)
    said = capsys.readouterr().out
    assert (
        "attention of shared rows: SDPA; missing is not installed; stand-in computes something else"
        in said
    )
    with pytest.raises(
        RecipeError, match="missing is not installed; stand-in computes something else"
    ):
        choose(tiny, attention="flash")


@pytest.mark.usefixtures("gpu")
def test_nothing_is_tried_where_it_cannot_be_used(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flash, "kernels", lambda: pytest.fail("looked for"))
    assert choose(tiny, packing=None)[0].why.startswith("texts share no rows")
    assert choose(tiny, attention="sdpa")[0].why == "the recipe says so"
    monkeypatch.setattr(kernels, "choose_precision", lambda _: "fp32")
    assert "in fp32" in choose(tiny)[0].why


@pytest.mark.usefixtures("gpu")
def test_a_resumed_run_has_the_attention_that_it_had(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    had = json.loads(json.dumps(choose(tiny)[0].to_json()))
    better = {"better": KERNEL, "stand-in": KERNEL}
    monkeypatch.setattr(flash, "kernels", lambda: better)
    assert choose(tiny, had)[0].to_json() == had
    del better["stand-in"]
    with pytest.raises(
        RecipeError, match="so far this run has computed with FlashAttention, stand-in"
    ):
        choose(tiny, had)
    sdpa = had | {"chosen": "SDPA", "why": "nothing was installed"}
    assert choose(tiny, sdpa) == (Decision(**sdpa), PACKING)
    assert choose(tiny, had, attention="sdpa")[0].chosen == "SDPA"


@pytest.mark.usefixtures("gpu")
def test_what_trained_weights_round_more_does_not_end_a_resumed_run(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proof holds for the device and the versions that it was made with."""
    had = json.loads(json.dumps(choose(tiny)[0].to_json()))
    rounding = Kernel("stand-in", lambda *given, **options: by_text(*given, **options) * 1.01)
    monkeypatch.setattr(flash, "kernels", lambda: {"stand-in": rounding})
    assert choose(tiny, had)[0].to_json() == had
    monkeypatch.setattr(kernels, "versions", lambda: {"torch": "1.0"})
    with pytest.raises(
        RecipeError, match="so far this run has computed with FlashAttention, stand-in"
    ):
        choose(tiny, had)


# ---------------------------------------------------------------------------------- norms and gated layers


def norm(
    states: Any, weight: Any, epsilon: float, added: float, cast: str, in_place: bool
) -> torch.Tensor:
    normed = states.float() * torch.rsqrt(states.float().square().mean(-1, keepdim=True) + epsilon)
    return normed.to(states.dtype) * (weight + added)


def test_ligers_kernels_need_a_gpu(tiny: Any, capsys: pytest.CaptureFixture[str]) -> None:
    found = choose_kernels(tiny)
    assert (found.chosen, found.why) == ("PyTorch's", "they need a GPU")
    assert "kernels" not in capsys.readouterr().out
    with pytest.raises(RecipeError, match="they need a GPU"):
        choose_kernels(tiny, kernels="liger")


@pytest.mark.usefixtures("gpu")
def test_what_is_not_installed_is_refused_where_it_was_asked_for(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        liger, "liger_kernels", lambda: "liger-kernel is not installed (pip install 'lmkit[liger]')"
    )
    assert choose_kernels(tiny, "llama").chosen == "PyTorch's"
    with pytest.raises(RecipeError, match=r"lmkit\[liger\]"):
        choose_kernels(tiny, "llama", kernels="liger")


# ---------------------------------------------------------------------------------- a whole run


@pytest.mark.usefixtures("gpu")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("task", ["mlm", "classification"])
def test_a_run_with_flash_learns_what_a_run_with_sdpa_learns(tiny: Any, task: str) -> None:
    """Without dropout; and its model is plain, as the check of the reload wants it."""
    wish = {"train": {"max_steps": 4, "dropout": 0.0}, "logging": {"every": 1}}
    losses = {}
    for attention in ("sdpa", "flash"):
        run = tiny.fit(tiny.recipe(task, hardware={"attention": attention}, **wish))
        losses[attention] = [line["loss"] for line in run.log_lines() if "loss" in line]
        assert (
            run.manifest["attention"]["on"]
            == {"sdpa": "SDPA", "flash": "FlashAttention, stand-in"}[attention]
        )
        assert "lmkit_flash" not in (run.model / "config.json").read_text()
    assert losses["flash"] == pytest.approx(losses["sdpa"], rel=1e-5)


@pytest.mark.usefixtures("gpu")
@pytest.mark.filterwarnings("ignore")
def test_a_run_with_fused_norms_learns_the_same_and_saves_a_plain_model(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(liger, "liger_kernels", lambda: Kernels(norm, {}))
    losses = {}
    for wanted in ("torch", "liger"):
        recipe = tiny.recipe(
            "clm",
            "llama",
            hardware={"kernels": wanted, "attention": "sdpa"},
            train={"max_steps": 4},
            logging={"every": 1},
        )
        run = tiny.fit(recipe)
        losses[wanted] = [line["loss"] for line in run.log_lines() if "loss" in line]
        assert run.manifest["kernels"]["on"] == {"torch": "PyTorch's", "liger": "Liger's"}[wanted]
    assert losses["liger"] == pytest.approx(losses["torch"], rel=1e-5)
