"""An unknown key at any depth is an error with a suggestion [soup#627, unsloth PR#10452, and axolotl, torchtune, Ludwig].

Old and foreign names are answered with the key to use here, for ever [trl#2895].
"""

from __future__ import annotations

import re
from typing import Any

import pytest

from lmkit.cli import app
from lmkit.errors import RecipeError
from lmkit.recipe import load_recipe
from lmkit.recipe.foreign import FOREIGN
from lmkit.recipe.keys import known_keys
from lmkit.tasks.registry import names, problems

KEYS = known_keys()
FREE = (
    "data.columns",
    "model.config",
    "classification.class_weights",
)  # mappings whose keys are the file's and the model's
SECTIONS = sorted({key.rpartition(".")[0] for key in KEYS})


def nested(dotted: str, value: Any = 1) -> dict[str, Any]:
    """``{"a": {"b": value}}`` for ``a.b``."""
    for part in reversed(dotted.split(".")):
        value = {part: value}
    return value  # type: ignore[no-any-return]


def complaint(dotted: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(nested(dotted))
    return str(caught.value)


def misspelt(key: str) -> str:
    """A key with its last two letters swapped, or one letter more where that changes nothing."""
    swapped = key[:-2] + key[-1] + key[-2]
    return (
        swapped
        if swapped != key and len(key.rpartition(".")[2]) > 4 and key[-1].isalpha()
        else key + "e"
    )


def test_schema_is_walked_to_its_depths() -> None:
    assert {
        "",
        "model",
        "tokenizer",
        "tokenizer.train",
        "data",
        "lora",
        "train",
        "hardware",
        "generation",
        "logging",
    } <= set(SECTIONS)
    assert len(KEYS) > 60


@pytest.mark.parametrize("key", KEYS)
def test_misspelt_key_is_refused_with_the_right_one(key: str) -> None:
    said = complaint(misspelt(key))
    assert f"{misspelt(key)}: unknown key; " in said
    assert re.search(rf"\b{re.escape(key)}\b", said)


@pytest.mark.parametrize("section", SECTIONS)
def test_key_like_no_other_is_refused_with_all_that_are_known_there(section: str) -> None:
    said = complaint(f"{section}.qqqq".lstrip("."))
    assert "unknown key" in said
    assert all(key.rpartition(".")[2] in said for key in KEYS if key.rpartition(".")[0] == section)


@pytest.mark.parametrize(
    "key", [key for key in KEYS if "." in key and key.rpartition(".")[2] not in KEYS]
)
def test_key_in_the_wrong_place_is_refused_with_the_right_place(key: str) -> None:
    name = key.rpartition(".")[2]
    assert key in complaint(name)
    elsewhere = "eval" if not key.startswith("eval") else "logging"
    assert key in complaint(f"{elsewhere}.{name}")


@pytest.mark.parametrize("key", [key for key in KEYS if key not in SECTIONS and key not in FREE])
def test_key_below_a_value_is_refused(key: str) -> None:
    assert key in complaint(f"{key}.deeper")


@pytest.mark.parametrize(
    "key", ["train.lr", "data.trian", "learning_rate", "tokenizer.train.vocab"]
)
def test_unknown_key_on_the_command_line_is_refused_too(key: str) -> None:
    with pytest.raises(RecipeError, match=f"^{key}: unknown key; "):
        load_recipe({}, [f"{key}=1"])


def test_all_mistakes_are_said_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(
            {"trian": {}, "train": {"lr": 1, "epochs": "many"}, "data": {"max_seq_length": 3}}
        )
    said = str(caught.value)
    assert all(
        key in said for key in ("trian:", "train.lr:", "train.epochs:", "data.max_seq_length:")
    )


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_name_is_answered_with_the_key_to_use_here(name: str) -> None:
    assert f"{name}: unknown key; here it is {FOREIGN[name]}" in complaint(name)


@pytest.mark.parametrize(
    ("name", "section"),
    [(name, section) for name in FOREIGN for section in ("train", "data", "model", "lora")],
)
def test_foreign_name_is_answered_wherever_it_stands(name: str, section: str) -> None:
    dotted = f"{section}.{name}"
    if dotted in KEYS:
        pytest.skip("a key of lmkit's there")
    assert FOREIGN[name] in complaint(dotted)


@pytest.mark.parametrize("name", FOREIGN)
def test_answer_to_a_foreign_name_exists(name: str) -> None:
    answer = FOREIGN[name]
    flags = re.findall(r"--[a-z-]+", answer)
    commands = re.findall(r"lmkit ([a-z]+)", answer)
    keys = re.findall(r"[a-z_]+(?:\.[a-z_0-9]+)+", answer) or (
        [] if flags or commands else [answer]
    )
    assert flags or commands or keys
    for key in keys:
        assert key in KEYS or key.startswith(tuple(f"{free}." for free in FREE)), key
    callbacks = {
        command.name or command.callback.__name__: command.callback
        for command in app.registered_commands
        if command.callback
    }
    for flag in flags:
        assert flag.removeprefix("--") in callbacks["finetune"].__annotations__
    assert set(commands) <= callbacks.keys()


def test_no_foreign_name_shadows_a_key_of_the_recipe() -> None:
    assert not set(FOREIGN) & set(KEYS)


FOREIGN_TASKS = {name: solved.name for solved in problems() for name in solved.foreign_names}


@pytest.mark.parametrize("name", FOREIGN_TASKS)
def test_foreign_task_is_answered_with_the_task_here(name: str) -> None:
    assert FOREIGN_TASKS[name] in names()
    assert name not in names()
    for spelling in (name, name.replace("-", "_").upper()):
        with pytest.raises(RecipeError, match=f"here it is {FOREIGN_TASKS[name]}"):
            load_recipe({"task": spelling})


def test_misspelt_task_is_refused_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match="did you mean 'classification'"):
        load_recipe({"task": "clasification"})


@pytest.mark.parametrize(
    ("task", "key"),
    [
        ("clm", "masking.share=0.2"),
        ("ner", "classification.threshold=0.3"),
        ("mlm", "classification.kind=regression"),
        ("ner", "generation.num_beams=2"),
    ],
)
def test_a_section_of_another_task_is_refused(task: str, key: str) -> None:
    with pytest.raises(RecipeError, match=f"^{key.split('.')[0]}: has no effect on {task}"):
        load_recipe({"task": task, "name": "x"}, [key])


@pytest.mark.parametrize(
    ("task", "key"),
    [
        ("mlm", "masking.span=5"),
        ("denoise", "masking.whole_words=true"),
        ("denoise", "translation.prefix=x"),
        ("denoise", "translation.target_language=en_XX"),
    ],
)
def test_a_key_that_is_another_tasks_is_refused_though_its_section_is_not(
    task: str, key: str
) -> None:
    with pytest.raises(RecipeError, match=f"^{key.split('=')[0]}: has no effect on {task}"):
        load_recipe({"task": task, "name": "x"}, [key])
