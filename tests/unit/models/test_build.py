"""Models are loaded whole and safely, and what is saved opens without lmkit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from lmkit.errors import ModelError, RecipeError
from lmkit.models.build import Built, build_model, count_parameters
from lmkit.models.load import load_trained
from lmkit.models.pretrained import new_modules
from lmkit.models.quantized import check_quantization
from lmkit.models.save import save_model
from lmkit.models.source import find_model
from lmkit.tasks.registry import names


def built(tiny: Any, recipe: Any) -> Built:
    prepared = tiny.prepared(recipe)
    return build_model(recipe, prepared.task, prepared.source)


@pytest.mark.parametrize("task", names())
def test_saved_models_open_with_plain_transformers(tiny: Any, task: str) -> None:
    folder = tiny.base(task)
    recipe = tiny.recipe(task)
    prepared, ours = tiny.prepared(recipe), tiny.model(recipe)
    theirs = getattr(transformers, prepared.task.problem.auto_class).from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = "Coffee will be ready in a minute."
    inputs = tokenizer(text, return_tensors="pt")
    assert inputs["input_ids"].tolist() == [prepared.task.tokenizer(text)["input_ids"]]
    inputs = dict(inputs) | (
        {"decoder_input_ids": inputs["input_ids"]}
        if prepared.task.problem.architecture == "encoder-decoder"
        else {}
    )
    with torch.inference_mode():
        torch.testing.assert_close(
            theirs(**inputs).logits, ours(**inputs).logits, atol=1e-6, rtol=0
        )
    for field in ("id2label", "num_labels", "pad_token_id"):
        assert getattr(theirs.config, field) == getattr(ours.config, field)
    assert (
        sorted(
            path.name for path in Path(folder).iterdir() if path.suffix in (".bin", ".pt", ".pkl")
        )
        == []
    )


def test_a_pipeline_of_transformers_gives_the_same_labels(tiny: Any, tmp_path: Path) -> None:
    recipe = tiny.recipe("classification")
    task, model = tiny.prepared(recipe).task, tiny.model(recipe)
    torch.nn.init.normal_(model.classifier.weight)
    save_model(model, task, tmp_path)
    texts = ["Yay. Another good phone interview.", "So lucky.", "I hate mondays"]
    rows = task.problem.rows(texts, task.facts)
    columns = task.encode(rows)
    pieces = [{name: values[i] for name, values in columns.items()} for i in range(3)]
    with torch.inference_mode():
        parts = task.predict(model, task.collate([[piece] for piece in pieces]), pieces)
    mine = [task.combine(row, [part]) for row, part in zip(rows, parts, strict=True)]
    theirs = transformers.pipeline("text-classification", model=str(tmp_path))(texts)
    assert [answer["label"] for answer in theirs] == [record["prediction"] for record in mine]
    assert [answer["score"] for answer in theirs] == pytest.approx(
        [record["score"] for record in mine], abs=1e-5
    )


def test_a_pipeline_of_transformers_gives_the_same_tags(tiny: Any, tmp_path: Path) -> None:
    recipe = tiny.recipe("ner")
    task, model = tiny.prepared(recipe).task, tiny.model(recipe)
    torch.nn.init.normal_(model.classifier.weight)
    save_model(model, task, tmp_path)
    row = {"id": 0, "tokens": ["8128", "DR", "MARTIN"]}
    piece = {name: values[0] for name, values in task.encode([row]).items()}
    with torch.inference_mode():
        record = task.combine(row, task.predict(model, task.collate([[piece]]), [piece]))
    answers = transformers.pipeline("token-classification", model=str(tmp_path), ignore_labels=[])(
        " ".join(row["tokens"])
    )
    first_tokens = {answer["start"]: answer["entity"] for answer in answers}
    assert [first_tokens[start] for start in (0, 5, 8)] == record["prediction"]


# ---------------------------------------------------------------------------------- what is refused


def test_pickled_weights_are_refused(tiny: Any, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(tiny.base("classification"), folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    recipe = tiny.recipe("classification", base=str(folder))
    with pytest.raises(ModelError, match="weights are read as safetensors only"):
        tiny.model(recipe)
    with pytest.raises(ModelError, match="weights are read as safetensors only"):
        load_trained(find_model(str(folder)), tiny.prepared(recipe).task)


@pytest.mark.parametrize("task", ["classification", "ner"])
def test_a_base_without_a_trained_head_is_refused_for_evaluation(tiny: Any, task: str) -> None:
    base = tiny.base("mlm")
    with pytest.raises(
        ModelError, match=f"this model was not trained for {task}: no weights for .*classifier"
    ):
        load_trained(find_model(base), tiny.prepared(tiny.recipe(task, base=base)).task)


def test_a_weight_that_is_missing_is_refused_for_evaluation(tiny: Any, tmp_path: Path) -> None:
    folder = tmp_path / "lossy"
    shutil.copytree(tiny.base("classification"), folder)
    weights = load_file(folder / "model.safetensors")
    del weights["bert.encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"no weights for bert\.encoder\.layer\.1\.output\.dense"):
        load_trained(find_model(str(folder)), tiny.prepared(tiny.recipe("classification")).task)


def test_weights_that_cannot_be_read_are_refused(tiny: Any, tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(tiny.base("classification"), folder)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="no AutoModelForSequenceClassification could be loaded"):
        tiny.model(tiny.recipe("classification", base=str(folder)))


def test_an_adapter_whose_base_is_gone_says_so(tiny: Any, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny.base("mlm"), base)
    recipe = tiny.recipe("ner", base=str(base), lora={"rank": 2})
    prepared = tiny.prepared(recipe)
    (tmp_path / "adapter").mkdir()
    save_model(built(tiny, recipe).model, prepared.task, tmp_path / "adapter")
    source = find_model(str(tmp_path / "adapter"))
    assert source.is_adapter
    load_trained(source, prepared.task)
    base.rename(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="the adapter's base is gone"):
        load_trained(source, prepared.task)


def test_an_adapter_is_not_trained_on(tiny: Any, tmp_path: Path) -> None:
    recipe = tiny.recipe("ner", base=tiny.base("mlm"), lora={"rank": 2})
    save_model(built(tiny, recipe).model, tiny.prepared(recipe).task, tmp_path)
    again = tiny.recipe("ner", base=str(tmp_path))
    with pytest.raises(ModelError, match="an adapter cannot be trained on"):
        build_model(again, tiny.prepared(recipe).task, find_model(str(tmp_path)))


# ---------------------------------------------------------------------------------- adapters and heads


@pytest.mark.parametrize("targets", ["auto", "all-linear"])
@pytest.mark.parametrize(
    ("architecture", "head", "whole"),
    [
        ("bert", "classifier", {"classifier"}),
        (
            "bart",
            "classification_head.out_proj",
            {"classification_head.out_proj"},
        ),  # every attention ends in an out_proj
        (
            "distilbert",
            "classifier",
            {"classifier", "pre_classifier"},
        ),  # PEFT goes by the end of a name
    ],
)
def test_a_head_for_other_labels_is_trained_whole(
    tiny: Any, tmp_path: Path, architecture: str, head: str, whole: set[str], targets: str
) -> None:
    folder = tmp_path / "base"
    shutil.copytree(tiny.base("classification", architecture), folder)
    config = json.loads((folder / "config.json").read_text())
    names = dict(enumerate("abcde"))
    (folder / "config.json").write_text(
        json.dumps(config | {"id2label": names, "label2id": {v: k for k, v in names.items()}})
    )
    weights = load_file(folder / "model.safetensors")
    other = {
        name: weight.new_zeros(5, *weight.shape[1:])
        for name, weight in weights.items()
        if name.startswith(f"{head}.")
    }
    save_file(weights | other, folder / "model.safetensors", {"format": "pt"})
    recipe = tiny.recipe("classification", base=str(folder), lora={"rank": 2, "targets": targets})
    found = built(tiny, recipe)
    trained = {
        name
        for name, parameter in found.model.named_parameters()
        if parameter.requires_grad and "lora_" not in name
    }
    assert {
        name.split(".modules_to_save")[0].removeprefix("base_model.model.") for name in trained
    } == whole
    save_model(found.model, tiny.prepared(recipe).task, tmp_path / "adapter")
    load_trained(find_model(str(tmp_path / "adapter")), tiny.prepared(recipe).task)


def test_where_there_is_no_gpu_a_base_in_few_bits_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        RecipeError,
        match=r"lora\.quantize: 4bit: needs a CUDA GPU, and torch finds none here\n.*lora\.quantize=null",
    ):
        check_quantization("4bit")


def test_an_adapter_reads_no_more_than_its_base_has_positions_for(
    tiny: Any, tmp_path: Path
) -> None:
    base = tiny.base("mlm", "bert", model={"config": {"max_position_embeddings": 40}})
    recipe = tiny.recipe("classification", base=base, lora={"rank": 2})
    task = tiny.prepared(recipe).task
    save_model(built(tiny, recipe).model, task, tmp_path)
    longer = task.problem.task(
        tiny.merged(recipe, data={"max_length": 64}), task.facts, task.tokenizer
    )
    with pytest.raises(RecipeError, match=r"data\.max_length: 64 tokens, but this model reads 40"):
        load_trained(find_model(str(tmp_path)), longer)


def test_lora_trains_the_updates_and_the_new_modules_alone(tiny: Any) -> None:
    found = built(tiny, tiny.recipe("ner", base=tiny.base("mlm"), lora={"rank": 2}))
    trained = [
        name for name, parameter in found.model.named_parameters() if parameter.requires_grad
    ]
    assert found.new == ["classifier"]
    assert all("lora_" in name or "classifier.modules_to_save" in name for name in trained)
    # query and value of two layers, rank 2, width 32; and the head over 32
    labels = len(tiny.prepared(tiny.recipe("ner")).task.labels)
    assert count_parameters(found.model)[0] == 2 * 2 * 2 * (32 + 32) + 33 * labels


def test_lora_on_layers_of_ones_own_choice(tiny: Any) -> None:
    found = built(tiny, tiny.recipe("ner", base=tiny.base("mlm"), lora={"targets": ["key"]}))
    updates = {
        name.split(".")[-4] for name, _ in found.model.named_parameters() if "lora_A" in name
    }
    assert updates == {"key"}


def test_lora_that_finds_no_layer_names_those_there_are(tiny: Any) -> None:
    with pytest.raises(
        RecipeError,
        match=r"(?s)lora\.targets: LoRA found nothing to adapt.*this model: dense, key, query, value",
    ):
        built(tiny, tiny.recipe("ner", base=tiny.base("mlm"), lora={"targets": ["q_proj"]}))


def test_lora_needs_trained_weights(tiny: Any) -> None:
    with pytest.raises(RecipeError, match="this model starts from random ones"):
        built(tiny, tiny.recipe("ner", lora={"rank": 2}))


def test_a_field_that_tokenizer_or_task_decide_is_refused_where_it_would_have_no_effect(
    tiny: Any,
) -> None:
    with pytest.raises(
        RecipeError, match=r"model\.config\.vocab_size: 50, but tokenizer and task make it \d+"
    ):
        built(tiny, tiny.recipe("mlm", model={"config": {"vocab_size": 50}}))
    with pytest.raises(RecipeError, match=r"model\.config\.pad_token_id: 7, but"):
        built(tiny, tiny.recipe("mlm", model={"config": {"pad_token_id": 7}}))


def test_there_may_be_more_embeddings_than_tokens(tiny: Any) -> None:
    with pytest.raises(RecipeError, match=r"model\.config\.vocab_size: 512, but this base has \d+"):
        built(
            tiny, tiny.recipe("mlm", base=tiny.base("mlm"), model={"config": {"vocab_size": 512}})
        )
    model = built(tiny, tiny.recipe("mlm", model={"config": {"vocab_size": 512}})).model
    assert model.get_input_embeddings().num_embeddings == model.config.vocab_size == 512


def test_a_field_that_only_the_architectures_code_knows_may_be_set(tiny: Any) -> None:
    """DeBERTa-v3's ``position_buckets`` is no attribute of the config class."""
    recipe = tiny.recipe(
        "mlm", "deberta-v2", model={"config": {"relative_attention": True, "position_buckets": 16}}
    )
    assert built(tiny, recipe).model.config.position_buckets == 16
    with pytest.raises(RecipeError, match="deberta-v2 has no field 'position_bukets'"):
        built(tiny, tiny.recipe("mlm", "deberta-v2", model={"config": {"position_bukets": 16}}))


