"""Layers by the names of parameters: what is frozen, what learns more slowly, and activations that are computed again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from lmkit.errors import RecipeError
from lmkit.heads import num_positions
from lmkit.models.build import build_model
from lmkit.models.layers import freeze, layer_of, layer_scales, stacks

STACKS = {
    "bert": {"bert.encoder.layer": 2},
    "modernbert": {"model.layers": 2},
    "distilbert": {"distilbert.transformer.layer": 2},
    "deberta-v2": {"deberta.encoder.layer": 2},
    "gpt2": {"transformer.h": 2},
    "llama": {"model.layers": 2},
    "t5": {"encoder.block": 2, "decoder.block": 3},
    "marian": {"model.encoder.layers": 2, "model.decoder.layers": 2},
}
TASKS = {"gpt2": "clm", "llama": "clm", "t5": "translation", "marian": "translation"}
EMBEDDINGS = {
    "bert": ["bert.embeddings.LayerNorm.weight", "bert.embeddings.word_embeddings.weight"],
    "distilbert": ["distilbert.embeddings.position_embeddings.weight"],
    "deberta-v2": ["deberta.embeddings.word_embeddings.weight"],
    "gpt2": ["transformer.wte.weight", "transformer.wpe.weight"],
    "llama": ["model.embed_tokens.weight"],
    "t5": ["shared.weight"],
    "marian": ["model.shared.weight", "model.encoder.embed_positions.weight"],
}
ABOVE = {
    "bert": ["bert.pooler.dense.weight", "classifier.bias"],
    "modernbert": ["model.final_norm.weight", "head.dense.weight", "classifier.weight"],
    "gpt2": ["transformer.ln_f.weight"],
    "llama": ["model.norm.weight"],
    "t5": ["encoder.final_layer_norm.weight", "decoder.final_layer_norm.weight"],
}


def model_of(tiny: Any, architecture: str, **sections: Any) -> Any:
    if architecture == "t5":
        sections = {"model": {"config": {"num_decoder_layers": 3}}, **sections}
    return tiny.model(
        tiny.recipe(TASKS.get(architecture, "classification"), architecture, **sections)
    )


@pytest.mark.parametrize("architecture", STACKS)
def test_the_layers_of_every_architecture_are_found(tiny: Any, architecture: str) -> None:
    assert stacks(model_of(tiny, architecture)) == STACKS[architecture]


def test_what_a_model_reads_is_told_by_whatever_its_config_calls_it() -> None:
    small = {"d_model": 8, "n_layers": 1, "n_heads": 1, "vocab_size": 9}
    config = transformers.AutoConfig.for_model("mpt", max_seq_len=40, **small)
    assert num_positions(transformers.AutoModel.from_config(config)) == 40


@pytest.mark.parametrize(
    ("model_type", "options", "expected"),
    [
        ("bert", {"max_position_embeddings": 40}, 40),
        ("roberta", {"max_position_embeddings": 40, "pad_token_id": 1}, 38),
        ("gpt2", {"n_positions": 40}, 40),
        ("t5", {}, None),
        ("xlnet", {}, None),
    ],
)
def test_a_model_reads_as_many_tokens_as_it_has_positions_for(
    model_type: str, options: dict[str, int], expected: int | None
) -> None:
    """RoBERTa's begin behind the padding's; T5 and XLNet have no table of them, for which XLNet says -1."""
    sizes = {
        "gpt2": {"n_layer": 1, "n_embd": 8, "n_head": 1},
        "xlnet": {"d_model": 8, "n_layer": 1, "n_head": 1, "d_inner": 8},
    }
    small = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 8,
    }
    small = sizes.get(
        model_type,
        {"d_model": 8, "d_ff": 8, "d_kv": 8, "num_layers": 1} if model_type == "t5" else small,
    )
    config = transformers.AutoConfig.for_model(model_type, vocab_size=50, **small, **options)
    model = transformers.AutoModel.from_config(config).eval()
    assert num_positions(model) == expected
    ids = torch.arange(2, 2 + (expected or 40))[None]
    with torch.inference_mode():
        model(ids, **({"decoder_input_ids": ids} if model_type == "t5" else {}))
        if expected is not None:
            with pytest.raises((IndexError, RuntimeError)):
                model(torch.cat([ids, ids[:, :1]], dim=1))


@pytest.mark.parametrize("architecture", STACKS)
def test_each_layer_learns_more_slowly_than_the_one_above(tiny: Any, architecture: str) -> None:
    scales = layer_scales(model_of(tiny, architecture), 0.5)
    for name, scale in scales.items():
        if layer := layer_of(name):
            stack, number = layer
            assert scale == 0.5 ** (STACKS[architecture][stack] - number), name
    lowest = 0.5 ** (max(STACKS[architecture].values()) + 1)
    assert {name: scales[name] for name in EMBEDDINGS.get(architecture, [])} == dict.fromkeys(
        EMBEDDINGS.get(architecture, []), 0.125 if architecture == "marian" else lowest
    )
    assert {scales[name] for name in ABOVE.get(architecture, [])} <= {1.0}


def test_embeddings_of_one_stack_lie_below_that_stack(tiny: Any) -> None:
    model = tiny.model(tiny.recipe("translation", "bart", model={"config": {"decoder_layers": 4}}))
    scales = layer_scales(model, 0.5)
    assert scales["model.encoder.embed_positions.weight"] == 0.5**3
    assert scales["model.decoder.embed_positions.weight"] == 0.5**5
    assert scales["model.shared.weight"] == 0.5**5


def test_layers_of_an_adapter_are_those_of_its_base(tiny: Any) -> None:
    recipe = tiny.recipe("ner", base=tiny.base("mlm", "bert"), lora={"rank": 2})
    model = tiny.model(recipe)
    scales = {
        name: scale
        for name, scale in layer_scales(model, 0.5).items()
        if "lora_" in name or "modules_to_save" in name
    }
    assert {scale for name, scale in scales.items() if ".layer.0." in name} == {0.25}
    assert {scale for name, scale in scales.items() if ".layer.1." in name} == {0.5}
    assert {scale for name, scale in scales.items() if "classifier" in name} == {1.0}


# ---------------------------------------------------------------------------------- freezing


def frozen(model: Any) -> set[str]:
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def test_the_first_layers_are_frozen(tiny: Any) -> None:
    model = model_of(tiny, "t5")
    freeze(model, embeddings=False, layers=1)
    assert frozen(model) == {
        name
        for name, _ in model.named_parameters()
        if name.startswith(("encoder.block.0.", "decoder.block.0."))
    }


def test_embeddings_are_frozen(tiny: Any) -> None:
    model = model_of(tiny, "bert")
    freeze(model, embeddings=True, layers=0)
    assert frozen(model) == {
        name for name, _ in model.named_parameters() if name.startswith("bert.embeddings.")
    }


def test_frozen_weights_stay_and_the_others_learn(tiny: Any) -> None:
    from safetensors.torch import load_file

    base = tiny.base("mlm", "bert")
    run = tiny.fit(
        tiny.recipe(
            "classification", base=base, train={"freeze_embeddings": True, "freeze_layers": 1}
        )
    )
    before, after = (
        load_file(f"{base}/model.safetensors"),
        load_file(run.model / "model.safetensors"),
    )
    same = {name for name in before.keys() & after.keys() if torch.equal(before[name], after[name])}
    still = ("bert.embeddings.", "bert.encoder.layer.0.")
    assert same == {name for name in before.keys() & after.keys() if name.startswith(still)}


def test_more_layers_than_there_are_is_an_error_that_names_the_number(tiny: Any) -> None:
    with pytest.raises(
        RecipeError, match=r"train\.freeze_layers: 3 layers, but encoder\.block has 2\n  2 or less"
    ):
        freeze(model_of(tiny, "t5"), embeddings=False, layers=3)


def test_a_frozen_output_layer_is_said(tiny: Any, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny.model(tiny.recipe("mlm", "bert"))
    freeze(model, embeddings=True, layers=0)
    assert not model.get_output_embeddings().weight.requires_grad
    assert (
        "the output layer has the same weights, so it is frozen with them"
        in capsys.readouterr().err
    )


def test_a_model_without_numbered_layers_is_refused() -> None:
    from transformers import AlbertConfig, AlbertModel

    model = AlbertModel(
        AlbertConfig(
            vocab_size=8,
            embedding_size=8,
            hidden_size=8,
            num_attention_heads=1,
            intermediate_size=8,
        )
    )
    with pytest.raises(
        RecipeError,
        match=r"train\.layer_decay: albert has no layers that can be told apart by name",
    ):
        layer_scales(model, 0.9)


# ---------------------------------------------------------------------------------- gradient checkpointing


@pytest.mark.parametrize("lora", [None, {"rank": 4}])
@pytest.mark.parametrize(
    ("task", "architecture"),
    [("classification", "bert"), ("ner", "modernbert"), ("mlm", "deberta-v2"), ("clm", "llama"), ("clm", "gpt2"), ("translation", "marian"), ("translation", "t5")],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_gradient_checkpointing_changes_no_gradient(
    tiny: Any, task: str, architecture: str, lora: dict[str, int] | None
) -> None:
    from lmkit.fast.packing import find_packing

    base = tiny.base(task if task in ("clm", "translation") else "mlm", architecture)
    found = []
    for checkpointing in (False, True):
        recipe = tiny.recipe(
            task,
            base=base,
            lora=lora,
            train={"dropout": 0.2},
            hardware={"gradient_checkpointing": checkpointing},
        )
        prepared = tiny.prepared(recipe)
        model = build_model(recipe, prepared.task, prepared.source).model
        packing = find_packing(model, longest=32) if task == "clm" else None
        assert (packing is not None) == (task == "clm")
        batch = prepared.task.collate(
            [prepared.encoded["train"].example(i) for i in range(3)], packed=packing is not None
        )
        saved = []
        torch.manual_seed(0)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, saved=saved: saved.append(tensor.numel()) or tensor, lambda t: t
        ):  # type: ignore[func-returns-value]
            loss = prepared.task.loss(model.train(), packing.apply(batch) if packing else batch)
        loss.backward()
        found.append(
            (
                loss,
                {name: p.grad for name, p in model.named_parameters() if p.grad is not None},
                sum(saved),
            )
        )
    (loss, gradients, kept), (again, its_gradients, kept_less) = found
    assert torch.equal(loss, again)
    assert gradients.keys() == its_gradients.keys()
    for name in gradients:
        torch.testing.assert_close(its_gradients[name], gradients[name], atol=1e-7, rtol=1e-6)
    assert kept_less < kept / 2  # it is on


def test_a_model_that_cannot_compute_activations_again_is_refused(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import BertPreTrainedModel

    monkeypatch.setattr(BertPreTrainedModel, "supports_gradient_checkpointing", False)
    with pytest.raises(
        RecipeError, match=r"hardware\.gradient_checkpointing: bert computes no activations again"
    ):
        tiny.model(tiny.recipe("classification", hardware={"gradient_checkpointing": True}))
