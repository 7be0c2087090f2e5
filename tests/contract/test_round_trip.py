"""What is saved is what was trained, over every task: all weights, or an adapter with every module that is new.

Elsewhere a classifier by LoRA on a BERT without a pooler lost the pooler on reload [peft#310, #577].
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from lmkit.models.build import build_model
from lmkit.models.load import load_trained
from lmkit.models.save import save_model
from lmkit.models.source import find_model
from lmkit.tasks.registry import names

BASES = {
    "mlm": "mlm",
    "clm": "clm",
    "denoise": "denoise",
    "translation": "translation",
}  # the others start from an mlm
ENCODERS = ("bert", "modernbert", "roberta", "distilbert", "electra", "deberta-v2")
ADAPTED = [
    *(("classification", architecture) for architecture in (*ENCODERS, "gpt2")),
    *(("ner", architecture) for architecture in ENCODERS),
    ("translation", "marian"),
    ("translation", "t5"),
    ("denoise", "t5"),
    ("denoise", "bart"),
    ("clm", "llama"),
    ("clm", "gpt2"),
    ("mlm", "bert"),
]
KINDS = [*names(), "multi_label", "pairs", "regression"]


def trained(tiny: Any, recipe: Any) -> tuple[Any, Any, dict[str, torch.Tensor]]:
    """A model whose trained weights are all changed, its task, and a batch."""
    prepared = tiny.prepared(recipe)
    built = build_model(recipe, prepared.task, prepared.source)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in built.model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    batch = prepared.task.collate([prepared.encoded["validation"].example(i) for i in range(4)])
    return built, prepared.task, batch


def logits(model: Any, task: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = task.logits(model.eval(), batch)[0]
    return found


@pytest.mark.parametrize("task", KINDS)
def test_a_model_that_was_trained_whole_loads_as_it_was(
    tiny: Any, task: str, tmp_path: Path
) -> None:
    built, its_task, batch = trained(tiny, tiny.recipe(task))
    save_model(built.model, its_task, tmp_path)
    fresh = load_trained(find_model(str(tmp_path)), its_task)
    torch.testing.assert_close(
        logits(fresh, its_task, batch), logits(built.model, its_task, batch), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize(("task", "architecture"), ADAPTED)
def test_an_adapter_loads_with_every_module_that_is_new(
    tiny: Any, task: str, architecture: str, tmp_path: Path
) -> None:
    stage = "clm" if architecture == "gpt2" else BASES.get(task, "mlm")
    recipe = tiny.recipe(task, base=tiny.base(stage, architecture), lora={"rank": 4})
    built, its_task, batch = trained(tiny, recipe)
    save_model(built.model, its_task, tmp_path)
    fresh = load_trained(find_model(str(tmp_path)), its_task)
    expected = logits(built.model, its_task, batch)
    torch.testing.assert_close(logits(fresh, its_task, batch), expected, atol=1e-6, rtol=0)

    saved = load_file(tmp_path / "adapter_model.safetensors")
    for name in built.new:
        assert [key for key in saved if f"{name}." in key], f"{name} is not in the adapter"
    assert sum(p.numel() for p in built.model.parameters() if p.requires_grad) == sum(
        p.numel() for p in saved.values()
    )
    with built.model.disable_adapter():
        assert (logits(built.model, its_task, batch) - expected).abs().max() > 1e-2


def test_a_pooler_that_masked_language_models_lack_is_new(tiny: Any) -> None:
    recipe = tiny.recipe("classification", base=tiny.base("mlm", "bert"), lora={"rank": 4})
    prepared = tiny.prepared(recipe)
    assert build_model(recipe, prepared.task, prepared.source).new == ["bert.pooler", "classifier"]


@pytest.mark.parametrize("lora", [None, {"rank": 4}])
def test_fit_fails_where_the_saved_model_computes_something_else(
    tiny: Any, lora: dict[str, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmkit.errors import ModelError
    from lmkit.train import fit

    def careless(model: Any, task: Any, folder: Path) -> None:
        save_model(model, task, folder)
        file = folder / ("model.safetensors" if lora is None else "adapter_model.safetensors")
        weights = load_file(file)
        pooler = next(name for name in weights if "pooler" in name and name.endswith("bias"))
        save_file(weights | {pooler: weights[pooler] + 1}, file, metadata={"format": "pt"})

    monkeypatch.setattr(fit, "save_model", careless)
    recipe = tiny.recipe("classification", base=tiny.base("mlm", "bert"), lora=lora)
    with pytest.raises(
        ModelError, match="the saved model computes something else than the trained one"
    ):
        tiny.fit(recipe)


@pytest.mark.parametrize(
    ("task", "stage", "architecture"), [("classification", "mlm", "bert"), ("clm", "clm", "llama")]
)
@pytest.mark.parametrize("lora", [None, {"rank": 4}])
def test_added_tokens_survive_saving(
    tiny: Any, task: str, stage: str, architecture: str, lora: dict[str, int] | None, tmp_path: Path
) -> None:
    """Elsewhere embeddings that grew and LoRA together break save, merge or load [peft#2898]."""
    base = tmp_path / "base"
    shutil.copytree(tiny.base(stage, architecture), base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert tokenizer.add_tokens(["Ishmael", "Queequeg"]) == 2
    tokenizer.save_pretrained(base)
    recipe = tiny.recipe(task, base=str(base), lora=lora)
    built, its_task, _ = trained(tiny, recipe)
    (tmp_path / "saved").mkdir()
    save_model(built.model, its_task, tmp_path / "saved")
    fresh = load_trained(find_model(str(tmp_path / "saved")), its_task)
    rows = [{"id": 0, "text": "Call me Ishmael, Queequeg."}]
    columns = its_task.encode(rows)
    piece = {name: values[0] for name, values in columns.items()} | {"piece": 0}
    assert set(tokenizer.convert_tokens_to_ids(["Ishmael", "Queequeg"])) <= set(piece["input_ids"])
    batch = its_task.collate([[piece]])
    torch.testing.assert_close(
        logits(fresh, its_task, batch), logits(built.model, its_task, batch), atol=1e-6, rtol=0
    )
