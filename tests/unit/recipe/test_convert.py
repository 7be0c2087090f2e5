"""Plain values become sections; what stands for a number or a bool is one, and nothing else is."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from lmkit.recipe import load_recipe
from lmkit.recipe.convert import Mistake, convert_section
from lmkit.recipe.schema import Data, Recipe, Train


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("learning_rate", "1e-4", 1e-4),
        ("learning_rate", 1, 1.0),
        ("batch_size", "8", 8),
        ("batch_size", 8.0, 8),
        ("group_by_length", "yes", True),
        ("group_by_length", "OFF", False),
        ("group_by_length", 1, True),
        ("max_grad_norm", None, None),
    ],
)
def test_what_stands_for_a_value_is_taken(key: str, value: Any, expected: Any) -> None:
    mistakes: list[Mistake] = []
    train = convert_section(Train, {key: value}, mistakes)
    assert mistakes == []
    assert getattr(train, key) == expected
    assert type(getattr(train, key)) is type(expected)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("learning_rate", "inf"),
        ("learning_rate", True),
        ("batch_size", 2.5),
        ("batch_size", True),
        ("group_by_length", 1.0),
        ("max_grad_norm", "null"),
        ("schedule", "LINEAR"),
    ],
)
def test_nothing_else_is(key: str, value: Any) -> None:
    mistakes: list[Mistake] = []
    assert convert_section(Train, {key: value}, mistakes) is None
    assert [(mistake.path, mistake.value) for mistake in mistakes] == [((key,), value)]


def test_a_mistake_names_the_entry_of_a_list_or_a_mapping() -> None:
    mistakes: list[Mistake] = []
    convert_section(Data, {"labels": ["a", 1.5], "train": {"source": ["x", 2]}}, mistakes)
    assert mistakes == [
        Mistake(("labels", "1"), "text", 1.5),
        Mistake(("train", "source", "1"), "text", 2),
    ]


def test_a_recipe_is_copied_and_sent_to_other_processes() -> None:
    recipe = load_recipe({"task": "ner", "lora": {"rank": 4}, "data": {"columns": {"tags": 1}}})
    for copied in (copy.deepcopy(recipe), pickle.loads(pickle.dumps(recipe))):
        assert copied == recipe
        assert type(copied) is Recipe
        assert copied.model_dump() == recipe.model_dump()


def test_a_section_is_dumped_in_part() -> None:
    train = Train(epochs=2)
    assert train.model_dump(include={"epochs", "seed"}) == {"epochs": 2}
    assert train.model_dump().keys() - train.model_dump(exclude={"epochs"}).keys() == {"epochs"}
