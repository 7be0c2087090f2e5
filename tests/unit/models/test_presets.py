"""Random models by name."""

from __future__ import annotations

from typing import Any

import pytest

from lmkit.errors import ModelError, RecipeError
from lmkit.models.load import load_trained
from lmkit.models.presets import FAMILIES, preset_config, preset_names, shrink
from lmkit.models.source import find_model
from lmkit.models.tokenizer import load_tokenizer

TASKS_OF = {
    "bert": ("mlm", "classification", "ner"),
    "modernbert": ("mlm", "classification", "ner"),
    "llama": ("clm", "classification"),
    "t5": ("translation",),
    "marian": ("translation",),
}


@pytest.mark.parametrize(
    ("family", "task"), [(family, task) for family in FAMILIES for task in TASKS_OF[family]]
)
def test_every_family_builds_for_its_tasks(tiny: Any, family: str, task: str) -> None:
    recipe = tiny.recipe(task, family)
    model = tiny.model(recipe)
    assert model.config.model_type == family
    assert model.config.vocab_size == len(tiny.prepared(recipe).task.tokenizer)
    assert model.config.pad_token_id == tiny.prepared(recipe).task.tokenizer.pad_token_id
    assert {parameter.dtype.__str__() for parameter in model.parameters()} == {"torch.float32"}


@pytest.mark.parametrize(
    (
        "preset",
        "millions",
    ),  # published: Turc et al. 2019 (4.4, 11.3, 28.8, 41.7, 110.1); Warner et al. 2024 (149); Junczys-Dowmunt et al. 2018
    [
        ("bert-tiny", 4.4),
        ("bert-mini", 11.2),
        ("bert-small", 28.8),
        ("bert-medium", 41.4),
        ("bert-base", 109.5),
    ],
)
def test_sizes_are_the_published_ones(preset: str, millions: float) -> None:
    import torch
    from transformers import BertConfig, BertModel

    config = preset_config(preset, max_length=512)
    with torch.device("meta"):
        model = BertModel(BertConfig(**config, vocab_size=30522))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)


def test_every_name_has_a_config_with_room_for_the_texts() -> None:
    for name in preset_names():
        config = preset_config(name, max_length=1024)
        assert config.get("max_position_embeddings", 1024) >= 1024


@pytest.mark.parametrize(
    ("wrong", "meant"), [("bert-mni", "bert-mini"), ("lama-small", "llama-small"), ("t5", "t5-")]
)
def test_an_unknown_preset_is_answered_with_the_nearest(wrong: str, meant: str) -> None:
    with pytest.raises(RecipeError) as refused:
        preset_config(wrong, max_length=32)
    assert f"no preset {wrong!r}" in str(refused.value)
    assert meant in str(refused.value)


def test_an_unknown_architecture_is_answered_with_the_nearest(tiny: Any) -> None:
    with pytest.raises(
        RecipeError, match=r"transformers knows no model_type 'brt'\n.*did you mean 'b"
    ):
        tiny.model(tiny.recipe("mlm", model={"preset": None, "config": {"model_type": "brt"}}))


def test_fields_of_the_config_are_replaced(tiny: Any) -> None:
    model = tiny.model(
        tiny.recipe("mlm", model={"config": {"num_hidden_layers": 1, "hidden_act": "relu"}})
    )
    assert (model.config.num_hidden_layers, model.config.hidden_act) == (1, "relu")


def test_fields_that_do_not_fit_together_are_said(tiny: Any) -> None:
    with pytest.raises(
        RecipeError,
        match=r"model\.config: no AutoModelForMaskedLM can be made of this: .*\(32\).*\(3\)",
    ):
        tiny.model(tiny.recipe("mlm", model={"config": {"num_attention_heads": 3}}))


@pytest.mark.parametrize(
    "architecture", ["bert", "distilbert", "gpt2", "t5", "marian", "llama", "modernbert"]
)
def test_the_dropout_of_the_recipe_is_that_of_every_layer(tiny: Any, architecture: str) -> None:
    import torch

    task = {"gpt2": "clm", "llama": "clm", "t5": "translation", "marian": "translation"}.get(
        architecture, "mlm"
    )
    for rate in (0.0, 0.25):
        model = tiny.model(tiny.recipe(task, architecture, train={"dropout": rate}))
        assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} <= {
            rate
        }


def test_a_model_is_the_same_for_the_same_seed(tiny: Any) -> None:
    import torch

    def weights(seed: int) -> Any:
        return tiny.model(tiny.recipe("mlm", seed=seed)).get_input_embeddings().weight

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_texts_longer_than_the_model_reads_are_refused(tiny: Any) -> None:
    base = tiny.base("mlm", "bert", model={"config": {"max_position_embeddings": 48}})
    with pytest.raises(RecipeError, match=r"data\.max_length: 64 tokens, but this model reads 48"):
        tiny.model(tiny.recipe("classification", base=base, data={"max_length": 64}))


@pytest.mark.parametrize(("architecture", "is_random"), [("bert", True), ("modernbert", False)])
def test_a_model_is_continued_at_a_greater_length_than_it_was_trained_at(
    tiny: Any, capsys: pytest.CaptureFixture[str], architecture: str, is_random: bool
) -> None:
    """And it is said where its further positions are random. The tokenizer names the first length, at which transformers would cut."""
    recipe = tiny.recipe(
        "classification", base=tiny.base("mlm", architecture), data={"max_length": 40}
    )
    tiny.model(recipe)
    assert ("this model was trained on 32 tokens" in capsys.readouterr().err) == is_random
    assert tiny.prepared(recipe).task.tokenizer.model_max_length == 40


def test_a_trained_model_does_not_read_positions_that_it_never_learned(tiny: Any) -> None:
    for architecture in ("bert", "modernbert"):
        recipe = tiny.recipe("classification", architecture)
        task = tiny.prepared(recipe).task
        folder = find_model(tiny.base("classification", architecture))
        longer = task.problem.task(
            tiny.merged(recipe, data={"max_length": 64}),
            task.facts,
            load_tokenizer(folder.location),
        )
        if architecture == "modernbert":  # whose positions go on by themselves
            load_trained(folder, longer)
            continue
        with pytest.raises(
            RecipeError,
            match=r"data\.max_length: 64 tokens, but by its tokenizer this model was trained on 32",
        ):
            load_trained(folder, longer)


def test_a_model_of_another_kind_is_refused(tiny: Any) -> None:
    with pytest.raises((ModelError, RecipeError), match="bert is no encoder-decoder"):
        tiny.model(tiny.recipe("translation", "bert"))


def test_an_architecture_shrinks_to_a_model_of_the_same_kind() -> None:
    from transformers import CONFIG_MAPPING, AutoModel

    for name in (
        "bert",
        "modernbert",
        "llama",
        "t5",
        "marian",
        "gpt2",
        "distilbert",
        "electra",
        "roberta",
        "bart",
    ):
        config = shrink(
            CONFIG_MAPPING[name]().to_dict()
            | {"vocab_size": 64, "pad_token_id": 0, "decoder_vocab_size": 64}
        )
        config = {
            key: value
            for key, value in config.items()
            if not key.endswith("_token_id") or key == "pad_token_id"
        }
        model = AutoModel.from_config(CONFIG_MAPPING[config.pop("model_type")](**config))
        assert sum(p.numel() for p in model.parameters()) < 200_000, name
