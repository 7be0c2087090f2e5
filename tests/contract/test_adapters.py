"""Adapters over nine architectures: saved with everything that is new, loaded, merged, and opened by PEFT alone.

Elsewhere a pooler that the base lacks is lost on reload [peft#310, #577], and added tokens together with LoRA
break save, load or merge [peft#2898].
"""

from __future__ import annotations

import json
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from lmkit.commands.merge import merge
from lmkit.errors import ModelError, RecipeError
from lmkit.models.adapters import TASK_TYPES, probe_logits
from lmkit.models.build import Built, build_model
from lmkit.models.load import load_trained
from lmkit.models.pretrained import from_pretrained
from lmkit.models.save import save_model
from lmkit.models.source import find_model
from lmkit.recipe.schema import Model

ENCODERS = ("bert", "roberta", "deberta-v2", "distilbert", "modernbert")
CASES = [
    *(("classification", architecture) for architecture in (*ENCODERS, "gpt2", "llama")),
    *(("ner", architecture) for architecture in ENCODERS),
    *(("translation", architecture) for architecture in ("t5", "marian", "bart")),
    *(("clm", architecture) for architecture in ("gpt2", "llama")),
]
VARIANTS = ("lora", "rslora", "dora")
TOKENS = ["Ishmael", "Queequeg"]


def base_of(tiny: Any, task: str, architecture: str, **sections: Any) -> str:
    stage = (
        "clm"
        if architecture in ("gpt2", "llama")
        else "translation"
        if task == "translation"
        else "mlm"
    )
    folder: str = tiny.base(stage, architecture, **sections)
    return folder


def adapted(
    tiny: Any, task: str, base: str, lora: dict[str, Any] | None, **sections: Any
) -> tuple[Built, Any]:
    """A model whose trained weights are all changed, and its task."""
    recipe = tiny.recipe(task, base=base, lora=lora, **sections)
    prepared = tiny.prepared(recipe)
    built = build_model(recipe, prepared.task, prepared.source)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in built.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return built, prepared.task


@pytest.mark.parametrize(("task", "architecture"), CASES)
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_adapter_with_added_tokens_is_the_same_loaded_merged_and_in_peft(
    tiny: Any, task: str, architecture: str, tmp_path: Path
) -> None:
    lora = {
        "rank": 4,
        "targets": "all-linear",
        "variant": VARIANTS[CASES.index((task, architecture)) % 3],
    }
    base = base_of(tiny, task, architecture)
    built, its_task = adapted(tiny, task, base, lora, tokenizer={"add_tokens": TOKENS})
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_model(built.model, its_task, folder)
    expected = probe_logits(built.model)

    fresh = load_trained(find_model(str(folder)), its_task)
    assert (probe_logits(fresh) - expected).abs().max() <= 1e-6
    saved = load_file(folder / "adapter_model.safetensors")
    assert sum(p.numel() for p in built.model.parameters() if p.requires_grad) == sum(
        p.numel() for p in saved.values()
    )

    found = merge(str(folder), str(tmp_path / "merged"))
    whole = getattr(transformers, its_task.problem.auto_class).from_pretrained(tmp_path / "merged")
    assert type(whole).__module__.startswith("transformers.")
    bound = 1e-5 * max(1.0, float(expected.abs().max()))
    assert (probe_logits(whole) - expected).abs().max() <= bound
    assert found.logits_difference <= bound
    with built.model.disable_adapter():
        assert (probe_logits(built.model) - expected).abs().max() > 1e-3

    labels = {"num_labels": len(its_task.labels)} if hasattr(its_task, "labels") else {}
    opened = getattr(
        peft, "AutoPeft" + its_task.problem.auto_class.removeprefix("Auto")
    ).from_pretrained(folder, **labels)
    assert (probe_logits(opened) - expected).abs().max() <= 1e-6


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_rows_of_added_tokens_are_learned_where_they_are_read_and_where_they_are_predicted(
    tiny: Any, tied: bool, tmp_path: Path
) -> None:
    base = base_of(tiny, "clm", "llama", model={"config": {"tie_word_embeddings": tied}})
    built, its_task = adapted(tiny, "clm", base, {"rank": 4}, tokenizer={"add_tokens": TOKENS})
    save_model(built.model, its_task, tmp_path)
    rows = {
        name: tuple(p.shape)
        for name, p in load_file(tmp_path / "adapter_model.safetensors").items()
        if "tokens_delta" in name
    }
    assert set(rows.values()) == {(2, built.model.config.hidden_size)}
    assert len(rows) == (1 if tied else 2)
    merge(str(tmp_path), str(tmp_path / "merged"))
    whole = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(probe_logits(whole), probe_logits(built.model), atol=1e-5, rtol=0)
    weights = load_file(tmp_path / "merged/model.safetensors")
    assert ("lm_head.weight" in weights) is not tied


