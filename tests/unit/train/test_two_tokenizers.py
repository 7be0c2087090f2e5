"""A vocabulary for each language: learned, saved, loaded, and counted in every hash."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
import transformers

from lmkit.commands.predict import Predictor
from lmkit.errors import RecipeError
from lmkit.flow.smoke import smoke_run
from lmkit.models.tokenizer import load_tokenizer, save_tokenizer, tokenizer_hash
from lmkit.preflight import check_model_keys
from lmkit.run import Run
from lmkit.tasks.languages import target_of

APART = {"train": {"joint": False, "algorithm": "unigram", "vocab_size": 300}}


@pytest.fixture(scope="module")
def run(tiny: Any) -> Run:
    found: Run = tiny.fit(tiny.recipe("translation", tokenizer=APART, train={"max_steps": 3}))
    return found


def test_each_language_has_its_own_pieces(tiny: Any) -> None:
    apart = tiny.prepared(tiny.recipe("translation", tokenizer=APART)).task.tokenizer
    joint = tiny.prepared(
        tiny.recipe("translation", tokenizer={"train": APART["train"] | {"joint": True}})
    ).task.tokenizer
    assert target_of(joint) is joint
    letters = [
        {token for token in each.get_vocab() if token in set("ñáéíó¿¡")}
        for each in (apart, target_of(apart), joint)
    ]
    assert not letters[0]
    assert letters[1] == letters[2]
    assert letters[1]


def test_the_model_has_two_vocabularies(run: Run) -> None:
    config = json.loads((run.model / "config.json").read_text())
    source = transformers.AutoTokenizer.from_pretrained(run.model)
    target = transformers.AutoTokenizer.from_pretrained(run.model / "target_tokenizer")
    assert (config["vocab_size"], config["decoder_vocab_size"]) == (len(source), len(target))
    assert not config["share_encoder_decoder_embeddings"]
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(run.model)
    encoder, decoder = (
        model.get_encoder().embed_tokens.weight,
        model.get_decoder().embed_tokens.weight,
    )
    assert len(encoder) == len(source)
    assert decoder is model.lm_head.weight
    assert len(decoder) == len(target)


def test_prediction_reads_with_one_and_writes_with_the_other(run: Run) -> None:
    text = "I know about you two."
    (answer,) = Predictor(str(run.path)).predict([text])
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(run.model).eval()
    source = transformers.AutoTokenizer.from_pretrained(run.model)
    target = transformers.AutoTokenizer.from_pretrained(run.model / "target_tokenizer")
    output = model.generate(**source(text, return_tensors="pt"))
    assert answer["translation"] == target.batch_decode(output, skip_special_tokens=True)[0].strip()
    (loaded,) = Predictor(str(run.model)).predict([text])  # the model's directory alone
    assert loaded == answer


def test_fine_tuning_goes_on_with_both(tiny: Any, run: Run) -> None:
    again = tiny.fit(tiny.recipe("translation", base=str(run.path)))
    assert (again.model / "target_tokenizer" / "tokenizer.json").is_file()
    assert tokenizer_hash(load_tokenizer(str(again.model))) == tokenizer_hash(
        load_tokenizer(str(run.model))
    )


def test_the_hash_is_of_both(run: Run, tmp_path: Any) -> None:
    apart = load_tokenizer(str(run.model))
    shutil.copytree(
        run.model, tmp_path / "alone", ignore=shutil.ignore_patterns("target_tokenizer")
    )
    alone = load_tokenizer(str(tmp_path / "alone"))
    assert target_of(alone) is alone
    assert len({tokenizer_hash(each) for each in (apart, alone, target_of(apart))}) == 3
    save_tokenizer(apart, tmp_path / "again")
    assert tokenizer_hash(load_tokenizer(str(tmp_path / "again"))) == tokenizer_hash(apart)
    assert run.manifest["tokenizer"]["sha256"] == tokenizer_hash(apart)


def test_a_smoke_run_has_two_as_well(tiny: Any) -> None:
    found = smoke_run(tiny.recipe("translation", tokenizer=APART))
    assert found.to_json()["smoke"]


@pytest.mark.parametrize(
    ("task", "architecture", "sections", "message"),
    [
        ("translation", "t5", {}, "t5 has one vocabulary for both languages"),
        ("classification", None, {}, "has no effect: only translation has two languages"),
        ("translation", None, {"files": "a.txt"}, "given beside tokenizer.train.files"),
    ],
)
def test_two_where_there_is_room_for_one(
    tiny: Any, task: str, architecture: str | None, sections: dict[str, Any], message: str
) -> None:
    recipe = tiny.recipe(task, architecture, tokenizer={"train": {"joint": False, **sections}})
    with pytest.raises(RecipeError, match=f"tokenizer.train.joint: {message}"):
        check_model_keys(recipe, None)


def test_languages_are_for_translation(tiny: Any) -> None:
    with pytest.raises(RecipeError, match="translation: has no effect"):
        check_model_keys(tiny.recipe("classification", translation={"prefix": "x"}), None)
