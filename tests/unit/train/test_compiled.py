"""Compiled layers compute what the layers compute; whether they are used is decided once, by measuring, and kept."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import torch
from safetensors import safe_open

from lmkit.errors import RecipeError
from lmkit.models.source import find_model
from lmkit.run import Run
from lmkit.train import compiled
from lmkit.train.checkpoint import checkpoint_steps
from lmkit.train.decisions import COMPILE, Decision
from lmkit.train.measured import Bench


class Pretended:
    """In the place of torch.compile: counts, and makes every pass through a layer slower or, against eager ones, faster.

    The clock is pretended, too: it goes on at every look, and by what a pass takes.
    """

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        *,
        compiled_seconds: float = 0.0,
        eager_seconds: float = 0.0,
    ):
        self.made = self.calls = 0
        self.is_eager = False
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", self.look_at_clock)
        monkeypatch.setattr(compiled, "TRIED_ON", ("cpu",))
        pretended = self

        def compile_(function: Any, *, dynamic: bool) -> Any:
            pretended.made += 1

            def run(*arguments: Any, **options: Any) -> Any:
                pretended.calls += not pretended.is_eager
                pretended.now += eager_seconds if pretended.is_eager else compiled_seconds
                return function(*arguments, **options)

            return run

        class Stance:
            def __init__(self, name: str):
                assert name == "force_eager"

            def __enter__(self) -> None:
                pretended.is_eager = True

            def __exit__(self, *_: object) -> None:
                pretended.is_eager = False

        monkeypatch.setattr(torch, "compile", compile_)
        monkeypatch.setattr(torch.compiler, "set_stance", Stance)

    def look_at_clock(self) -> float:
        self.now += 0.01
        return self.now


def choose(
    tiny: Any,
    known: dict[str, Any] | None = None,
    *,
    total: int = 10**6,
    seconds: float | None = None,
    **wish: Any,
) -> Any:
    """What is chosen for a tiny classifier, what takes it back, and its model after it."""
    setup = tiny.setup(tiny.recipe("classification", hardware=wish), total=total)
    model = setup.model
    before = [parameter.clone() for parameter in model.parameters()]
    kept = {} if known is None else {COMPILE: Decision(**known)}
    found = compiled.choose_compile(setup, kept, first=0, seconds=seconds)
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert setup.computation.is_compiled == found.chosen
    return found, setup.computation.undo, model


def is_compiled(model: Any) -> bool:
    changed = {"forward" in vars(layer) for layer in compiled.repeated_layers(model)}
    assert len(changed) == 1
    return changed.pop()


# ---------------------------------------------------------------------------------- the decision


def test_on_a_cpu_nothing_is_tried(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pretended = Pretended(monkeypatch, eager_seconds=0.02)
    monkeypatch.setattr(compiled, "TRIED_ON", ("cuda",))
    found, _, model = choose(tiny)
    assert (found.chosen, pretended.made, is_compiled(model)) == (False, 0, False)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"total": 499}, "499 steps are too few"),
        ({"total": 500}, "minutes"),
        ({"seconds": 60.0}, "about 1 minutes"),
    ],
)
def test_nothing_is_compiled_for_a_short_run(
    tiny: Any, options: Any, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended = Pretended(monkeypatch)
    found, _, model = choose(tiny, **options)
    assert (found.chosen, pretended.made, is_compiled(model)) == (False, 0, False)
    assert why in found.why


@pytest.mark.parametrize(
    ("faster", "is_on"), [({"eager_seconds": 0.02}, True), ({"compiled_seconds": 0.02}, False)]
)
def test_a_long_run_keeps_what_is_faster(
    tiny: Any,
    faster: dict[str, float],
    is_on: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Pretended(monkeypatch, **faster)
    found, layers, model = choose(tiny)
    assert (found.chosen, is_compiled(model)) == (is_on, is_on)
    assert "times the speed" in found.why
    assert f"compile: {'on' if is_on else 'off'}, " in capsys.readouterr().out
    layers.close()
    assert not is_compiled(model)


def test_a_decision_is_kept_for_the_same_wish_and_its_kernels_made_anew(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended = Pretended(monkeypatch, eager_seconds=0.02)
    found, _, _ = choose(tiny)
    monkeypatch.setattr(compiled, "_try", lambda *_, **__: pytest.fail("tried again"))
    known = json.loads(json.dumps(found.to_json()))
    before = pretended.made
    again, _, model = choose(tiny, known)
    assert again == found
    assert is_compiled(model)
    assert pretended.made == 2 * before
    again, _, model = choose(tiny, known, compile="off")
    assert (again.chosen, is_compiled(model)) == (False, False)


def test_where_nothing_can_be_compiled_auto_does_without_and_on_says_why(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "TRIED_ON", ("cpu",))
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    found, _, model = choose(tiny)
    assert (found.chosen, is_compiled(model)) == (False, False)
    assert "no C++ compiler" in found.why
    with pytest.raises(RecipeError, match=r"no C\+\+ compiler") as error:
        choose(tiny, compile="on")
    assert error.value.place == "hardware.compile"


def test_a_layer_that_fails_to_compile_is_left_as_it_was(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compile_(function: Any, *, dynamic: bool) -> Any:
        def run(*_: Any, **__: Any) -> Any:
            raise RuntimeError("no kernel for this\nand much more")

        return run

    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr(compiled, "TRIED_ON", ("cpu",))
    found, _, model = choose(tiny)
    assert (found.chosen, is_compiled(model)) == (False, False)
    assert found.why.endswith("no kernel for this")


# ---------------------------------------------------------------------------------- the kernels


def bench_of(tiny: Any, recipe: Any) -> Bench:
    return Bench(
        recipe, tiny.splits(recipe), find_model(recipe.model.base) if recipe.model.base else None
    )


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore"
)  # dynamo reads what warns when read, and hides it where warnings are no errors
@pytest.mark.parametrize(
    ("task", "architecture", "options"),
    [
        ("clm", "llama", {}),
        ("mlm", "bert", {}),
        ("mlm", "modernbert", {}),
        ("classification", "bert", {"lora": {"rank": 2, "dropout": 0.0}}),
        ("ner", "bert", {"hardware": {"gradient_checkpointing": True}}),
        ("translation", "marian", {}),
        ("translation", "t5", {}),
    ],
)
def test_compiled_layers_have_the_losses_and_gradients_of_eager_ones(
    tiny: Any, task: str, architecture: str, options: dict[str, Any]
) -> None:
    base = tiny.base("mlm", architecture) if "lora" in options else None
    bench = bench_of(tiny, tiny.recipe(task, architecture, base=base, **options))
    cuts = [{"budget": budget, "packed": bench.packing is not None} for budget in (48, 200)]
    eager = [bench.steps(**cut) for cut in cuts]
    with compiled.compile_layers(bench.setup.model):
        fast = [bench.steps(**cut) for cut in cuts]
    for one, other in zip(eager, fast, strict=True):
        loss, gradients = one.differences(other)
        assert max(loss, gradients) <= 1e-5
    assert not is_compiled(bench.setup.model)


def recipe_of(tiny: Any) -> Any:
    return tiny.recipe(
        "mlm",
        train={
            "max_steps": 6,
            "batch_size": 3,
            "dropout": 0.2,
            "eval_every": 3,
            "select_best": "loss",
        },
        hardware={
            "checkpoint_every": 2,
            "keep_checkpoints": 9,
            "micro_batch_tokens": 64,
            "compile": "on",
        },
    )


class Killed(BaseException):
    """As if the power went out."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_run_that_was_killed_goes_on_up_to_rounding(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tiny.fit(recipe_of(tiny))
    recipe, append = recipe_of(tiny), Run.append_log

    def fall(run: Run, line: dict[str, Any]) -> None:
        if line["step"] == 4:
            raise Killed
        append(run, line)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "append_log", fall)
        with pytest.raises(Killed):
            tiny.fit(recipe)
    assert checkpoint_steps(Run(recipe.output))[-1] < 4  # that of step 3 may be there or not
    torch.compiler.reset()  # a new process has no kernels
    resumed = tiny.fit(recipe, resume=True)
    for run in (whole, resumed):
        assert run.manifest["compiled"]["on"] is True
    ours, theirs = (
        [line["loss"] for line in run.log_lines() if "loss" in line] for run in (whole, resumed)
    )
    assert ours == pytest.approx(theirs, rel=1e-5)
    with (
        safe_open(whole.model / "model.safetensors", "pt") as one,
        safe_open(resumed.model / "model.safetensors", "pt") as other,
    ):
        for name in one.keys():  # noqa: SIM118
            torch.testing.assert_close(
                one.get_tensor(name), other.get_tensor(name), atol=1e-5, rtol=1e-4
            )