@pytest.mark.parametrize("architecture", ["bert", "roberta", "modernbert"])
def test_added_tokens_and_lora_are_refused_where_peft_would_lose_the_bias(
    tiny: Any, architecture: str
) -> None:
    with pytest.raises(
        RecipeError, match=r"added tokens and LoRA do not go together for .*ForMaskedLM"
    ):
        adapted(
            tiny,
            "mlm",
            base_of(tiny, "mlm", architecture),
            {"rank": 4},
            tokenizer={"add_tokens": TOKENS},
        )


@pytest.mark.parametrize("architecture", ["marian", "bart"])
def test_added_tokens_and_lora_are_refused_where_peft_would_miss_a_table(
    tiny: Any, architecture: str
) -> None:
    base = base_of(
        tiny, "translation", architecture, model={"config": {"tie_word_embeddings": False}}
    )
    with pytest.raises(
        RecipeError, match=r"tokenizer\.add_tokens: added tokens and LoRA do not go together"
    ):
        adapted(tiny, "translation", base, {"rank": 4}, tokenizer={"add_tokens": TOKENS})


@pytest.mark.parametrize("architecture", ["bart", "t5"])
def test_added_tokens_and_lora_are_refused_where_peft_would_train_a_table_that_nobody_reads(
    tiny: Any, architecture: str
) -> None:
    """The classifiers of encoder-decoders do not say that their tables are tied."""
    base = base_of(tiny, "translation", architecture)
    with pytest.raises(
        RecipeError,
        match=r"added tokens and LoRA do not go together for .*: .*encoder\.embed_tokens",
    ):
        adapted(tiny, "classification", base, {"rank": 4}, tokenizer={"add_tokens": TOKENS})


@pytest.mark.parametrize("architecture", ["bart", "t5"])
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_classifier_that_reads_at_the_end_mark_is_merged(
    tiny: Any, architecture: str, tmp_path: Path
) -> None:
    built, its_task = adapted(
        tiny, "classification", base_of(tiny, "translation", architecture), {"rank": 4}
    )
    (tmp_path / "adapter").mkdir()
    save_model(built.model, its_task, tmp_path / "adapter")
    merge(str(tmp_path / "adapter"), str(tmp_path / "merged"))
    whole = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(probe_logits(whole), probe_logits(built.model), atol=1e-5, rtol=0)


# ---------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("variant", "scale"), [("lora", 2.0), ("rslora", 8 / math.sqrt(4)), ("dora", 2.0)]
)
def test_variants_scale_the_update(tiny: Any, variant: str, scale: float) -> None:
    built, _ = adapted(
        tiny, "ner", base_of(tiny, "ner", "bert"), {"rank": 4, "alpha": 8, "variant": variant}
    )
    layer = built.model.base_model.model.bert.encoder.layer[0].attention.self.query
    assert layer.scaling["default"] == scale
    assert bool(layer.lora_magnitude_vector) == (variant == "dora")


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("auto", {"query", "value"}),
        ("key", {"key"}),
        (["query", "output.dense"], {"query", "dense"}),
        ("all-linear", {"query", "key", "value", "dense"}),
    ],
)
def test_targets_say_what_is_adapted(
    tiny: Any, targets: str | list[str], expected: set[str]
) -> None:
    built, _ = adapted(
        tiny,
        "classification",
        base_of(tiny, "classification", "bert"),
        {"rank": 4, "targets": targets},
    )
    found = built.model.base_model.targeted_module_names
    assert {name.split(".")[-1] for name in found} == expected
    assert not [
        name for name in found if "pooler" in name or "classifier" in name
    ]  # these are new, and trained whole


