"""What one optimizer step learns, over every task: the same however it is cut, and what Hugging Face's own loss says.

Elsewhere gradient accumulation multiplied gradients by 4 [transformers#47688, #34191].
"""

from __future__ import annotations

from pathlib import Path
from runpy import run_path
from typing import Any

import pytest
import torch

from lmkit.batch import IGNORE, Batch
from lmkit.data.plan import Plan
from lmkit.fast.unpadding import choose_packing
from lmkit.tasks.registry import names, problem
from lmkit.train.loop import Step, train_steps

# the rows of the table in docs/correctness.md
FAMILIES: dict[str, tuple[str, ...]] = run_path(
    str(Path(__file__).parents[2] / "docs" / "make_correctness.py")
)["FAMILIES"]
CASES = [
    (task, architecture)
    for task in names()
    for architecture in FAMILIES.get(task, (problem(task).smoke_preset,))
]
CASES += [(kind, "bert") for kind in ("multi_label", "pairs", "regression")]
BATCH = 3  # the last step of the epoch takes what is left
ALL_AT_ONCE = 10**6


class Recorder(torch.optim.SGD):
    """Keeps the gradients and changes nothing."""

    def step(self, closure: Any = None) -> None:
        self.gradients = [
            p.grad.clone()
            for group in self.param_groups
            for p in group["params"]
            if p.grad is not None
        ]


def steps_of(
    tiny: Any, recipe: Any, model: Any, *, budget: int, packing: Any = None
) -> list[tuple[Step, list[torch.Tensor]]]:
    """The steps of an epoch with their gradients, through the training loop."""
    recorder = Recorder(model.parameters(), lr=0.0)
    setup = tiny.setup(recipe, model, optimizer=recorder, budget=budget, packing=packing)
    return [(step, recorder.gradients) for step in train_steps(setup)]


def assert_same(
    left: list[tuple[Step, list[torch.Tensor]]], right: list[tuple[Step, list[torch.Tensor]]]
) -> None:
    for (one, its_gradients), (other, other_gradients) in zip(left, right, strict=True):
        assert one.items == other.items
        torch.testing.assert_close(one.loss, other.loss, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(one.grad_norm, other.grad_norm, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(its_gradients, other_gradients, atol=1e-5, rtol=1e-5)
        assert any(gradient.abs().max() > 1e-3 for gradient in its_gradients)


def row_of(batch: Batch, number: int) -> Batch:
    """One row of a batch."""
    row = slice(number, number + 1)
    inputs = {name: tensor[row] for name, tensor in batch.inputs.items()}
    return Batch(inputs, batch.labels[row])


def hugging_face_loss(model: Any, batch: Batch, task: str) -> torch.Tensor:
    """``model(**inputs, labels=...).loss``; causal models shift labels themselves, so the last label becomes an input."""
    inputs = dict(batch.inputs)
    labels = batch.labels
    if task == "clm":
        ends = inputs["attention_mask"].sum(1)
        extended = torch.nn.functional.pad(inputs["input_ids"], (0, 1))
        extended[range(len(ends)), ends] = labels[range(len(ends)), ends - 1]
        mask = torch.nn.functional.pad(inputs["attention_mask"], (1, 0), value=1)
        inputs = {"input_ids": extended, "attention_mask": mask}
        labels = torch.nn.functional.pad(labels, (1, 0), value=IGNORE)
    if task == "multi_label":
        labels = labels.float()
    loss: torch.Tensor = model(**inputs, labels=labels).loss
    return loss


def test_every_task_has_rows_to_be_tested_with(tiny: Any) -> None:
    for task in names():
        assert len(tiny.prepared(tiny.recipe(task)).encoded["train"]) > 1


@pytest.fixture(scope="module")
def whole(tiny: Any) -> Any:
    """The steps of an epoch, each as one micro-batch, with the model they leave unchanged."""
    made: dict[tuple[str, str], Any] = {}

    def find(
        task: str, architecture: str
    ) -> tuple[Any, Any, list[tuple[Step, list[torch.Tensor]]]]:
        if (task, architecture) not in made:
            recipe = tiny.recipe(
                task, architecture, train={"batch_size": BATCH, "max_grad_norm": 1e9}
            )
            model = tiny.model(recipe)
            made[task, architecture] = (
                recipe,
                model,
                steps_of(tiny, recipe, model, budget=ALL_AT_ONCE),
            )
        return made[task, architecture]  # type: ignore[no-any-return]

    return find


@pytest.mark.parametrize(("task", "architecture"), CASES)
def test_a_step_is_the_same_one_example_at_a_time_and_all_at_once(
    tiny: Any, whole: Any, task: str, architecture: str
) -> None:
    recipe, model, steps = whole(task, architecture)
    assert len(steps) > 1
    assert_same(steps_of(tiny, recipe, model, budget=1), steps)
    if packing := choose_packing(recipe, problem(recipe.task), model):
        assert_same(steps_of(tiny, recipe, model, budget=1, packing=packing), steps)
        assert_same(steps_of(tiny, recipe, model, budget=ALL_AT_ONCE, packing=packing), steps)


@pytest.mark.parametrize("architecture", ["deberta-v2", "distilbert"])
def test_what_is_left_between_two_splits_is_rounding(
    tiny: Any, architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64 it is 1e-14 of the gradients of its own step, however much of these cancels out."""
    monkeypatch.setattr(
        torch.Tensor, "float", torch.Tensor.double
    )  # losses are computed in no less than fp32
    recipe = tiny.recipe(
        "classification", architecture, train={"batch_size": BATCH, "max_grad_norm": 1e9}
    )
    model = tiny.model(recipe).double()
    splits = (steps_of(tiny, recipe, model, budget=budget) for budget in (ALL_AT_ONCE, 1))
    for (_, gradients), (_, others) in zip(*splits, strict=True):
        largest = max(gradient.abs().max() for gradient in gradients)
        assert all(
            (mine - its).abs().max() < 1e-11 * largest
            for mine, its in zip(gradients, others, strict=True)
        )


@pytest.mark.parametrize(("task", "architecture"), CASES)
def test_loss_and_gradients_are_those_of_hugging_face(
    tiny: Any, whole: Any, task: str, architecture: str
) -> None:
    recipe, model, steps = whole(task, architecture)
    prepared = tiny.prepared(recipe)
    plan = Plan(len(prepared.encoded["train"]), BATCH, recipe.seed)
    for number, (step, gradients) in enumerate(steps):
        batch = prepared.task.collate(
            [prepared.encoded["train"].example(int(i)) for i in plan.examples(number)], epoch=0
        )
        model.zero_grad()
        if (weights := batch.weights) is None:
            loss = hugging_face_loss(model, batch, task)
        else:  # of the windows of a long text, which together count as one
            each = [hugging_face_loss(model, row_of(batch, i), task) for i in range(len(weights))]
            loss = (torch.stack(each) * weights).sum() / weights.sum()
        loss.backward()
        theirs = [p.grad for p in model.parameters() if p.grad is not None]
        torch.testing.assert_close(step.loss.float(), loss.detach(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(gradients, theirs, atol=1e-5, rtol=1e-5)
    model.zero_grad()
