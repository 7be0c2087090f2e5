"""Learning rates at literal points, and what is decayed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lmkit.recipe.schema import Train
from lmkit.train.loop import train_steps
from lmkit.train.optim import build_optimizer, set_learning_rate
from lmkit.train.schedule import learning_rate


def rates(schedule: str, warmup: float, *, total: int = 10) -> list[float]:
    train = Train(schedule=schedule, warmup=warmup, learning_rate=1.0)  # type: ignore[arg-type]
    return [round(learning_rate(train, step=step, total=total), 4) for step in range(total)]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]),
        ("cosine", [1, 0.9755, 0.9045, 0.7939, 0.6545, 0.5, 0.3455, 0.2061, 0.0955, 0.0245]),
        ("wsd", [1, 1, 1, 1, 1, 1, 1, 1, 1, 0.5]),
    ],
)
def test_schedules_without_warm_up(schedule: str, expected: list[float]) -> None:
    assert rates(schedule, 0) == expected


@pytest.mark.parametrize("warmup", [0.4, 4])
@pytest.mark.parametrize(
    ("schedule", "after"),
    [
        ("constant", [1, 1, 1, 1, 1, 1]),
        ("linear", [1, 0.8333, 0.6667, 0.5, 0.3333, 0.1667]),
        ("cosine", [1, 0.933, 0.75, 0.5, 0.25, 0.067]),
        ("wsd", [1, 1, 1, 1, 1, 0.8333]),
    ],
)
def test_a_warm_up_of_four_steps_in_ten(schedule: str, after: list[float], warmup: float) -> None:
    assert rates(schedule, warmup) == [0.25, 0.5, 0.75, 1.0, *after]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_rate_after_the_last_step_would_be_zero(schedule: str) -> None:
    """The horizon is the planned number of steps, whatever the number of processes [Accelerate's prepared scheduler]."""
    train = Train(schedule=schedule, warmup=0.06, learning_rate=1.0)  # type: ignore[arg-type]
    assert learning_rate(train, step=1000, total=1000) == pytest.approx(0)
    assert 0 < learning_rate(train, step=999, total=1000) < 0.002


def test_with_a_limit_of_time_the_share_of_it_decides() -> None:
    train = Train(schedule="linear", warmup=0.1, learning_rate=1.0)
    assert learning_rate(train, step=7, total=10**8, share=0.05) == pytest.approx(0.5)
    assert learning_rate(train, step=7, total=10**8, share=0.1) == 1.0
    assert learning_rate(train, step=7, total=10**8, share=0.55) == pytest.approx(0.5)
    assert learning_rate(train, step=7, total=10**8, share=1.0) == 0.0
    assert learning_rate(train, step=0, total=10**8, share=0.0) > 0
    in_steps = Train(schedule="constant", warmup=4, learning_rate=1.0)
    assert learning_rate(in_steps, step=1, total=10**8, share=0.9) == 0.5


def test_a_warm_up_longer_than_the_run_only_rises() -> None:
    assert rates("linear", 20) == [0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5]


def test_matrices_are_decayed_norms_and_biases_are_not(tiny: Any) -> None:
    model = tiny.model(tiny.recipe("classification"))
    optimizer = build_optimizer(
        model, Train(weight_decay=0.1, learning_rate=1e-3, beta1=0.8, beta2=0.95, epsilon=1e-6)
    )
    decayed, plain = optimizer.param_groups
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert all(
        names[p].endswith("weight") and "LayerNorm" not in names[p] for p in decayed["params"]
    )
    assert all(names[p].endswith("bias") or "LayerNorm" in names[p] for p in plain["params"])
    assert len(decayed["params"]) + len(plain["params"]) == len(names)
    assert (decayed["betas"], decayed["eps"]) == ((0.8, 0.95), 1e-6)


def test_frozen_weights_are_not_the_optimizers(tiny: Any) -> None:
    model = tiny.model(tiny.recipe("classification"))
    model.bert.requires_grad_(False)
    optimizer = build_optimizer(model, Train())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2


def test_the_rate_is_set_in_every_group() -> None:
    layer = torch.nn.Linear(2, 2)
    optimizer = build_optimizer(layer, Train())
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_the_b_matrices_of_loraplus_learn_faster_as_pefts_do(tiny: Any) -> None:
    from peft.optimizers import create_loraplus_optimizer

    model = tiny.model(tiny.recipe("ner", base=tiny.base("mlm"), lora={"rank": 2}))
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    ours = build_optimizer(model, Train(learning_rate=1e-3), lora_ratio=16)
    theirs = create_loraplus_optimizer(model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16)
    rates = [
        {
            name_of[id(p)]: group["lr"]
            for group in optimizer.param_groups
            for p in group["params"]
            if "lora_" in name_of[id(p)]
        }
        for optimizer in (ours, theirs)
    ]
    assert rates[0] == pytest.approx(rates[1])
    assert set(rates[0].values()) == {1e-3, 1.6e-2}
    classifier = [
        group["lr"]
        for group in ours.param_groups
        for p in group["params"]
        if "classifier" in name_of[id(p)]
    ]
    assert classifier == [1e-3, 1e-3]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_run_takes_the_rate_of_its_b_matrices_from_the_recipe(tiny: Any) -> None:
    """They begin at zero, and Adam's first step is as long as its rate."""
    lora = {"rank": 2, "learning_rate_ratio": 8}
    run = tiny.fit(
        tiny.recipe(
            "ner", base=tiny.base("mlm"), lora=lora, train={"max_steps": 1, "schedule": "constant"}
        )
    )
    weights = load_file(run.model / "adapter_model.safetensors")
    longest = [weight.abs().max().item() for name, weight in weights.items() if "lora_B" in name]
    assert longest == pytest.approx([8e-3] * len(longest), rel=1e-3)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_every_group_follows_the_schedule_to_its_last_step(tiny: Any) -> None:
    """Layer decay 0.5 over two layers, times LoRA+'s ratio for B."""
    recipe = tiny.recipe(
        "ner",
        base=tiny.base("mlm"),
        lora={"rank": 2, "learning_rate_ratio": 4},
        train={"layer_decay": 0.5, "max_steps": 3},
    )
    model = tiny.model(recipe)
    optimizer = build_optimizer(model, recipe.train, lora_ratio=4)
    steps = train_steps(tiny.setup(recipe, model, optimizer=optimizer, budget=10**6, total=3))
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    for number, step in enumerate(steps):
        planned = learning_rate(recipe.train, step=number, total=3)
        assert step.learning_rate == planned
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                name = name_of[id(parameter)]
                layer = 0.25 if ".layer.0." in name else 0.5 if ".layer.1." in name else 1.0
                assert group["lr"] == pytest.approx(
                    planned * layer * (4 if ".lora_B." in name else 1)
                ), name
    assert step.learning_rate == learning_rate(recipe.train, step=2, total=3) > 0


@pytest.mark.parametrize("limit", [0.01, 1e6, float("inf")])
def test_gradients_that_are_clipped_in_the_update_give_the_update_of_clipped_gradients(
    tiny: Any, limit: float
) -> None:
    torch.manual_seed(2)
    start, gradients = torch.randn(50, 70), [torch.randn(50, 70) for _ in range(3)]
    gradients[1].mul_(1e-7)  # below the limit: what the step before was divided by is forgotten
    found = []
    for clipped_apart in (True, False):
        weight = torch.nn.Parameter(start.clone())
        optimizer = tiny.accelerator.prepare_optimizer(
            torch.optim.AdamW([weight], lr=0.1, fused=True)
        )
        norms = []
        for gradient in gradients:
            weight.grad = gradient.clone()
            if clipped_apart:
                norms.append(torch.nn.utils.clip_grad_norm_([weight], limit))
            else:
                norms.append(tiny.processes.clip(optimizer, [weight], limit))
            optimizer.step()
        found.append((weight.detach(), optimizer.state[weight]["exp_avg_sq"], torch.stack(norms)))
    for apart, together in zip(*found, strict=True):
        torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-7)


def test_an_update_that_knows_no_scale_gets_clipped_gradients(tiny: Any) -> None:
    weight = torch.nn.Parameter(torch.ones(4))
    optimizer = tiny.accelerator.prepare_optimizer(torch.optim.AdamW([weight], fused=False))
    weight.grad = torch.full((4,), 3.0)
    assert tiny.processes.clip(optimizer, [weight], 1.0) == 6
    torch.testing.assert_close(weight.grad, torch.full((4,), 0.5))


def test_gradients_in_half_precision_are_clipped_in_the_update_too(tiny: Any) -> None:
    weight = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = tiny.accelerator.prepare_optimizer(torch.optim.AdamW([weight], fused=True))
    weight.grad = torch.full((4,), 3.0, dtype=torch.bfloat16)
    tiny.processes.clip(optimizer, [weight], 1.0)
    assert optimizer.optimizer.grad_scale.dtype == torch.float32
    optimizer.step()
