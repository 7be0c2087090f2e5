"""From a file, a name or a mapping, with KEY=VALUE on top, to a checked recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lmkit.errors import RecipeError
from lmkit.recipe import Recipe, dump_recipe, load_recipe, shipped_recipes
from lmkit.recipe.keys import known_keys
from lmkit.recipe.shipped import find_recipe


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write a recipe file in the current folder."""
    monkeypatch.chdir(tmp_path)

    def file(text: str, name: str = "mine.yaml") -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return name

    return file


# ------------------------------------------------------------------ precedence, names


def test_key_value_wins_over_the_file_and_the_file_over_the_default(write: Any) -> None:
    file = write("train: {batch_size: 8, learning_rate: 1e-3}")
    recipe = load_recipe(file, ["train.learning_rate=3e-4"])
    assert (recipe.train.learning_rate, recipe.train.batch_size, recipe.train.weight_decay) == (
        3e-4,
        8,
        0.01,
    )


def test_last_of_two_values_for_a_key_wins() -> None:
    assert load_recipe({}, ["seed=1", "seed=2"]).seed == 2


def test_key_value_makes_the_sections_it_needs() -> None:
    recipe = load_recipe({}, ["tokenizer.train.vocab_size=500", "lora.rank=4"])
    assert recipe.tokenizer.train is not None
    assert recipe.lora is not None
    assert (recipe.tokenizer.train.vocab_size, recipe.lora.rank) == (500, 4)


def test_key_value_takes_a_section_out() -> None:
    assert load_recipe({"lora": {"rank": 4}}, ["lora=null"]).lora is None


def test_key_value_replaces_a_section_as_a_whole() -> None:
    recipe = load_recipe(
        {"data": {"columns": {"text": "a", "label": "b"}}}, ["data.columns={text: c}"]
    )
    assert recipe.data.columns == {"text": "c"}


@pytest.mark.parametrize(
    ("value", "expected"),
    [("a.jsonl", "a.jsonl"), ("[a.jsonl,b.jsonl]", ["a.jsonl", "b.jsonl"]), ("*.jsonl", "*.jsonl"), ("**/x[0-9].txt", "**/x[0-9].txt"), ("'a b=c.txt'", "a b=c.txt"), ("null", None)],
)  # fmt: skip
def test_value_is_yaml_and_a_glob_is_a_glob(value: str, expected: Any) -> None:
    assert load_recipe({}, [f"data.train={value}"]).data.train == expected


def test_name_is_the_files_and_stands_in_the_output(write: Any) -> None:
    recipe = load_recipe(write("task: mlm", "my run.yaml"))
    assert (recipe.name, recipe.output) == ("my run", "runs/my run")
    assert load_recipe({"name": 2024}).output == "runs/2024"


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "a\nb"])
def test_name_that_is_no_folder_is_refused(name: str) -> None:
    if not name:
        assert load_recipe({"name": ""}).name == "run"
        return
    with pytest.raises(RecipeError, match="cannot be the name of a folder"):
        load_recipe({"name": name})


def test_home_is_expanded_in_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert load_recipe({"output": "~/runs/{name}", "name": "x"}).output == "/home/ada/runs/x"


def test_unknown_braces_in_the_output_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"unknown \{task\}"):
        load_recipe({"output": "runs/{task}"})


def test_recipe_and_mapping_are_taken_as_they_are() -> None:
    recipe = load_recipe({"task": "mlm", "name": "x", "train": {"batch_size": 4}})
    again = load_recipe(recipe, ["seed=4"])
    assert (again.train.batch_size, again.seed, again.name) == (4, 4, "x")
    assert recipe.seed == 13


def test_mapping_that_is_given_is_not_changed() -> None:
    given = {"train": {"batch_size": 4}}
    load_recipe(given, ["train.batch_size=8"])
    assert given == {"train": {"batch_size": 4}}


# ------------------------------------------------------------------ YAML


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "0.0001", "1E-4", "'1e-4'", "+1e-4", ".0001"])
def test_numbers_are_numbers(write: Any, text: str) -> None:
    assert load_recipe(write(f"train: {{learning_rate: {text}}}")).train.learning_rate == 1e-4


