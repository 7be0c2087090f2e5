"""Source and target as tokens, and what the decoder sees of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from lmkit.batch import IGNORE, uncounted
from lmkit.errors import ModelError
from lmkit.tasks.base import TooLong
from lmkit.tasks.translation.problem import tokenizer_for

ROW = {"id": 0, "source": "I know about you two.", "target": "Os conozco a ambos."}


def task_of(tiny: Any, **data: Any) -> Any:
    recipe = tiny.recipe("translation")
    task = tiny.prepared(recipe).task
    return task.problem.task(
        recipe.model_copy(update={"data": recipe.data.model_copy(update=data)}),
        task.facts,
        task.tokenizer,
    )


def test_both_sides_end_with_the_end_mark(tiny: Any) -> None:
    task = task_of(tiny)
    columns = task.encode([ROW])
    end = task.tokenizer.eos_token_id
    assert columns["input_ids"][0][-1] == columns["labels"][0][-1] == end
    assert task.tokenizer.decode(columns["labels"][0], skip_special_tokens=True) == ROW["target"]
    assert columns["length"] == [len(columns["input_ids"][0]) + len(columns["labels"][0])]


@pytest.mark.parametrize("architecture", ["marian", "t5", "bart"])
def test_the_decoder_sees_the_target_shifted_by_one(
    tiny: Any, architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny.recipe("translation", architecture)
    task, model = tiny.prepared(recipe).task, tiny.model(recipe)
    piece = {name: values[0] for name, values in task.encode([ROW]).items()}
    short = piece | {"labels": piece["labels"][-3:]}
    seen: dict[str, Any] = {}
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda **inputs: seen.update(inputs) or forward(**inputs))
    batch = task.collate([[piece], [short]])
    task.logits(model, batch)
    start, pad = model.config.decoder_start_token_id, task.tokenizer.pad_token_id
    rest = len(piece["labels"]) - 3
    assert seen["decoder_input_ids"].tolist() == [
        [start, *piece["labels"][:-1]],
        [start, *short["labels"][:-1], *([short["labels"][-1]] + [pad] * rest)[:rest]],
    ]
    assert batch.labels[1].tolist() == [*short["labels"], *[IGNORE] * rest]


@pytest.mark.parametrize("architecture", ["marian", "t5", "bart", "mbart"])
def test_a_rank_without_examples_has_a_forward_pass_all_the_same(
    tiny: Any, architecture: str
) -> None:
    recipe = tiny.recipe("translation", architecture)
    task, model = tiny.prepared(recipe).task, tiny.model(recipe)
    piece = {name: values[0] for name, values in task.encode([ROW]).items()}
    batch = task.collate([[piece]])
    loss = task.loss(model, replace(batch, labels=uncounted(batch.labels)))
    assert loss.item() == 0


def test_long_pairs_are_refused_or_cut_with_the_end_mark_kept(tiny: Any) -> None:
    long = ROW | {"target": " ".join([ROW["target"]] * 9)}
    task = task_of(tiny)
    with pytest.raises(TooLong) as refused:
        task.encode([ROW, long])
    assert refused.value.rows == [
        (1, len(task.tokenizer(long["target"], verbose=False)["input_ids"]))
    ]
    columns = task_of(tiny, long_text="head").encode([ROW, long])
    assert columns["cut"] == [0, 1]
    assert len(columns["labels"][1]) == 64
    assert columns["labels"][1][-1] == task.tokenizer.eos_token_id
    assert (
        columns["labels"][1][:63] == task.tokenizer(long["target"], verbose=False)["input_ids"][:63]
    )


def test_sources_without_targets_are_translated(tiny: Any) -> None:
    task = task_of(tiny)
    rows = task.problem.rows(["I know."], task.facts)
    columns = task.encode(rows)
    assert columns["labels"] == [[]]
    piece = {name: values[0] for name, values in columns.items()}
    with torch.inference_mode():
        (part,) = task.predict(
            tiny.model(tiny.recipe("translation")), task.collate([[piece]]), [piece]
        )
    assert task.problem.show(task.combine(rows[0], [part]), task.facts).keys() == {
        "id",
        "text",
        "translation",
        "score",
    }
    assert (part["nll"], part["items"]) == (0.0, 0)


def test_the_source_is_encoded_once_for_the_loss_and_the_search(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, model = task_of(tiny), tiny.model(tiny.recipe("translation"))
    piece = {name: values[0] for name, values in task.encode([ROW]).items()}
    encoder, calls = model.get_encoder(), []
    forward = encoder.forward
    monkeypatch.setattr(
        encoder, "forward", lambda *given, **named: calls.append(1) or forward(*given, **named)
    )
    batch = task.collate([[piece]])
    with torch.inference_mode():
        (part,) = task.predict(model, batch, [piece])
        assert len(calls) == 1
        assert part["nll"] == pytest.approx(float(task.loss(model, batch)), rel=1e-5)


@pytest.mark.parametrize("architecture", ["marian", "t5", "bart", "mbart"])
def test_the_loss_of_a_sentence_in_a_batch_is_its_loss_alone(tiny: Any, architecture: str) -> None:
    recipe = tiny.recipe(
        "translation", architecture, generation={"num_beams": 2, "max_new_tokens": 3}
    )
    task, model = tiny.prepared(recipe).task, tiny.model(recipe).eval()
    rows = [ROW, {"id": 1, "source": "So lucky.", "target": "Qué suerte."}]
    pieces = [{name: values[0] for name, values in task.encode([row]).items()} for row in rows]
    with torch.inference_mode():
        together = task.predict(model, task.collate([[piece] for piece in pieces]), pieces)
        alone = [float(task.loss(model, task.collate([[piece]]))) for piece in pieces]
    assert [part["nll"] for part in together] == pytest.approx(alone, rel=1e-5)
    assert [part["items"] for part in together] == [len(piece["labels"]) for piece in pieces]


def test_an_encoder_alone_is_refused(tiny: Any) -> None:
    with pytest.raises(ModelError, match="bert is no encoder-decoder, and translation needs one"):
        tiny.model(tiny.recipe("translation", base=tiny.base("mlm", "bert")))


def test_bleu_is_counted_in_the_units_of_the_language() -> None:
    assert tokenizer_for(["El café estará listo en un minuto."]) == "13a"
    assert tokenizer_for(["烛影摇红：吾菊山翁"]) == "zh"
    assert tokenizer_for(["私は学生です"]) == "char"
    assert tokenizer_for(["나는 학생입니다"]) == "char"
    assert tokenizer_for([]) == "13a"


def test_nothing_is_written_beyond_the_positions_of_the_decoder(tiny: Any) -> None:
    """One more would be an IndexError; the output is cut there, and counted as cut."""
    recipe = tiny.recipe(
        "translation",
        model={"config": {"max_position_embeddings": 40}},
        data={"max_length": 40},
        generation={"max_new_tokens": 128},
    )
    prepared, model = tiny.prepared(recipe), tiny.model(recipe)
    end = model.config.eos_token_id
    model.final_logits_bias[0, end] = -1e4  # never
    pieces = [prepared.encoded["validation"].example(0)[0]]
    (part,) = prepared.task.predict(model, prepared.task.collate([pieces]), pieces)
    assert part["truncated"]


@pytest.mark.parametrize(
    "text",
    ["ฉันเป็นนักเรียน", "ຂ້ອຍເປັນນັກຮຽນ", "ကျွန်တော်ကျောင်းသားပါ", "ខ្ញុំជាសិស្ស"],
    ids=["Thai", "Lao", "Burmese", "Khmer"],
)
def test_bleu_of_an_unspaced_sentence_is_not_all_or_nothing(tiny: Any, text: str) -> None:
    task = tiny.prepared(tiny.recipe("translation")).task
    found = task.problem.score(
        task.facts, [{"gold": text, "prediction": text[:-1], "nll": 1.0, "items": 1}]
    )
    assert tokenizer_for([text]) == "char"
    assert "tok:char" in found.signature
    assert 50 < found.values()["bleu"] < 100


def test_a_few_words_of_another_script_do_not_decide_how_bleu_is_counted() -> None:
    assert (
        tokenizer_for(["The Thai word for water, which a guest hears every day, is น้ำ."]) == "13a"
    )
    assert tokenizer_for(["คุณใช้ Windows หรือ Linux"]) == "char"