def test_positions_that_begin_behind_the_padding_are_not_counted(tiny: Any) -> None:
    """RoBERTa's 514 positions are 512 tokens; one more would be an IndexError in the first step."""
    for positions in (34, 33):
        recipe = tiny.recipe(
            "mlm", "roberta", model={"config": {"max_position_embeddings": positions}}
        )
        first = tiny.prepared(recipe).task.tokenizer.pad_token_id + 1
        if positions - first >= recipe.data.max_length:
            assert built(tiny, recipe)
        else:
            with pytest.raises(
                RecipeError, match=rf"32 tokens, but this model reads {positions - first}"
            ):
                built(tiny, recipe)


def test_new_modules_are_named_by_the_topmost() -> None:
    model = torch.nn.ModuleDict(
        {
            "body": torch.nn.Linear(2, 2),
            "head": torch.nn.ModuleDict(
                {"dense": torch.nn.Linear(2, 2), "out": torch.nn.Linear(2, 2)}
            ),
        }
    )
    head = {"head.dense.weight", "head.dense.bias", "head.out.weight", "head.out.bias"}
    assert new_modules(model, set()) == []
    assert new_modules(model, head) == ["head"]
    assert new_modules(model, head - {"head.out.bias"}) == ["head.dense", "head.out"]
    assert new_modules(model, {"body.bias"}) == ["body"]
    assert new_modules(model, {"not.a.parameter"}) == []


