"""A task of another package brings a section of its own, and it is a section as all others are."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Annotated

import pytest
import yaml

from lmkit.errors import RecipeError
from lmkit.recipe import Recipe, dump_recipe, load_recipe
from lmkit.recipe.explain import explain, json_schema
from lmkit.recipe.further import recipe_type
from lmkit.recipe.keys import known_keys
from lmkit.recipe.section import Positive, Section, about
from lmkit.tasks import registry


class Toy(Section, frozen=True, kw_only=True):
    wheels: Annotated[Positive, about("of the toy")] = 4


@pytest.fixture(autouse=True)
def _toy_task(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    toy = SimpleNamespace(name="toys", section="toy", section_type=Toy, keys=())
    problems = (*registry.problems(), toy)
    monkeypatch.setattr(registry, "problems", lambda: problems)
    recipe_type.cache_clear()
    yield
    recipe_type.cache_clear()


def test_its_keys_are_read_checked_and_dumped() -> None:
    recipe = load_recipe({"name": "x"}, ["toy.wheels=3"])
    assert isinstance(recipe, Recipe)
    assert recipe.toy == Toy(wheels=3)  # type: ignore[attr-defined]
    assert load_recipe({"name": "x"}).toy == Toy()  # type: ignore[attr-defined]
    assert recipe.model_dump()["toy"] == {"wheels": 3}
    assert load_recipe(yaml.safe_load(dump_recipe(recipe))) == recipe
    changed = recipe.model_copy(update={"seed": 4})
    assert (changed.seed, changed.toy.wheels) == (4, 3)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("toy.wheels=0", "toy.wheels: expected a whole number greater than or equal to 1, found 0"),
        ("toy.weels=1", "toy.weels: unknown key; did you mean toy.wheels"),
        ("wheels=1", "wheels: unknown key; did you mean toy.wheels"),
    ],
)
def test_mistakes_in_it_are_told_as_elsewhere(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe({}, [override])


def test_it_is_explained_and_in_the_json_schema() -> None:
    assert "toy.wheels" in known_keys()
    assert explain("toy.wheels")["about"] == "of the toy"
    assert json_schema()["properties"]["toy"]["properties"]["wheels"]["minimum"] == 1


def test_another_task_does_not_read_it() -> None:
    with pytest.raises(RecipeError, match=r"toy: has no effect on mlm\n.* it is for toys"):
        load_recipe({"task": "mlm"}, ["toy.wheels=3"])


def test_it_cannot_have_the_name_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    train = SimpleNamespace(name="trains", section="train", section_type=Toy, keys=())
    monkeypatch.setattr(registry, "problems", lambda: (train,))
    recipe_type.cache_clear()
    with pytest.raises(RecipeError, match="'trains' brings a section 'train'"):
        load_recipe({})


def test_a_recipe_with_it_is_copied_and_sent_to_other_processes() -> None:
    recipe = load_recipe({"name": "x"}, ["toy.wheels=3"])
    for copied in (copy.deepcopy(recipe), pickle.loads(pickle.dumps(recipe))):
        assert copied == recipe
        assert type(copied) is type(recipe)