@pytest.mark.parametrize(
    "word",
    ["no", "yes", "on", "off", "y", "NO", "Norway", "1.2.3", "12:30", "1_x", "2024-01-01", "0x1f"],
)
def test_words_are_words(write: Any, word: str) -> None:
    assert load_recipe(write(f"data: {{labels: [{word}, b]}}")).data.labels == [word, "b"]


def test_labels_and_columns_may_be_whole_numbers(write: Any) -> None:
    data = load_recipe(write("data: {labels: [1, 2], columns: {text: 0, label: 1}}")).data
    assert (data.labels, data.columns) == (["1", "2"], {"text": "0", "label": "1"})


def test_leading_zeros_and_underscores_do_not_change_a_number(write: Any) -> None:
    recipe = load_recipe(write("seed: 010\ntokenizer: {train: {vocab_size: 16_000}}"))
    assert recipe.tokenizer.train is not None
    assert (recipe.seed, recipe.tokenizer.train.vocab_size) == (10, 16000)


@pytest.mark.parametrize(("word", "value"), [("true", True), ("false", False), ("True", True)])
def test_true_and_false_are_truth_values(write: Any, word: str, value: bool) -> None:
    assert (
        load_recipe(write(f"model: {{trust_remote_code: {word}}}")).model.trust_remote_code is value
    )


@pytest.mark.parametrize(
    "text",
    [
        "seed: 1\nseed: 2",
        "train: {epochs: 1}\ntrain: {batch_size: 2}",
        "train:\n  epochs: 1\n  epochs: 1",
    ],
)
def test_key_that_stands_twice_is_refused_with_its_line(write: Any, text: str) -> None:
    with pytest.raises(RecipeError, match=rf"mine.yaml:{text.count(chr(10)) + 1}: .*stands twice"):
        load_recipe(write(text))


def test_broken_yaml_is_refused_with_its_line(write: Any) -> None:
    with pytest.raises(RecipeError, match=r"mine.yaml:2: not readable as YAML"):
        load_recipe(write("task: mlm\n  seed: 3"))


def test_glob_without_quotes_is_refused_with_the_remedy(write: Any) -> None:
    with pytest.raises(RecipeError, match=r"mine.yaml:1: .*\n.*in quotes"):
        load_recipe(write("data: {train: *.jsonl}"))


@pytest.mark.parametrize(
    ("text", "found"),
    [("", "empty"), ("# nothing\n", "empty"), ("- a", "a list"), ("word", "a str")],
)
def test_file_that_is_no_mapping_is_refused(write: Any, text: str, found: str) -> None:
    with pytest.raises(
        RecipeError, match=f"a recipe is a mapping of keys to values, this is {found}"
    ):
        load_recipe(write(text))


def test_python_objects_are_not_built(write: Any) -> None:
    with pytest.raises(RecipeError, match="not readable as YAML"):
        load_recipe(write("name: !!python/object/apply:os.system ['true']"))


def test_section_of_comments_alone_means_its_defaults(write: Any) -> None:
    recipe = load_recipe(
        write(
            "tokenizer:\n  # base: DIR\nmodel: {preset: bert-nano, config: }\ndata:\n  columns:\nlogging: {to: }\n"
        )
    )
    assert recipe == load_recipe({"model": {"preset": "bert-nano"}, "name": "mine"})