def test_a_head_of_other_labels_is_new(tiny: Any) -> None:
    recipe = tiny.recipe(
        "ner",
        base=tiny.base("ner"),
        data={
            "labels": [
                "O",
                *(
                    f"{p}-{k}"
                    for k in ("NUMBER", "STREET", "CITY", "STATE", "ZIP", "UNIT", "POBOX", "PLACE")
                    for p in "BI"
                ),
            ]
        },
    )
    assert built(tiny, recipe).new == ["classifier"]


def test_the_description_says_how_texts_are_read(tiny: Any) -> None:
    description = json.loads((Path(tiny.base("ner")) / "lmkit.json").read_text(encoding="utf-8"))
    assert description["task"] == "ner"
    assert description["facts"]["labels"][:2] == ["B-CITY", "I-CITY"]
    assert description["recipe"]["data"] == {
        "max_length": 32,
        "overlap": 0.25,
        "long_text": "windows",
        "document": "line",
    }


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_an_encoder_learns_to_continue_texts_without_seeing_what_comes(
    tiny: Any, architecture: str
) -> None:
    """BERT attends both ways unless its config says that it is a decoder: its loss would be of tokens that it is shown."""
    recipe = tiny.recipe("clm", architecture)
    model = built(tiny, recipe).model.eval()
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.inference_mode():
        before, after = (
            model(input_ids=each).logits[:, :-1] for each in (ids, torch.tensor([[5, 6, 7, 8, 12]]))
        )
    torch.testing.assert_close(before, after)
    assert model.config.is_decoder


