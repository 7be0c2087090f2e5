"""Every word of a document is read, counted once and tagged, however long the document is [run_ner, transformers#14043]."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import lmkit
from lmkit.batch import IGNORE
from lmkit.data.plan import micro_batches
from lmkit.errors import DataError
from lmkit.metrics.tagging import chunks
from lmkit.tasks.ner.entities import entities
from lmkit.tasks.ner.problem import TAGGING
from lmkit.tasks.ner.task import assign, first_with_text
from lmkit.tasks.words import split_words, word_split

ALGORITHMS = ("wordpiece", "bpe", "unigram")
ADDRESS = (
    ["8128", "S.", "DR", "MARTIN", "LUTHER"],
    ["B-NUMBER", "B-STREET", "I-STREET", "I-STREET", "I-STREET"],
)


def long_document(num_words: int = 500) -> dict[str, Any]:
    draw = random.Random(5)
    words, tags = [], []
    while len(words) < num_words:
        length = draw.randint(1, 5)
        words += ADDRESS[0][:length]
        tags += ADDRESS[1][:length]
        if draw.random() < 0.5:
            words.append("extraordinarily")
            tags.append("O")
    return {"id": 0, "tokens": words[:num_words], "tags": tags[:num_words]}


def task_of(tiny: Any, algorithm: str = "wordpiece", **data: Any) -> Any:
    labels = [
        "O",
        *(
            f"{p}-{kind}"
            for kind in ("NUMBER", "STREET", "CITY", "STATE", "ZIP", "UNIT", "POBOX")
            for p in "BI"
        ),
    ]
    return tiny.prepared(
        tiny.recipe(
            "ner", tokenizer={"train": {"algorithm": algorithm}}, data={"labels": labels, **data}
        )
    ).task


def pieces_of(task: Any, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    columns = task.encode(rows)
    return [
        {name: values[i] for name, values in columns.items()} | {"piece": i}
        for i in range(len(columns["row"]))
    ]


def test_words_that_all_have_one_tag_teach_nothing() -> None:
    rows = [{"id": 0, "tokens": ["in", "Rome"], "tags": ["O", "O"]}]
    with pytest.raises(DataError, match=r"data\.train: all words have one tag: 'O'"):
        TAGGING.learn(rows, ["O"])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_long_document_is_read_in_windows_that_answer_for_each_word_once(
    tiny: Any, algorithm: str
) -> None:
    task, row = task_of(tiny, algorithm), long_document()
    pieces = pieces_of(task, [row])
    assert len(pieces) > 20
    assert max(piece["length"] for piece in pieces) == 32
    assert [word for piece in pieces for word in piece["words"]] == list(range(500))
    # each position is that of the word's first token
    for piece in pieces:
        for position, word in zip(piece["positions"], piece["words"], strict=True):
            token = task.tokenizer.decode([piece["input_ids"][position]]).strip()
            assert row["tokens"][word].startswith(token.removeprefix("##")) or token == "[UNK]"


def test_labels_of_words_count_once_in_training(tiny: Any) -> None:
    task, row = task_of(tiny), long_document()
    batch = task.collate([pieces_of(task, [row])])
    assert batch.items == 500
    counted = [task.labels[label] for label in batch.labels.flatten().tolist() if label != IGNORE]
    assert Counter(counted) == Counter(row["tags"])


def test_a_label_stands_at_the_first_token_of_its_word_alone(tiny: Any) -> None:
    task = task_of(tiny)
    (piece,) = pieces_of(task, [{"id": 0, "tokens": ["MARTIN", "S."], "tags": ["B-STREET", "O"]}])
    words = task.tokenizer([["MARTIN", "S."]], is_split_into_words=True).word_ids(0)
    assert words.count(1) == 2
    expected = [IGNORE] * len(words)
    expected[words.index(0)], expected[words.index(1)] = (
        task.labels.index("B-STREET"),
        task.labels.index("O"),
    )
    assert task.collate([[piece]]).labels.tolist() == [expected]


@pytest.mark.parametrize("rows_at_once", [1, 4, 100])
def test_every_word_gets_one_prediction_and_every_gold_entity_counts(
    tiny: Any, rows_at_once: int
) -> None:
    task, row = task_of(tiny), long_document()
    model = tiny.model(task.recipe)
    pieces = pieces_of(task, [row])
    parts: dict[int, dict[str, Any]] = {}
    lengths = torch.tensor([piece["length"] for piece in pieces]).numpy()
    for numbers in micro_batches(torch.arange(len(pieces)).numpy(), lengths, 32 * rows_at_once):
        chosen = [pieces[i] for i in numbers]
        with torch.inference_mode():
            parts |= dict(
                zip(
                    numbers.tolist(),
                    task.predict(model, task.collate([[piece] for piece in chosen]), chosen),
                    strict=True,
                )
            )
    record = task.combine(row, [parts[i] for i in sorted(parts)])
    assert len(record["prediction"]) == len(record["score"]) == record["items"] == 500
    assert record["gold"] == row["tags"]
    report = task.problem.score(task.facts, [record]).label_values()
    assert sum(found["support"] for found in report.values()) == len(chunks(row["tags"]))
    perfect = task.problem.score(task.facts, [record | {"prediction": row["tags"]}]).values()
    assert perfect["f1"] == perfect["f1_strict"] == 1.0
    half = (
        row["tags"][:250] + ["O"] * 250
    )  # a tagger that stops in the middle has its recall halved
    assert task.problem.score(task.facts, [record | {"prediction": half}]).values()[
        "recall"
    ] == pytest.approx(0.5, abs=0.02)


def test_a_word_that_the_tokenizer_drops_is_tagged_outside(tiny: Any) -> None:
    task = task_of(tiny)
    words = ["MARTIN", "\u200b", "S.", "\u200b"]  # BERT's normalizer removes a zero-width space
    (piece,) = pieces_of(
        task, [{"id": 0, "tokens": words, "tags": ["B-STREET", "O", "I-STREET", "O"]}]
    )
    assert piece["words"] == [0, 2]
    with torch.inference_mode():
        (part,) = task.predict(tiny.model(task.recipe), task.collate([[piece]]), [piece])
    record = task.combine({"id": 0, "tokens": words, "tags": ["O"] * 4}, [part])
    assert record["prediction"][1] == record["prediction"][3] == "O"
    assert record["score"][1] == 0.0
    assert record["items"] == 2


def test_documents_without_gold_are_tagged_too(tiny: Any) -> None:
    task = task_of(tiny)
    (row,) = task.problem.rows(["8128 S. DR MARTIN LUTHER, CHICAGO"], task.facts)
    pieces = pieces_of(task, [row])
    with torch.inference_mode():
        parts = task.predict(
            tiny.model(task.recipe), task.collate([[piece] for piece in pieces]), pieces
        )
    shown = task.problem.show(task.combine(row, parts), task.facts)
    assert set(shown) == {"id", "text", "tokens", "tags", "entities"}
    assert len(shown["tags"]) == len(shown["tokens"])
    for entity in shown["entities"]:
        assert entity["text"] == row["text"][entity["start"] : entity["end"]]


def test_given_tokens_keep_their_places_though_they_contain_spaces(tiny: Any) -> None:
    task = task_of(tiny)
    row = {"id": 0, "tokens": ["in", "New York", "DR"]}
    record = task.combine(row, [])
    record |= {"prediction": ["O", "B-CITY", "B-STREET"], "score": [1.0, 0.5, 0.25]}
    shown = task.problem.show(record, task.facts)
    assert shown["text"] == "in New York DR"
    assert shown["entities"] == [
        {"start": 3, "end": 11, "label": "CITY", "score": 0.5, "text": "New York"},
        {"start": 12, "end": 14, "label": "STREET", "score": 0.25, "text": "DR"},
    ]


def test_rows_with_a_text_keep_it_with_offsets_and_entities(tiny: Any) -> None:
    task = task_of(tiny)
    row = {
        "id": 3,
        "tokens": ["a", "b"],
        "tags": ["O", "O"],
        "text": "a  b",
        "offsets": [[0, 1], [3, 4]],
    }
    emissions = [
        [0.0 if label == best else -9.0 for label in task.labels] for best in ("O", "B-CITY")
    ]
    record = task.combine(row, [{"words": [0, 1], "emissions": emissions, "nll": 0.0, "items": 2}])
    assert {key: record[key] for key in ("text", "offsets")} == {
        "text": "a  b",
        "offsets": [[0, 1], [3, 4]],
    }
    assert record["entities"] == [
        {"start": 3, "end": 4, "label": "CITY", "score": 1.0, "text": "b"}
    ]
    assert "text" not in task.combine({"id": 0, "tokens": ["a"]}, [])


def test_chinese_without_spaces_is_tagged_character_by_character(tiny: Any, tmp_path: Path) -> None:
    """Trained on characters with tags, and on texts with entities: raw text has its entities at their places."""
    texts, spans, sentences = [], [], []
    for place in ("北京", "上海", "南京", "广州"):
        for verb in ("在", "去了", "喜欢", "离开"):
            start = 1 + len(verb)
            texts.append(f"他{verb}{place}。")
            spans.append([[start, start + 2, "LOC"]])
            tags = ["O"] * start + ["B-LOC", "I-LOC", "O"]
            sentences.append(
                "".join(
                    f"{character} {tag}\n" for character, tag in zip(texts[-1], tags, strict=True)
                )
            )
    rows = [
        json.dumps({"text": text, "entities": found})
        for text, found in zip(texts, spans, strict=True)
    ]
    (tmp_path / "zh.jsonl").write_text("\n".join(rows))
    (tmp_path / "zh.conll").write_text("\n".join(sentences))
    for name in ("zh.jsonl", "zh.conll"):
        recipe = tiny.recipe(
            "ner",
            tokenizer={"train": {"algorithm": "wordpiece", "vocab_size": 100}},
            data={"train": str(tmp_path / name), "validation": None, "max_rows": None},
            train={"max_steps": 60, "batch_size": 16, "learning_rate": 1e-2},
        )
        (shown,) = lmkit.load(tiny.fit(recipe).path).predict(["他离开上海。"])
        assert shown["tokens"] == list("他离开上海。")
        assert [(e["start"], e["end"], e["label"], e["text"]) for e in shown["entities"]] == [
            (3, 5, "LOC", "上海")
        ]


def test_the_f1_of_long_documents_is_that_of_the_whole_file(tiny: Any, tmp_path: Path) -> None:
    """Elsewhere what is cut off at max_length leaves the gold, too [run_ner, transformers#14043]."""
    from seqeval.metrics import f1_score, precision_score, recall_score
    from seqeval.scheme import IOB2

    documents = [long_document(num_words) for num_words in (300, 7, 150)]
    blocks = (
        "".join(f"{word} {tag}\n" for word, tag in zip(d["tokens"], d["tags"], strict=True))
        for d in documents
    )
    (tmp_path / "long.conll").write_text("\n".join(blocks))
    data = {name: str(tmp_path / "long.conll") for name in ("train", "validation")}
    recipe = tiny.recipe(
        "ner", data=data, train={"max_steps": 5, "learning_rate": 5e-3, "select_best": "last"}
    )
    assert len(tiny.prepared(recipe).encoded["validation"].pieces) > 20
    run = tiny.fit(recipe)
    lines = (run.eval_folder("validation") / "predictions.jsonl").read_text().splitlines()
    gold, predicted = (
        [d["tags"] for d in documents],
        [json.loads(line)["prediction"] for line in lines],
    )  # gold: of the file
    assert [len(tags) for tags in predicted] == [300, 7, 150]
    found = {name: metric["value"] for name, metric in run.metrics("validation")["metrics"].items()}
    assert 0.1 < found["f1"] < 1
    assert found["f1"] == pytest.approx(
        f1_score(gold, predicted)
    )  # seqeval's default is conlleval's
    assert found["precision"] == pytest.approx(precision_score(gold, predicted))
    assert found["recall"] == pytest.approx(recall_score(gold, predicted))
    assert found["f1_strict"] == pytest.approx(
        f1_score(gold, predicted, mode="strict", scheme=IOB2)
    )
    support = sum(row["support"] for row in run.metrics("validation")["by_label"].values())
    assert support == sum(len(chunks(tags)) for tags in gold)


# ---------------------------------------------------------------------------------- pure functions


def test_the_labelled_token_is_the_first_that_carries_text() -> None:
    """XLM-R splits a pre-tokenised ideograph into a bare mark and the ideograph, RoBERTa into the mark and bytes."""
    words = ["春", "日", "in"]
    ids = [None, 0, 0, 1, 1, 2, 2, None]
    tokens = ["<s>", "▁", "春", "▁", "日", "▁i", "n", "</s>"]
    offsets = [(0, 0), (0, 0), (0, 1), (0, 0), (0, 1), (0, 1), (1, 2), (0, 0)]
    assert first_with_text(ids, offsets, words, tokens) == {0: 2, 1: 4, 2: 5}
    over_the_letter = [(0, 0), (0, 1), (0, 1), (0, 1), (0, 1), (0, 1), (1, 2), (0, 0)]
    assert first_with_text(ids, over_the_letter, words, tokens) == {0: 2, 1: 4, 2: 5}
    # the mark over a space; and words that have nothing but a mark
    assert first_with_text(
        [0, 0, 1, 2], [(0, 1), (1, 2), (0, 1), (0, 1)], [" 春", " ", "▁"], ["_", "春", "_", "▁"]
    ) == {
        0: 1,
        1: 2,
        2: 3,
    }
    assert first_with_text([None, None], [(0, 0), (0, 0)], ["\u200b"], ["[CLS]", "[SEP]"]) == {}


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_no_label_stands_at_a_bare_mark(tiny: Any, algorithm: str) -> None:
    task = task_of(tiny, algorithm)
    words = ["春", "日", "MARTIN", "Quixote"]
    (piece,) = pieces_of(task, [{"id": 0, "tokens": words, "tags": ["O"] * 4}])
    tokens = task.tokenizer.convert_ids_to_tokens(
        [piece["input_ids"][position] for position in piece["positions"]]
    )
    assert len(tokens) == 4
    assert not {"Ġ", "▁"} & set(tokens)


def test_a_word_belongs_to_the_window_with_most_context_around_it() -> None:
    first = {0: 1, 1: 2, 2: 3, 3: 4}  # word -> position
    second = {2: 1, 3: 2, 4: 3, 5: 4}
    assert assign([first, second], [6, 6]) == [
        (0, 1, 0),
        (0, 2, 1),
        (0, 3, 2),
        (1, 2, 3),
        (1, 3, 4),
        (1, 4, 5),
    ]
    # the edges of the document are no edges: no window has more context there
    assert assign([{0: 0, 1: 1}], [2]) == [(0, 0, 0), (0, 1, 1)]
    assert assign([{}, {0: 1}], [3, 3]) == [(1, 1, 0)]
    assert assign([{}], [2]) == []


@pytest.mark.parametrize(
    ("words", "how"),
    [
        (["Mr.", "Wu,", "again."], "space"),
        (["Mr", ".", "Wu", ","], "punctuation"),
        (["春", "日", "何", "来"], "character"),
        (["春日", "何来"], "punctuation"),
    ],
)
def test_raw_text_is_cut_as_the_training_words_were(words: list[str], how: str) -> None:
    assert word_split(words) == how


def test_words_of_raw_text_keep_their_place() -> None:
    text = "Mr. Wu's 春日, 25"
    for how, words in {
        "space": ["Mr.", "Wu's", "春日,", "25"],
        "punctuation": ["Mr", ".", "Wu's", "春", "日", ",", "25"],
        "character": ["Mr", ".", "Wu", "'", "s", "春", "日", ",", "25"],
    }.items():
        assert [text[start:end] for start, end in split_words(text, how)] == words


def test_entities_end_where_another_begins() -> None:
    tags = ["B-LOC", "I-LOC", "B-LOC", "I-PER", "O", "I-LOC"]
    offsets = [(i, i + 1) for i in range(6)]
    found = entities("abcdef", offsets, tags, [1.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    assert [(entity["text"], entity["label"], entity["score"]) for entity in found] == [
        ("ab", "LOC", 0.5),
        ("c", "LOC", 1.0),
        ("d", "PER", 1.0),
        ("f", "LOC", 1.0),
    ]