@pytest.mark.parametrize("targets", ["qkv", ["query", "qkv"], ["query", "classifier"]])
def test_a_target_that_adapts_nothing_is_refused(tiny: Any, targets: str | list[str]) -> None:
    with pytest.raises(
        RecipeError,
        match=r"lora\.targets: LoRA found nothing to adapt: (.|\n)*: dense, key, query, value",
    ):
        adapted(
            tiny,
            "classification",
            base_of(tiny, "classification", "bert"),
            {"rank": 4, "targets": targets},
        )


def test_an_adapter_knows_where_its_base_is_from_anywhere(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = Path(base_of(tiny, "ner", "bert"))
    monkeypatch.chdir(base.parent)
    built, its_task = adapted(tiny, "ner", base.name, {"rank": 4})
    save_model(built.model, its_task, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())[
        "base_model_name_or_path"
    ] == str(base.resolve())
    monkeypatch.chdir("/")
    load_trained(find_model(str(tmp_path)), its_task)


def test_an_adapter_without_its_head_is_refused(tiny: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    built, its_task = adapted(
        tiny, "classification", base_of(tiny, "classification", "bert"), {"rank": 4}
    )
    save_model(built.model, its_task, tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    save_file(
        {name: value for name, value in load_file(file).items() if "pooler" not in name},
        file,
        metadata={"format": "pt"},
    )
    with pytest.raises(
        ModelError, match=r"neither the adapter nor its base has weights for bert\.pooler"
    ):
        load_trained(find_model(str(tmp_path)), its_task)


def test_every_task_type_is_one_of_pefts() -> None:
    assert set(TASK_TYPES.values()) <= {kind.value for kind in peft.TaskType}


# ---------------------------------------------------------------------------------- added tokens, all weights trained


@pytest.mark.parametrize(
    ("task", "architecture"),
    [("mlm", "bert"), ("mlm", "roberta"), ("clm", "llama"), ("clm", "gpt2"), ("classification", "bert"), ("ner", "distilbert"), ("translation", "marian"), ("translation", "t5")],
)  # fmt: skip
def test_added_tokens_start_as_the_mean_of_their_pieces_and_survive_saving(
    tiny: Any, task: str, architecture: str, tmp_path: Path
) -> None:
    base = base_of(tiny, task, architecture)
    recipe = tiny.recipe(task, base=base, tokenizer={"add_tokens": TOKENS})
    prepared = tiny.prepared(recipe)
    built = build_model(recipe, prepared.task, prepared.source)
    before = transformers.AutoTokenizer.from_pretrained(base)
    plain, _ = from_pretrained(prepared.task.problem.auto_class, base, Model(), {})
    for get in ("get_input_embeddings", "get_output_embeddings"):
        if (table := getattr(built.model, get)()) is not None:
            old = getattr(plain, get)().weight
            torch.testing.assert_close(table.weight[: len(old)], old)
            for token in TOKENS:
                pieces = before(token, add_special_tokens=False)["input_ids"]
                row = table.weight[prepared.task.tokenizer.convert_tokens_to_ids(token)]
                torch.testing.assert_close(row, old[pieces].mean(0))

    again = build_model(recipe, prepared.task, prepared.source)
    save_model(built.model, prepared.task, tmp_path)
    fresh = load_trained(find_model(str(tmp_path)), prepared.task)
    assert torch.equal(
        fresh.get_input_embeddings().weight, built.model.get_input_embeddings().weight
    )
    for other in (fresh, again.model.eval()):
        kept = other.state_dict()
        assert all(
            torch.equal(kept[name], value) for name, value in built.model.state_dict().items()
        )
        torch.testing.assert_close(
            probe_logits(other), probe_logits(built.model), atol=1e-6, rtol=0
        )  # kernels round as memory lies
    assert transformers.AutoTokenizer.from_pretrained(tmp_path).convert_tokens_to_ids(TOKENS) == [
        len(before),
        len(before) + 1,
    ]


# ---------------------------------------------------------------------------------- a base in few bits


def test_an_adapter_of_a_quantised_base_is_loaded_on_the_whole_one_where_the_hardware_is_not_there(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    built, its_task = adapted(tiny, "ner", base_of(tiny, "ner", "bert"), {"rank": 4})
    save_model(built.model, its_task, tmp_path)
    described = json.loads((tmp_path / "lmkit.json").read_text())
    (tmp_path / "lmkit.json").write_text(json.dumps(described | {"quantize": "4bit"}))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    fresh = load_trained(find_model(str(tmp_path)), its_task)
    assert (
        "the adapter was trained on a 4bit base, which is loaded in full precision here"
        in capsys.readouterr().err
    )
    torch.testing.assert_close(probe_logits(fresh), probe_logits(built.model))


@pytest.mark.skipif(
    not torch.cuda.is_available() or find_spec("bitsandbytes") is None,
    reason="needs a GPU and bitsandbytes",
)
@pytest.mark.parametrize("bits", ["4bit", "8bit"])
@pytest.mark.parametrize(
    ("task", "architecture"), [("classification", "bert"), ("clm", "llama"), ("translation", "t5")]
)
def test_an_adapter_on_a_quantised_base_is_proven_and_merges_into_the_whole_one(
    tiny: Any, task: str, architecture: str, bits: str, tmp_path: Path
) -> None:
    run = tiny.fit(
        tiny.recipe(
            task, base=base_of(tiny, task, architecture), lora={"rank": 4, "quantize": bits}
        )
    )
    assert merge(str(run.path), str(tmp_path / "merged")).logits_difference <= 1e-5


def test_what_stands_beside_the_weights_is_merged_too(tiny: Any, tmp_path: Path) -> None:
    """The transitions of a CRF, two vocabularies tied each to its own output, and what a generated text begins with."""
    from lmkit.commands.merge import merge
    from lmkit.commands.predict import Predictor

    tagger = tiny.fit(
        tiny.recipe("ner", base=tiny.base("mlm"), lora={"rank": 4}, tagging={"crf": True})
    )
    two = {"tokenizer": {"train": {"joint": False}}}
    lora = {"rank": 4, "targets": "all-linear"}
    options = {"num_beams": 2, "max_new_tokens": 7}
    translator = tiny.fit(
        tiny.recipe(
            "translation", base=tiny.base("translation", **two), lora=lora, generation=options
        )
    )
    for run, texts in (
        (tagger, ["12 Main Street, Springfield"]),
        (translator, ["I like this house.", "Tom is here."]),
    ):
        merge(str(run.path), str(tmp_path / run.path.name))
        ours, merged = (
            Predictor(str(place)).predict(texts) for place in (run.path, tmp_path / run.path.name)
        )
        assert [answer.get("tags", answer.get("translation")) for answer in merged] == [
            answer.get("tags", answer.get("translation")) for answer in ours
        ]
    assert (tmp_path / tagger.path.name / "crf.safetensors").is_file()
    assert (tmp_path / translator.path.name / "target_tokenizer" / "tokenizer.json").is_file()
    generation = json.loads(
        (tmp_path / translator.path.name / "generation_config.json").read_text()
    )
    assert (generation["num_beams"], generation["max_new_tokens"]) == (2, 7)
