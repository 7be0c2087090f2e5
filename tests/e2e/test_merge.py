"""``lmkit merge`` with the real command line, and models of lmkit's opened by transformers and PEFT alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from lmkit.commands.train import train

TEXTS = ["a good day", "bad and awful", "the ship sailed nice days and saw a poor whale"]


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers in fp32 on any chip: what is compared is weights, not the roundings of bf16."""
    monkeypatch.setattr("lmkit.train.device.native_bf16", lambda: False)


@pytest.fixture(scope="module")
def place(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of our own, with a language model."""
    folder = tmp_path_factory.mktemp("merge")
    for file in project.iterdir():
        if file.is_file():
            shutil.copy(file, folder)
    with pytest.MonkeyPatch.context() as here:
        here.chdir(folder)
        train("pretrain", "language.yaml")
    return folder


@pytest.fixture(scope="module")
def adapter(place: Path) -> Path:
    """An adapter over it, with a token of its own."""
    options = [
        "lora={rank: 4, variant: dora}",
        "tokenizer.add_tokens=[and awful]",
        "train.learning_rate=1e-2",
    ]
    with pytest.MonkeyPatch.context() as here:
        here.chdir(place)
        train("finetune", "opinion.yaml", options, output="runs/adapter")
    return place / "runs/adapter"


@pytest.fixture(scope="module")
def merged(adapter: Path, place: Path, process: Any) -> Any:
    return process("merge", "runs/adapter", "-o", "merged", "--json", cwd=place)


def test_merge_says_what_it_made_and_proves_it(merged: Any, adapter: Path, place: Path) -> None:
    assert merged.status == 0, merged.err
    found = merged.json
    assert found.keys() == {"model", "task", "adapter", "base", "parameters", "logits_difference"}
    assert (found["model"], found["task"]) == ("merged", "classification")
    assert found["adapter"] == str(adapter / "model")
    assert found["base"] == str(place / "runs/language/model")
    assert found["logits_difference"] <= 1e-5
    assert {path.name for path in (place / "merged").iterdir()} == {
        *(
            "config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
            "lmkit.json",
            "README.md",
        )
    }
    card = (place / "merged/README.md").read_text()
    assert "lmkit predict DIR" in card
    assert "the adapter `adapter` merged into its base `language`" in card
    assert '`neg`, `pos`' in card  # fmt: skip
    assert json.loads((place / "merged/lmkit.json").read_text())["facts"]["labels"] == [
        "neg",
        "pos",
    ]


def test_the_merged_model_is_evaluated_and_predicts_as_the_adapter(
    merged: Any, place: Path, command: Any
) -> None:
    of_adapter, of_merged = (
        command("predict", each, *TEXTS, cwd=place).lines for each in ("runs/adapter", "merged")
    )
    for one, other in zip(of_adapter, of_merged, strict=True):
        assert one["prediction"] == other["prediction"]
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)
    scores = [
        command("eval", each, "data.test=test.jsonl", "eval.resamples=0", "--json", cwd=place).json
        for each in ("runs/adapter", "merged")
    ]
    assert scores[0]["metrics"] == scores[1]["metrics"]
    assert scores[0]["loss"] == pytest.approx(scores[1]["loss"], abs=1e-5)


@pytest.mark.parametrize("name", ["merged", "whole"])
def test_transformers_pipeline_says_the_same(
    merged: Any, name: str, place: Path, command: Any
) -> None:
    if name == "whole":
        assert command("finetune", "opinion.yaml", "-o", "runs/whole", "-q", cwd=place).status == 0
    folder = place / ("merged" if name == "merged" else "runs/whole/model")
    pipeline = transformers.pipeline("text-classification", model=str(folder), top_k=None)
    for answer, theirs in zip(
        command("predict", str(folder), *TEXTS, cwd=place).lines, pipeline(TEXTS), strict=True
    ):
        assert {entry["label"]: entry["score"] for entry in theirs} == pytest.approx(
            answer["probabilities"], abs=1e-5
        )


def test_the_card_of_an_adapter_opens_it_with_peft_alone(
    adapter: Path, place: Path, command: Any
) -> None:
    code = (adapter / "README.md").read_text().split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(code.replace("RUN/model", str(adapter / "model")), names)
    tokenizer = transformers.AutoTokenizer.from_pretrained(adapter / "model")
    for answer, text in zip(
        command("predict", "runs/adapter", *TEXTS, cwd=place).lines, TEXTS, strict=True
    ):
        with torch.inference_mode():
            probabilities = (
                names["model"]
                .eval()(**tokenizer(text, return_tensors="pt"))
                .logits[0]
                .softmax(-1)
                .tolist()
            )
        assert dict(zip(("neg", "pos"), probabilities, strict=True)) == pytest.approx(
            answer["probabilities"], abs=1e-5
        )


def test_an_adapter_that_lmkit_did_not_make_is_merged(
    merged: Any, place: Path, tmp_path: Path, command: Any
) -> None:
    from peft import LoraConfig, get_peft_model

    base = place / "runs/language/model"
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    model = get_peft_model(
        plain,
        LoraConfig(
            task_type="SEQ_CLS", target_modules=["query"], modules_to_save=["pooler", "classifier"]
        ),
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.full_like(parameter, 0.05))
    model.save_pretrained(tmp_path / "foreign")
    ended = command(
        "merge", str(tmp_path / "foreign"), "-o", str(tmp_path / "merged"), "--json", cwd=tmp_path
    )
    assert ended.status == 0, ended.err
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    whole = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        torch.testing.assert_close(
            whole(**batch).logits, model.eval()(**batch).logits, atol=1e-5, rtol=0
        )
    answers = command(
        "predict", str(tmp_path / "merged"), *TEXTS, "--set", "data.max_length=32", cwd=tmp_path
    )
    assert answers.status == 0, answers.err
    assert answers.lines[0]["probabilities"].keys() == {"LABEL_0", "LABEL_1", "LABEL_2"}


def test_a_model_of_lmkits_is_replaced_and_nothing_else(
    merged: Any, adapter: Path, place: Path, command: Any, tmp_path: Path
) -> None:
    shutil.copytree(place / "merged", tmp_path / "again")
    target = str(tmp_path / "again")
    assert "add --overwrite" in command("merge", str(adapter), "-o", target, cwd=place).err
    (tmp_path / "again/old").write_text("of the model before")
    assert command("merge", str(adapter), "-o", target, "--overwrite", cwd=place).status == 0
    assert not (tmp_path / "again/old").exists()
    for refused in ("runs/adapter/model", "runs/language/model", "runs/language", "."):
        ended = command("merge", str(adapter), "-o", refused, "--overwrite", cwd=place)
        assert ended.status == 2, refused
        assert "--overwrite only replaces a model directory of lmkit's" in ended.err


def test_a_merge_that_is_not_exact_leaves_nothing(
    adapter: Path, place: Path, command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmkit.models import adapters

    def careless(adapted: Any) -> Any:
        model = adapted.merge_and_unload()
        model.classifier.bias.data += 1e-3
        return model

    monkeypatch.setattr(adapters, "merged", careless)
    ended = command("merge", "runs/adapter", "-o", str(tmp_path / "merged"), cwd=place)
    assert ended.status == 2
    assert "the merged model computes something else than the adapter" in ended.err
    assert list(tmp_path.iterdir()) == []


def test_training_on_an_adapter_names_merge(
    adapter: Path, place: Path, command: Any, tmp_path: Path
) -> None:
    ended = command(
        "finetune",
        "opinion.yaml",
        "model.base=runs/adapter",
        "-o",
        str(tmp_path / "run"),
        cwd=place,
    )
    assert ended.status == 2
    assert f"lmkit merge {Path('runs/adapter')} -o DIR, then model.base=DIR" in ended.err


def test_a_pickled_adapter_is_refused(
    adapter: Path, place: Path, command: Any, tmp_path: Path
) -> None:
    shutil.copytree(adapter / "model", tmp_path / "pickled")
    weights = tmp_path / "pickled/adapter_model.safetensors"
    torch.save(load_file(weights), tmp_path / "pickled/adapter_model.bin")
    weights.unlink()
    ended = command("merge", str(tmp_path / "pickled"), "-o", str(tmp_path / "merged"), cwd=place)
    assert (ended.status, "weights are read as safetensors only" in ended.err) == (2, True)


def test_smoke_runs_adapters_added_tokens_and_frozen_layers(
    adapter: Path, place: Path, command: Any
) -> None:
    for options in (
        ["lora={rank: 2}", "tokenizer.add_tokens=[and awful]"],
        ["train.freeze_layers=12", "train.layer_decay=0.9"],
    ):
        ended = command("finetune", "opinion.yaml", *options, "--smoke", "-q", cwd=place)
        assert ended.status == 0, ended.err


# ---------------------------------------------------------------------------------- the other tasks, with transformers alone


def test_a_tagger_opens_in_the_pipeline(tiny: Any) -> None:
    import lmkit

    base = tiny.base("mlm", data={"max_rows": 200})
    run = tiny.fit(
        tiny.recipe(
            "ner", base=base, data={"max_rows": 60}, train={"max_steps": 40, "learning_rate": 1e-2}
        )
    )
    texts = ["Joe Smith 12 Main Street Boston", "PO Box 7 Springfield IL 60601"]
    pipeline = transformers.pipeline(
        "token-classification", model=str(run.model), aggregation_strategy="first"
    )
    found = 0
    for answer, theirs in zip(lmkit.load(run.path).predict(texts), pipeline(texts), strict=True):
        ours = [(entity["start"], entity["end"], entity["label"]) for entity in answer["entities"]]
        assert ours == [
            (entity["start"], entity["end"], entity["entity_group"]) for entity in theirs
        ]
        found += len(ours)
    assert found > 2


def test_a_translator_generates_alike_in_transformers(tiny: Any) -> None:
    """transformers 5 has no translation pipeline any more: its generate()."""
    import lmkit

    run = tiny.fit(
        tiny.recipe(
            "translation", train={"max_steps": 10}, generation={"num_beams": 2, "max_new_tokens": 8}
        )
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(run.model)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(run.model)
    texts = ["I am a good day.", "Where is the cat?"]
    for answer, text in zip(lmkit.load(run.path).predict(texts), texts, strict=True):
        output = model.generate(
            **tokenizer(text, return_tensors="pt"), num_beams=2, max_new_tokens=8
        )
        assert (
            tokenizer.decode(output[0], skip_special_tokens=True).strip() == answer["translation"]
        )