def test_a_model_that_sees_what_it_predicts_is_no_causal_one(tiny: Any) -> None:
    config = {"model_type": "xlnet", "d_model": 32, "n_layer": 1, "n_head": 2, "d_inner": 64}
    with pytest.raises(ModelError, match="this xlnet sees the tokens that it is to predict"):
        built(tiny, tiny.recipe("clm", model={"preset": None, "config": config}))
    both_ways = tiny.base("mlm")
    recipe = tiny.recipe("clm", base=both_ways)
    with pytest.raises(ModelError, match="this bert sees the tokens"):
        load_trained(find_model(both_ways), tiny.prepared(recipe).task)


def test_an_architecture_may_want_a_number_for_a_token_that_the_tokenizer_lacks(tiny: Any) -> None:
    config = {
        "model_type": "modernbert-decoder",
        "num_hidden_layers": 1,
        "hidden_size": 32,
        "num_attention_heads": 2,
    }
    recipe = tiny.recipe(
        "clm", model={"preset": None, "config": config | {"intermediate_size": 32}}
    )
    assert (
        built(tiny, recipe).model.config.cls_token_id
        == tiny.prepared(recipe).task.tokenizer.pad_token_id
    )


def test_a_base_without_a_head_for_the_task_is_said(tiny: Any) -> None:
    recipe = tiny.recipe("ner", base=tiny.base("translation"))
    with pytest.raises(
        ModelError, match="transformers has no AutoModelForTokenClassification of this architecture"
    ):
        built(tiny, recipe)
