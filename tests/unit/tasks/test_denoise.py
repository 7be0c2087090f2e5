"""Which tokens become gaps, what the encoder reads and the decoder writes of them, and what fills the gaps of a text."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from lmkit.batch import IGNORE, keyed_rng
from lmkit.errors import DataError, ModelError, RecipeError
from lmkit.models.build import build_model
from lmkit.tasks.base import TooLong
from lmkit.tasks.denoise.gaps import corrupt, draw_spans, surroundings

ARCHITECTURES = ("t5", "bart")
LONG = " ".join(["I know about you two, and you know about me."] * 20)


def task_of(tiny: Any, architecture: str, **sections: Any) -> Any:
    return tiny.prepared(tiny.recipe("denoise", architecture, **sections)).task


def pieces_of(task: Any, *texts: str) -> list[dict[str, Any]]:
    columns = task.encode([{"id": number, "text": text} for number, text in enumerate(texts)])
    return [
        {name: values[i] for name, values in columns.items()} | {"piece": i}
        for i in range(len(columns["row"]))
    ]


def sides(task: Any, piece: dict[str, Any], **options: Any) -> tuple[list[int], list[int]]:
    """What the encoder reads and the decoder writes."""
    batch = task.collate([[piece]], **options)
    return batch.inputs["input_ids"][0].tolist(), batch.labels[0].tolist()


# ---------------------------------------------------------------------------------- spans


def test_spans_are_replaced_as_in_figure_2_of_raffel_et_al() -> None:
    text = ["Thank", "you", "for", "inviting", "me", "to", "your", "party", "last", "week", "."]
    marks = ["<X>", "<Y>", "<Z>"]
    numbers = {word: number for number, word in enumerate([*text, *marks])}
    words = {number: word for word, number in numbers.items()}
    found = corrupt(
        [numbers[word] for word in text], [(2, 4), (8, 9)], [numbers[mark] for mark in marks]
    )
    seen, missing = (" ".join(words[number] for number in side) for side in found)
    assert seen == "Thank you <X> me to your party <Y> week ."
    assert missing == "<X> for inviting <Y> last <Z>"


def test_a_gap_may_be_empty_and_stand_at_either_end() -> None:
    assert corrupt([1, 2, 3], [(0, 0), (1, 2), (3, 3)], [-1, -2, -3, -4]) == (
        [-1, 1, -2, 3, -3],
        [-1, -2, 2, -3],
    )
    assert corrupt([], [], [-1]) == ([], [])


SHARES = st.floats(0.01, 0.99)


@given(st.integers(0, 80), SHARES, st.floats(1, 20), st.booleans(), st.integers(0, 10**6))
def test_gaps_lie_apart_and_something_is_always_hidden(
    size: int, share: float, mean: float, poisson: bool, seed: int
) -> None:
    spans = draw_spans(size, share, mean, rng=keyed_rng(seed), poisson=poisson)
    hidden = sum(end - start for start, end in spans)
    assert all(end < start for (_, end), (start, _) in pairwise(spans))  # a token stays between two
    assert all(0 <= start <= end <= size and (poisson or start < end) for start, end in spans)
    assert hidden == size if size < 2 else 1 <= hidden < size
    assert (
        len(spans) <= hidden or not size
    )  # a mark for each: the text with gaps is no longer than without
    if size > 1:
        assert hidden in (max(1, int(size * share)), min(size - 1, int(size * share) + 1))


@pytest.mark.parametrize("poisson", [False, True])
@pytest.mark.parametrize(
    ("size", "share", "mean"), [(20, 0.15, 3.0), (120, 0.15, 3.0), (120, 0.3, 3.0), (250, 0.5, 8.0)]
)
def test_the_share_and_the_mean_length_are_what_is_asked_for(
    size: int, share: float, mean: float, poisson: bool
) -> None:
    drawn = [
        draw_spans(size, share, mean, rng=keyed_rng(1, number), poisson=poisson)
        for number in range(4000)
    ]
    hidden = sum(end - start for spans in drawn for start, end in spans)
    assert hidden / (4000 * size) == pytest.approx(share, rel=0.02)
    # the last of the drawn lengths is cut off where there are enough tokens
    assert hidden / sum(map(len, drawn)) == pytest.approx(
        mean, rel=0.03 if not poisson else 3 * mean / (size * share)
    )


def test_every_way_of_placing_a_gap_is_as_likely() -> None:
    one = Counter(draw_spans(6, 0.01, 3.0, rng=keyed_rng(2, number))[0] for number in range(6000))
    assert {span: round(count / 1000, 1) for span, count in one.items()} == {
        (start, start + 1): pytest.approx(1, abs=0.11) for start in range(6)
    }
    # three of five tokens in two gaps: one and two or two and one, in two of three places
    several = Counter(
        tuple(draw_spans(5, 0.6, 1.5, rng=keyed_rng(3, number))) for number in range(6000)
    )
    assert len(several) == 2 * 3
    assert max(several.values()) / min(several.values()) < 1.2


def test_lengths_are_poissons_and_some_gaps_hide_nothing() -> None:
    drawn = [
        draw_spans(400, 0.3, 3.0, rng=keyed_rng(4, number), poisson=True) for number in range(500)
    ]
    lengths = Counter(end - start for spans in drawn for start, end in spans)
    total = sum(lengths.values())
    for length, expected in enumerate([0.050, 0.149, 0.224, 0.224, 0.168, 0.101]):
        assert lengths[length] / total == pytest.approx(expected, abs=0.01)


# ---------------------------------------------------------------------------------- pieces


def test_what_is_missing_stands_behind_its_sentinel(tiny: Any) -> None:
    """Put together again, the two sides are the text: nothing is lost and nothing is twice."""
    task = task_of(tiny, "t5")
    end, sentinels = task.tokenizer.eos_token_id, task.sentinels
    assert task.tokenizer.convert_ids_to_tokens(sentinels[:2]) == ["<extra_id_0>", "<extra_id_1>"]
    for piece in pieces_of(task, LONG, "Hi.", "a"):
        for epoch in range(5):
            seen, missing = sides(task, piece, epoch=epoch)
            assert seen.pop() == missing.pop() == end
            used = [token for token in seen if token in sentinels]
            assert used == sentinels[: len(used)]
            gaps: dict[int, list[int]] = {}
            for token in missing:
                if token in sentinels:
                    gaps[token] = []
                else:
                    gaps[next(reversed(gaps))].append(token)
            closing = seen[-1] not in sentinels
            assert list(gaps) == sentinels[: len(used) + closing]
            assert all(gaps[mark] for mark in used)
            assert [each for token in seen for each in gaps.get(token, [token])] == piece[
                "input_ids"
            ]


def test_with_a_mask_token_the_whole_text_is_written(tiny: Any) -> None:
    task = task_of(tiny, "bart", masking={"share": 0.3})
    mask, end = task.tokenizer.mask_token_id, task.tokenizer.eos_token_id
    for piece in pieces_of(task, LONG, "Hi.", "a"):
        for epoch in range(5):
            seen, wanted = sides(task, piece, epoch=epoch)
            assert wanted == [*piece["input_ids"], end]
            assert seen[-1] == end
            assert mask in seen
            rest = iter(wanted)
            assert all(
                token in rest for token in seen if token != mask
            )  # what is to be seen is in its order


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_long_document_is_cut_without_losing_a_token(tiny: Any, architecture: str) -> None:
    task = task_of(tiny, architecture)
    pieces = pieces_of(task, LONG, "short")
    assert [piece["row"] for piece in pieces] == [0] * (len(pieces) - 1) + [1]
    tokens = [token for piece in pieces[:-1] for token in piece["input_ids"]]
    assert tokens == task.tokenizer(LONG, add_special_tokens=False)["input_ids"]
    assert max(piece["length"] for piece in pieces) == 32
    batch = task.collate([pieces])
    assert batch.inputs["input_ids"].shape[1] <= 32
    assert len(batch.labels) == len(pieces)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_epoch_each_piece_and_each_seed_has_gaps_of_its_own(
    tiny: Any, architecture: str
) -> None:
    task = task_of(tiny, architecture)
    piece = pieces_of(task, LONG)[0]
    assert sides(task, piece, epoch=0) == sides(task, piece, epoch=0)
    assert sides(task, piece, epoch=0)[0] != sides(task, piece, epoch=1)[0]
    assert sides(task, piece, epoch=0)[0] != sides(task, piece | {"piece": 7}, epoch=0)[0]
    other = task.problem.task(
        task.recipe.model_copy(update={"seed": 14}), task.facts, task.tokenizer
    )
    assert sides(task, piece, epoch=0)[0] != sides(other, piece, epoch=0)[0]
    # evaluation is the same every time, and unlike training
    assert sides(task, piece) == sides(task, piece)
    assert sides(task, piece)[0] != sides(task, piece, epoch=0)[0]


def test_what_a_tokenizer_puts_around_a_text_is_put_around_both_sides(tiny: Any) -> None:
    tokenizer = tiny.prepared(tiny.recipe("mlm")).task.tokenizer
    assert surroundings(tokenizer) == ([tokenizer.cls_token_id], [tokenizer.sep_token_id])
    assert surroundings(task_of(tiny, "t5").tokenizer) == (
        [],
        [task_of(tiny, "t5").tokenizer.eos_token_id],
    )


# ---------------------------------------------------------------------------------- models


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_learns_and_plain_transformers_has_its_loss(tiny: Any, architecture: str) -> None:
    recipe = tiny.recipe(
        "denoise",
        architecture,
        train={"max_steps": 60, "learning_rate": 1e-2, "eval_every": 60},
        data={"max_rows": 4},
    )
    run = tiny.fit(recipe)
    losses = [line["loss"] for line in run.log_lines() if "loss" in line]
    assert np.mean(losses[-5:]) < 0.7 * losses[0]

    model, tokenizer = (
        cls.from_pretrained(run.model) for cls in (AutoModelForSeq2SeqLM, AutoTokenizer)
    )
    task = tiny.prepared(recipe).task
    assert tokenizer(LONG, verbose=False) == task.tokenizer(LONG, verbose=False)
    batch = task.collate([tiny.prepared(recipe).encoded["validation"].example(i) for i in range(4)])
    with torch.inference_mode():
        theirs = model.eval()(**batch.inputs, labels=batch.labels).loss.item()
        assert task.loss(model, batch).item() / batch.items == pytest.approx(theirs, rel=1e-5)


def test_translation_goes_on_from_what_was_pretrained(tiny: Any) -> None:
    recipe = tiny.recipe("translation", base=tiny.base("denoise"))
    prepared = tiny.prepared(recipe)
    assert build_model(recipe, prepared.task, prepared.source).new == []
    assert tiny.fit(recipe).metrics("validation")["metrics"].keys() >= {"bleu"}


def test_what_cannot_be_denoised_is_said(tiny: Any) -> None:
    with pytest.raises(
        ModelError, match=r"neither sentinel tokens .* nor a mask token, and denoise needs either"
    ):
        tiny.prepared(tiny.recipe("denoise", base=tiny.base("translation")))
    with pytest.raises(ModelError, match="bert is no encoder-decoder, and denoise needs one"):
        tiny.model(tiny.recipe("denoise", base=tiny.base("mlm")))
    with pytest.raises(
        RecipeError,
        match=r"masking\.span: 103 gaps in 1024 tokens, and the tokenizer has 100 sentinel tokens",
    ):
        task_of(tiny, "t5", data={"max_length": 1024}, masking={"span": 1.5})
    with pytest.raises(RecipeError, match=r"translation\.source_language: has no effect"):
        task_of(tiny, "t5", translation={"source_language": "en"})


def test_sentinels_may_be_added_to_any_tokenizer(tiny: Any) -> None:
    added = [f"<extra_id_{number}>" for number in range(20)]
    task = tiny.prepared(
        tiny.recipe("denoise", base=tiny.base("translation"), tokenizer={"add_tokens": added})
    ).task
    assert task.sentinels == task.tokenizer.convert_tokens_to_ids(added)


# ---------------------------------------------------------------------------------- predict


@pytest.fixture(params=ARCHITECTURES)
def filler(tiny: Any, request: pytest.FixtureRequest) -> tuple[Any, Any, str, str]:
    """A model that tells tokens apart, its task, and its marks of a first and a second gap."""
    recipe = tiny.recipe("denoise", request.param, generation={"num_beams": 1, "max_new_tokens": 5})
    model, task = tiny.model(recipe), tiny.prepared(recipe).task
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return (
        model,
        task,
        *(("<extra_id_0>", "<extra_id_1>") if request.param == "t5" else ("<mask>", "<mask>")),
    )


def test_a_gap_is_filled_with_the_likeliest_tokens_up_to_what_stands_behind_it(
    filler: tuple[Any, Any, str, str],
) -> None:
    model, task, first, second = filler
    text = f"I know {first} you {second} two."
    (answer,) = task.problem.responder(task).respond(model, task.problem.rows([text], task.facts))
    assert answer.keys() == {"id", "text", "fills"}
    ids = task.tokenizer(text)["input_ids"]
    gaps = [
        position
        for position, token in enumerate(ids)
        if token in {*task.sentinels, task.tokenizer.mask_token_id}
    ]
    assert len(gaps) == 2
    written = [model.config.decoder_start_token_id]
    for number, gap in enumerate(gaps):
        if task.sentinels:
            written.append(ids[gap])
            ends = {*task.sentinels, task.tokenizer.eos_token_id}
        else:
            written += ids[gaps[0] + 1 if number else 0 : gap]
            ends = {ids[gap + 1], task.tokenizer.eos_token_id}
        filled, probabilities = [], []
        for _ in range(5):
            with torch.inference_mode():
                logits = model(
                    input_ids=torch.tensor([ids]),
                    decoder_input_ids=torch.tensor([written + filled]),
                ).logits
            best = logits[0, -1].log_softmax(-1).max(-1)
            probabilities.append(best.values.item())
            if best.indices.item() in ends:
                break
            filled.append(best.indices.item())
        expected = {"token": task.tokenizer.decode(filled, skip_special_tokens=True).strip()}
        assert answer["fills"][number] == [
            expected | {"score": pytest.approx(float(np.exp(np.mean(probabilities))), abs=1e-5)}
        ]
        written += filled


def test_several_beams_are_several_ways_to_fill(filler: tuple[Any, Any, str, str]) -> None:
    model, task, first, _ = filler
    recipe = task.recipe.model_copy(
        update={"generation": task.recipe.generation.model_copy(update={"num_beams": 3})}
    )
    wider = task.problem.task(recipe, task.facts, task.tokenizer)
    wider.configure(model)
    (answer,) = wider.problem.responder(wider).respond(
        model, wider.problem.rows([f"I know {first} two."], wider.facts)
    )
    (ways,) = answer["fills"]
    assert 1 <= len(ways) <= 3
    assert all(0 < way["score"] <= 1 for way in ways)


def test_a_text_without_a_gap_or_too_long_is_refused(filler: tuple[Any, Any, str, str]) -> None:
    model, task, first, _ = filler
    with pytest.raises(DataError, match=f"text 2: no {first} in this text: nothing to fill"):
        task.problem.responder(task).respond(
            model, task.problem.rows([f"a {first}", "no gap"], task.facts)
        )
    with pytest.raises(TooLong, match="text 1: "):
        task.problem.responder(task).respond(model, task.problem.rows([LONG + first], task.facts))


def test_padding_counts_for_nothing(tiny: Any) -> None:
    task = task_of(tiny, "t5")
    long, short = pieces_of(task, LONG)[0], pieces_of(task, "Hi.")[0]
    batch = task.collate([[long], [short]])
    seen, missing = sides(task, short)
    assert batch.inputs["attention_mask"][1].tolist() == [1] * len(seen) + [0] * (
        batch.inputs["input_ids"].shape[1] - len(seen)
    )
    assert batch.labels[1].tolist() == missing + [IGNORE] * (batch.labels.shape[1] - len(missing))


def test_the_card_shows_how_to_ask(tiny: Any, tmp_path: Path) -> None:
    run = tiny.fit(tiny.recipe("denoise", output=str(tmp_path / "run")))
    assert 'lmkit predict RUN "a text with one <extra_id_0>"' in run.card_file.read_text(
        encoding="utf-8"
    )
