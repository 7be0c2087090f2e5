"""How pieces become tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lmkit.batch import IGNORE, keyed_rng, lay_out, pad
from lmkit.errors import RecipeError
from lmkit.recipe import Recipe
from lmkit.tasks.registry import names, problem

EXAMPLES = [
    [{"ids": [5, 6], "labels": [1, IGNORE]}, {"ids": [7], "labels": [2]}],
    [{"ids": [8, 9], "labels": [3, 4]}],
]
COLUMNS = {"ids": 0, "labels": IGNORE}


def test_unpacked_every_piece_has_a_row() -> None:
    batch = lay_out(EXAMPLES, columns=COLUMNS, packed=False)
    assert batch.inputs["ids"].tolist() == [[5, 6], [7, 0], [8, 9]]
    assert batch.labels.tolist() == [[1, IGNORE], [2, IGNORE], [3, 4]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1], [1, 0], [1, 1]]
    assert batch.segments is None


def test_packed_every_example_has_a_row() -> None:
    batch = lay_out(EXAMPLES, columns=COLUMNS, packed=True)
    assert batch.inputs["ids"].tolist() == [[5, 6, 7], [8, 9, 0]]
    assert batch.labels.tolist() == [[1, IGNORE, 2], [3, 4, IGNORE]]
    assert batch.segments.tolist() == [[1, 1, 2], [1, 1, 0]]
    assert batch.inputs["position_ids"].tolist() == [[0, 1, 0], [0, 1, 0]]


def test_nothing_is_padded_to_nothing() -> None:
    assert pad([], 0).shape == (0, 0)
    assert pad([[], []], 0).shape == (2, 0)


def test_a_key_draws_the_same_whatever_was_drawn_before() -> None:
    keyed_rng(1, 2, 3).random(100)
    torch.rand(3)
    assert keyed_rng(13, 0, 7).random(3).tolist() == keyed_rng(13, 0, 7).random(3).tolist()
    draws = [
        keyed_rng(*key).random()
        for key in [(13, 0, 7), (13, 0, 8), (13, 1, 7), (14, 0, 7), (13, 7, 0)]
    ]
    assert len(set(draws)) == 5


def test_label_smoothing_is_for_training_alone(tiny: Any) -> None:
    recipe = tiny.recipe("classification", train={"label_smoothing": 0.2})
    prepared, model = tiny.prepared(recipe), tiny.model(recipe)
    torch.nn.init.normal_(model.classifier.weight)
    batch = prepared.task.collate([prepared.encoded["train"].example(0)])
    logits, labels = prepared.task.logits(model, batch)
    plain = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    smoothed = torch.nn.functional.cross_entropy(
        logits, labels, reduction="sum", label_smoothing=0.2
    )
    assert prepared.task.loss(model.eval(), batch).item() == pytest.approx(plain.item())
    assert prepared.task.loss(model.train(), batch).item() == pytest.approx(smoothed.item())
    assert plain.item() != pytest.approx(smoothed.item(), rel=1e-4)


@pytest.mark.parametrize("name", ["ner", "translation"])
def test_labels_of_tokens_are_smoothed_as_pytorch_smooths_them(tiny: Any, name: str) -> None:
    recipe = tiny.recipe(name, train={"label_smoothing": 0.2})
    prepared, model = tiny.prepared(recipe), tiny.model(recipe)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.config.dropout = 0.0
    batch = prepared.task.collate([prepared.encoded["train"].example(0)])
    logits, labels = prepared.task.logits(model, batch)
    smoothed = torch.nn.functional.cross_entropy(
        logits.flatten(0, -2),
        labels.flatten(),
        ignore_index=-100,
        reduction="sum",
        label_smoothing=0.2,
    )
    plain = torch.nn.functional.cross_entropy(
        logits.flatten(0, -2), labels.flatten(), ignore_index=-100, reduction="sum"
    )
    assert smoothed.item() != pytest.approx(plain.item(), rel=1e-4)
    assert prepared.task.loss(model.eval(), batch).item() == pytest.approx(plain.item(), rel=1e-5)
    model.training = True  # the model's, not its layers': these would drop
    assert prepared.task.loss(model, batch).item() == pytest.approx(smoothed.item(), rel=1e-5)


@pytest.mark.parametrize("name", names())
def test_a_task_answers_to_its_name(name: str) -> None:
    solved = problem(name)
    assert solved.name == name
    assert solved.stage in ("pretrain", "finetune")
    fields = solved.fields(Recipe(task=name))
    assert fields
    assert not any(field.gold for field in fields) or solved.stage == "finetune"


@pytest.mark.parametrize("name", ["ner", "translation", "clm"])
def test_a_task_that_needs_every_word_refuses_to_cut_the_middle(tiny: Any, name: str) -> None:
    task = tiny.prepared(tiny.recipe(name)).task
    recipe = task.recipe.model_copy(
        update={"data": task.recipe.data.model_copy(update={"long_text": "head_tail"})}
    )
    with pytest.raises(RecipeError, match=r"data\.long_text: .* middle"):
        task.problem.task(recipe, task.facts, task.tokenizer)
