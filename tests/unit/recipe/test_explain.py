"""What is said of a key, and the JSON Schema, are the schema's."""

from __future__ import annotations

from typing import Any

import pytest

from lmkit.errors import RecipeError
from lmkit.recipe.explain import explain, json_schema
from lmkit.recipe.keys import known_keys


def test_every_key_is_explained() -> None:
    for key in known_keys():
        found = explain(key)
        assert ("expected" in found) != ("keys" in found)
        assert found.get("keys", [key])


def test_a_key_has_its_default_and_what_it_expects() -> None:
    assert explain("train.warmup") == {
        "key": "train.warmup",
        "about": "share of the steps if below 1, else a number of steps",
        "default": 0.06,
        "expected": "a number greater than or equal to 0",
    }


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("train.warmupp", "train.warmup"),
        ("learning_rate", "train.learning_rate"),
        ("lora.r", "lora.rank"),
    ],
)
def test_an_unknown_key_is_answered_with_the_one_to_use(key: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        explain(key)


def test_what_stands_in_a_mapping_is_explained_by_the_mapping() -> None:
    assert explain("data.columns.text") == explain("data.columns")
    assert explain("model.config.num_hidden_layers") == explain("model.config")
    with pytest.raises(RecipeError, match=r"train\.warmup has no keys below it"):
        explain("train.warmup.x")


def test_the_json_schema_knows_the_same_keys_and_no_others() -> None:
    def keys(schema: dict[str, Any], prefix: str = "") -> list[str]:
        found = []
        for name, inner in schema["properties"].items():
            found.append(prefix + name)
            for each in (inner, *inner.get("anyOf", [])):
                if "properties" in each:
                    assert each["additionalProperties"] is False
                    found += keys(each, f"{prefix}{name}.")
        return found

    assert keys(json_schema()) == known_keys()


def test_the_json_schema_has_types_choices_and_limits() -> None:
    train = json_schema()["properties"]["train"]["properties"]
    assert train["learning_rate"] == {
        "description": "peak of the schedule",
        "default": 5e-5,
        "type": "number",
        "exclusiveMinimum": 0,
    }
    assert train["schedule"]["enum"] == ["linear", "cosine", "constant", "wsd"]
    assert train["early_stopping"]["anyOf"] == [{"type": "integer", "minimum": 1}, {"type": "null"}]