def test_file_that_is_not_utf8_is_refused(write: Any, tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("name: café".encode("latin-1"))
    with pytest.raises(RecipeError, match=r"latin.yaml: cannot be read"):
        load_recipe("latin.yaml")


# ------------------------------------------------------------------ values


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("train.epochs", "0", "greater than 0"),
        ("train.batch_size", "0", "greater than or equal to 1"),
        (
            "train.batch_size",
            "2.5",
            "expected a whole number greater than or equal to 1, found 2.5",
        ),
        ("train.schedule", "cosin", "'linear', 'cosine', 'constant' or 'wsd'"),
        ("masking.share", "1", "less than 1"),
        ("eval.confidence", "95", "less than 1"),
        ("seed", "-1", "greater than or equal to 0"),
        ("data.train", "3", "expected text, a list of text or a mapping, found 3"),
        ("hardware.processes", "0", "greater than or equal to 1 or 'auto', found 0"),
        ("hardware.checkpoint_every", "soon", 'a number of steps, or minutes as "10min"'),
        (
            "model",
            "bert-base-uncased",
            "expected a mapping of keys to values such as {base: runs/mlm}, found 'bert-base-uncased'",
        ),
        ("lora", "true", "expected a mapping of keys to values such as {rank: 16}, found True"),
    ],
)
def test_wrong_value_is_refused_with_its_key_and_what_was_expected(
    key: str, value: str, said: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe({}, [f"{key}={value}"])
    assert str(caught.value).startswith(f"{key}: ")
    assert said in str(caught.value)


def test_mistake_is_said_of_the_file_unless_it_was_given_on_the_command_line(write: Any) -> None:
    file = write("train: {epochs: -1}")
    with pytest.raises(RecipeError, match=r"^mine.yaml: train.epochs"):
        load_recipe(file)
    with pytest.raises(RecipeError, match=r"^train.epochs"):
        load_recipe(file, ["train.epochs=-2"])


@pytest.mark.parametrize(
    ("value", "expected"), [("500", 500), ("10min", "10min"), ("0.5min", "0.5min"), ("null", None)]
)
def test_checkpoint_interval_is_steps_or_minutes_or_nothing(value: str, expected: Any) -> None:
    assert (
        load_recipe({}, [f"hardware.checkpoint_every={value}"]).hardware.checkpoint_every
        == expected
    )


@pytest.mark.parametrize("argument", ["epochs", "=3", ".=3", "train.=3", "train..epochs=3", " =1"])
def test_argument_that_is_not_key_value_is_refused(argument: str) -> None:
    with pytest.raises(RecipeError, match="is not KEY=VALUE"):
        load_recipe({}, [argument])


def test_recipe_cannot_be_changed() -> None:
    with pytest.raises(AttributeError, match="immutable"):
        load_recipe({}).seed = 3


# ------------------------------------------------------------------ paths


def test_paths_are_found_beside_the_recipe_file(
    write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(
        "data: {train: [a.txt, 'more/*.txt'], test: sample:x/y.txt}\nmodel: {base: base}\ntokenizer: {train: {files: a.txt}}",
        "there/mine.yaml",
    )
    for file in ("there/a.txt", "there/more/b.txt", "there/base/config.json"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("")
    recipe = load_recipe("there/mine.yaml")
    assert recipe.data.train == ["there/a.txt", "there/more/*.txt"]
    assert recipe.model.base == "there/base"
    assert recipe.tokenizer.train is not None
    assert recipe.tokenizer.train.files == "there/a.txt"
    assert recipe.data.test == "sample:x/y.txt"


def test_path_that_exists_from_here_wins(write: Any, tmp_path: Path) -> None:
    write("data: {train: a.txt}", "there/mine.yaml")
    (tmp_path / "there/a.txt").write_text("")
    (tmp_path / "a.txt").write_text("")
    assert load_recipe("there/mine.yaml").data.train == "a.txt"


def test_path_that_exists_nowhere_stays_as_it_is(write: Any) -> None:
    assert load_recipe(write("data: {train: org/name}", "there/mine.yaml")).data.train == "org/name"


# ------------------------------------------------------------------ dumping, shipped recipes


def test_dumped_recipe_says_every_value_and_reads_back_as_itself(write: Any) -> None:
    recipe = load_recipe(
        {
            "task": "ner",
            "name": "x",
            "lora": {"rank": 4},
            "data": {"labels": ["no", "1", "è"]},
            "train": {"learning_rate": 1e-7},
        }
    )
    text = dump_recipe(recipe)
    assert load_recipe(write(text)) == recipe
    values = yaml.safe_load(text)
    for key in known_keys():
        holder = values
        for part in key.split("."):
            if holder is None:
                break  # tokenizer.train is null
            assert part in holder, key
            holder = holder[part]


def test_dumped_recipe_works_from_another_folder(
    write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("")
    text = dump_recipe(load_recipe(write("data: {train: a.txt}")))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_recipe(yaml.safe_load(text)).data.train == str(tmp_path / "a.txt")


def test_shipped_recipe_is_found_by_its_name_and_by_its_end() -> None:
    assert find_recipe("demo/ner") == shipped_recipes()["demo/ner"]
    ends = [name.rpartition("/")[2] for name in shipped_recipes()]
    unique = (
        next(end for end in ends if ends.count(end) == 1)
        if any(ends.count(end) == 1 for end in ends)
        else None
    )
    if unique:
        assert find_recipe(unique).stem == unique


def test_unknown_name_is_answered_with_the_nearest_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match="did you mean 'demo/translation'"):
        find_recipe("demo/translaton")
    (tmp_path / "mine.yaml").write_text("")
    with pytest.raises(RecipeError, match=r"no such file: mime.yaml\n  did you mean 'mine.yaml'"):
        find_recipe("mime.yaml")


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipe_is_right(name: str) -> None:
    recipe = load_recipe(name)
    assert isinstance(recipe, Recipe)
    assert recipe.task


def test_what_is_dumped_is_what_is_loaded(tmp_path: Path) -> None:
    """Texts that look like numbers to one of two YAML readers stay texts."""
    recipe = load_recipe(
        {
            "data": {"labels": ["08", "1e5", ".5e1", "no"]},
            "name": "08",
            "model": {"revision": "1e5"},
        }
    )
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    again = load_recipe(tmp_path / "recipe.yaml")
    assert (again.data.labels, again.name, again.model.revision) == (
        ["08", "1e5", ".5e1", "no"],
        "08",
        "1e5",
    )


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"classification": {"class_weights": {"a": -1}}},
            "classification.class_weights.a: expected a number greater than 0",
        ),
        ({"data": {"columns": {"text": 1.5}}}, "data.columns.text: expected text"),
        ({"data": {"labels": ["a", 1.5]}}, "data.labels.1: expected text"),
        ({"train": {"learning_rate": float("inf")}}, "train.learning_rate: expected a number"),
        ({"train": {"epochs": float("nan")}}, "train.epochs: expected a number"),
        (
            {"hardware": {"checkpoint_every": 0}},
            "hardware.checkpoint_every: expected a number of steps, or minutes",
        ),
    ],
)
def test_a_wrong_value_is_named_where_it_stands(values: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe(values)
    assert said in str(error.value)


def test_a_home_that_is_not_there_is_a_path_like_others() -> None:
    assert "~nosuchuser/x.jsonl" in dump_recipe(
        load_recipe({"data": {"train": "~nosuchuser/x.jsonl"}})
    )


def test_numbers_and_texts_of_numpy_are_taken() -> None:
    import numpy as np

    values = {
        "train": {"batch_size": np.int64(3), "learning_rate": np.float32(0.5)},
        "data": {"labels": list(np.array(["a", "b"]))},
    }
    recipe = load_recipe(values)
    assert (recipe.train.batch_size, recipe.train.learning_rate, recipe.data.labels) == (
        3,
        0.5,
        ["a", "b"],
    )
    assert {
        type(recipe.train.batch_size),
        type(recipe.train.learning_rate),
        type(recipe.data.labels[0]),
    } == {int, float, str}


@pytest.mark.parametrize("override", ["data.long_text=head", "data.overlap=0.5", "data.labels=[a]"])
def test_what_older_recipes_give_to_other_tasks_is_said_to_have_no_effect(
    override: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert load_recipe({"task": "clm"}, [override]).task == "clm"
    assert f"{override.split('=')[0]} has no effect on clm" in capsys.readouterr().err


@pytest.mark.parametrize(
    "override", ["train.group_by_length=true", "masking.share=0.3", "tagging.crf=true"]
)
def test_a_key_that_the_task_has_no_use_for_is_refused(override: str) -> None:
    with pytest.raises(RecipeError, match="has no effect on clm"):
        load_recipe({"task": "clm"}, [override])
