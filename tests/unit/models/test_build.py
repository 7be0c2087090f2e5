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
from lmkit.models.build import Built, build_model, count_parameters, load_trained, save_model
from lmkit.models.load import new_modules
from lmkit.models.source import find_model
from lmkit.tasks.registry import TASKS


def built(tiny: Any, recipe: Any) -> Built:
    prepared = tiny.prepared(recipe)
    return build_model(recipe, prepared.task, prepared.source)


@pytest.mark.parametrize("task", TASKS)
def test_saved_models_open_with_plain_transformers(tiny: Any, task: str) -> None:
    folder = tiny.base(task)
    recipe = tiny.recipe(task)
    prepared, ours = tiny.prepared(recipe), tiny.model(recipe)
    theirs = getattr(transformers, prepared.task.model_class).from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = "Coffee will be ready in a minute."
    inputs = tokenizer(text, return_tensors="pt")
    assert inputs["input_ids"].tolist() == [prepared.task.tokenizer(text)["input_ids"]]
    inputs = dict(inputs) | ({"decoder_input_ids": inputs["input_ids"]} if task == "translation" else {})
    with torch.inference_mode():
        torch.testing.assert_close(theirs(**inputs).logits, ours(**inputs).logits, atol=1e-6, rtol=0)
    for field in ("id2label", "num_labels", "pad_token_id"):
        assert getattr(theirs.config, field) == getattr(ours.config, field)
    assert sorted(path.name for path in Path(folder).iterdir() if path.suffix in (".bin", ".pt", ".pkl")) == []


def test_a_pipeline_of_transformers_gives_the_same_labels(tiny: Any, tmp_path: Path) -> None:
    recipe = tiny.recipe("classification")
    task, model = tiny.prepared(recipe).task, tiny.model(recipe)
    torch.nn.init.normal_(model.classifier.weight)
    save_model(model, task, tmp_path)
    texts = ["Yay. Another good phone interview.", "So lucky.", "I hate mondays"]
    rows = task.text_rows(texts)
    columns = task.encode(rows)
    pieces = [{name: values[i] for name, values in columns.items()} for i in range(3)]
    with torch.inference_mode():
        parts = task.predict(model, task.collate([[piece] for piece in pieces]), pieces)
    mine = [task.combine(row, [part]) for row, part in zip(rows, parts, strict=True)]
    theirs = transformers.pipeline("text-classification", model=str(tmp_path))(texts)
    assert [answer["label"] for answer in theirs] == [record["prediction"] for record in mine]
    assert [answer["score"] for answer in theirs] == pytest.approx([record["score"] for record in mine], abs=1e-5)


def test_a_pipeline_of_transformers_gives_the_same_tags(tiny: Any, tmp_path: Path) -> None:
    recipe = tiny.recipe("ner")
    task, model = tiny.prepared(recipe).task, tiny.model(recipe)
    torch.nn.init.normal_(model.classifier.weight)
    save_model(model, task, tmp_path)
    row = {"id": 0, "tokens": ["8128", "DR", "MARTIN"]}
    piece = {name: values[0] for name, values in task.encode([row]).items()}
    with torch.inference_mode():
        record = task.combine(row, task.predict(model, task.collate([[piece]]), [piece]))
    answers = transformers.pipeline("token-classification", model=str(tmp_path), ignore_labels=[])(" ".join(row["tokens"]))
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
    with pytest.raises(ModelError, match=f"this model was not trained for {task}: no weights for .*classifier"):
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


def test_lora_trains_the_updates_and_the_new_modules_alone(tiny: Any) -> None:
    found = built(tiny, tiny.recipe("ner", base=tiny.base("mlm"), lora={"rank": 2}))
    trained = [name for name, parameter in found.model.named_parameters() if parameter.requires_grad]
    assert found.new == ["classifier"]
    assert all("lora_" in name or "classifier.modules_to_save" in name for name in trained)
    # query and value of two layers, rank 2, width 32; and the head over 32
    labels = len(tiny.prepared(tiny.recipe("ner")).task.labels)
    assert count_parameters(found.model)[0] == 2 * 2 * 2 * (32 + 32) + 33 * labels


def test_lora_on_layers_of_ones_own_choice(tiny: Any) -> None:
    found = built(tiny, tiny.recipe("ner", base=tiny.base("mlm"), lora={"targets": ["key"]}))
    updates = {name.split(".")[-4] for name, _ in found.model.named_parameters() if "lora_A" in name}
    assert updates == {"key"}


def test_lora_that_finds_no_layer_names_those_there_are(tiny: Any) -> None:
    with pytest.raises(
        RecipeError, match=r"(?s)lora\.targets: LoRA found nothing to adapt.*this model: dense, key, query, value"
    ):
        built(tiny, tiny.recipe("ner", base=tiny.base("mlm"), lora={"targets": ["q_proj"]}))


def test_lora_needs_trained_weights(tiny: Any) -> None:
    with pytest.raises(RecipeError, match="this model starts from random ones"):
        built(tiny, tiny.recipe("ner", lora={"rank": 2}))


def test_new_modules_are_named_by_the_topmost() -> None:
    model = torch.nn.ModuleDict(
        {
            "body": torch.nn.Linear(2, 2),
            "head": torch.nn.ModuleDict({"dense": torch.nn.Linear(2, 2), "out": torch.nn.Linear(2, 2)}),
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
                *(f"{p}-{k}" for k in ("NUMBER", "STREET", "CITY", "STATE", "ZIP", "UNIT", "POBOX", "PLACE") for p in "BI"),
            ]
        },
    )
    assert built(tiny, recipe).new == ["classifier"]


def test_the_description_says_how_texts_are_read(tiny: Any) -> None:
    description = json.loads((Path(tiny.base("ner")) / "lmkit.json").read_text(encoding="utf-8"))
    assert description["task"] == "ner"
    assert description["facts"]["labels"][:2] == ["B-CITY", "I-CITY"]
    assert description["recipe"]["data"] == {"max_length": 32, "overlap": 0.25, "long_text": "windows", "document": "line"}


def test_a_base_without_a_head_for_the_task_is_said(tiny: Any) -> None:
    recipe = tiny.recipe("ner", base=tiny.base("translation"))
    with pytest.raises(ModelError, match="transformers has no AutoModelForTokenClassification of this architecture"):
        built(tiny, recipe)
