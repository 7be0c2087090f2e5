"""Word tagging: one tag a word, for named entities (IOB2) as for parts of speech (plain tags)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lmkit.recipe.schema import Recipe
from lmkit.tasks.base import IGNORE, Batch, Columns, Piece, Row, Task, flat, lay_out, pad
from lmkit.tasks.fields import Field
from lmkit.tasks.windows import encode_windows, padding_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lmkit.metrics.statistics import Statistics

# how raw text is cut into words for ``lmkit predict``, by the way the training words look
WORD_SPLITS = {"space": r"\S+", "punctuation": r"\w+(?:[-'’]\w+)*|[^\w\s]", "character": r"[A-Za-z0-9]+|\S"}
WORD_MARKS = frozenset({"Ġ", "▁"})  # tokens of byte-level and SentencePiece vocabularies that only say: a word begins


class WordTagging(Task):
    name = "ner"
    stage = "finetune"
    model_class = "AutoModelForTokenClassification"
    family = "bert"
    fields = (
        Field("tokens", "words", aliases=("words", "text_tokens")),
        Field("tags", "tags", aliases=("ner_tags", "labels", "pos_tags", "upos"), gold=True),
    )

    @classmethod
    def learn(cls, rows: Sequence[Row], labels: Sequence[str]) -> dict[str, Any]:
        sample = [word for row in rows[:1000] for word in row["tokens"]]
        return {"labels": list(labels), "word_split": word_split(sample)}

    def __init__(self, recipe: Recipe, facts: Mapping[str, Any], tokenizer: Any):
        super().__init__(recipe, facts, tokenizer)
        self.labels: list[str] = self.facts["labels"]
        self._number = {label: number for number, label in enumerate(self.labels)}
        self._outside = "O" if "O" in self._number else self.labels[0]
        self.is_entities = any(label.startswith("B-") for label in self.labels)

    @property
    def metrics(self) -> tuple[str, ...]:
        return (
            ("f1", "f1_strict", "precision", "recall", "accuracy", "loss")
            if self.is_entities
            else ("accuracy", "f1_macro", "loss")
        )

    def model_config(self) -> dict[str, Any]:
        return {"num_labels": len(self.labels), "id2label": dict(enumerate(self.labels)), "label2id": self._number}

    def encode(self, rows: Sequence[Row]) -> Columns:
        """Windows with the positions they answer for: each word stands in the window with most context around it."""
        columns, encoded, positions = encode_windows(
            self, rows, [row["tokens"] for row in rows], is_split_into_words=True, return_offsets_mapping=True
        )
        by_row: dict[int, list[int]] = {}
        for piece, row in enumerate(columns["row"]):
            by_row.setdefault(row, []).append(piece)
        columns |= {name: [[] for _ in positions] for name in ("positions", "words", "tags")}
        for row, pieces in by_row.items():
            whole = encoded.word_ids(row), encoded["offset_mapping"][row], encoded.tokens(row)
            first_tokens = []
            for piece in pieces:
                word_ids, offsets, tokens = ([column[i] for i in positions[piece]] for column in whole)
                first_tokens.append(first_with_text(word_ids, offsets, rows[row]["tokens"], tokens))
            gold = rows[row].get("tags")
            for window, position, word in assign(first_tokens, [columns["length"][piece] for piece in pieces]):
                columns["positions"][pieces[window]].append(position)
                columns["words"][pieces[window]].append(word)
                columns["tags"][pieces[window]].append(self._number[gold[word]] if gold else IGNORE)
        return columns

    def collate(self, examples: Sequence[Sequence[Piece]], *, epoch: int = 0, packed: bool = False) -> Batch:
        batch = lay_out(examples, columns=padding_of(self, examples), packed=False)
        labels = [[IGNORE] * len(piece["input_ids"]) for piece in flat(examples)]
        for row, piece in zip(labels, flat(examples), strict=True):
            for position, tag in zip(piece["positions"], piece["tags"], strict=True):
                row[position] = tag
        batch["labels"] = pad(labels, IGNORE)
        return batch

    def predict(self, model: PreTrainedModel, batch: Batch, pieces: Sequence[Piece]) -> list[dict[str, Any]]:
        logits, _ = self.logits(model, batch)
        parts = []
        for row, piece in zip(logits, pieces, strict=True):
            log_probabilities = row[piece["positions"]].float().log_softmax(-1)
            best = log_probabilities.max(-1)
            tags, counted = piece["tags"], [tag for tag in piece["tags"] if tag != IGNORE]
            nll = -sum(log_probabilities[i, tag].item() for i, tag in enumerate(tags) if tag != IGNORE)
            parts.append(
                {
                    "words": piece["words"],
                    "tags": best.indices.tolist(),
                    "scores": best.values.exp().tolist(),
                    "nll": nll,
                    "items": len(counted),
                }
            )
        return parts

    def combine(self, row: Row, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """A tag for every word; a word that the tokenizer drops entirely gets the outside tag."""
        tags, scores = [self._outside] * len(row["tokens"]), [0.0] * len(row["tokens"])
        for part in parts:
            for word, tag, score in zip(part["words"], part["tags"], part["scores"], strict=True):
                tags[word], scores[word] = self.labels[tag], score
        record = {"id": row["id"], "tokens": list(row["tokens"]), "gold": row.get("tags"), "prediction": tags, "score": scores}
        if "text" in row:
            record |= {"text": row["text"], "offsets": row["offsets"]}
        return record | {key: sum(part[key] for part in parts) for key in ("nll", "items")}

    def score(self, records: Sequence[Mapping[str, Any]]) -> Statistics:
        from lmkit.metrics.tagging import tagging_statistics

        return tagging_statistics([r["gold"] for r in records], [r["prediction"] for r in records])

    def text_rows(self, texts: Sequence[str]) -> list[Row]:
        rows = []
        for number, text in enumerate(texts):
            words = split_words(text, self.facts.get("word_split", "punctuation"))
            rows.append({"id": number, "text": text, "tokens": [text[start:end] for start, end in words], "offsets": words})
        return rows

    def show(self, record: dict[str, Any]) -> dict[str, Any]:
        tokens = record["tokens"]
        text = record.get("text", " ".join(tokens))
        offsets = record.get("offsets") or split_words(text, "space")
        shown = {"id": record["id"], "text": text, "tokens": tokens, "tags": record["prediction"]}
        return shown | {"entities": entities(text, offsets, record["prediction"], record["score"]) if self.is_entities else []}


def word_split(words: Sequence[str]) -> str:
    """Which of WORD_SPLITS made these words: most punctuation attached, detached, or single ideographs."""
    ideographs = [word for word in words if re.match(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]", word)]
    if len(ideographs) > len(words) / 2 and sum(map(len, ideographs)) < 1.1 * len(ideographs):
        return "character"
    attached = sum(bool(re.search(r"\w[,.;:!?]$", word)) for word in words)
    detached = sum(word in (",", ".", ";", ":", "!", "?") for word in words)
    return "space" if attached > detached else "punctuation"


def split_words(text: str, how: str) -> list[tuple[int, int]]:
    """The words of a raw text as (start, end) in characters.

    >>> split_words("Mr. Wu, 25", "punctuation")
    [(0, 2), (2, 3), (4, 6), (6, 7), (8, 10)]
    """
    return [match.span() for match in re.finditer(WORD_SPLITS[how], text)]


def first_with_text(
    word_ids: Sequence[int | None], offsets: Sequence[tuple[int, int]], words: Sequence[str], tokens: Sequence[str]
) -> dict[int, int]:
    """Word -> position of its first token that carries text, not the bare mark of a word's beginning.

    XLM-R style tokenizers split a pre-tokenised ideograph into ``▁`` and the ideograph, byte-level ones into ``Ġ``
    and its bytes; the mark may have an empty span, that of a white space, or that of the first letter.
    """
    found: dict[int, int] = {}
    bare: dict[int, int] = {}
    for position, (word, (start, end), token) in enumerate(zip(word_ids, offsets, tokens, strict=True)):
        if word is None:
            continue
        target = found if words[word][start:end].strip() and token not in WORD_MARKS else bare
        target.setdefault(word, position)
    return bare | found


def assign(windows: Sequence[Mapping[int, int]], lengths: Sequence[int]) -> list[tuple[int, int, int]]:
    """Give each word to the window where its distance to the nearer edge is largest.

    Args:
        windows: word -> position, one mapping per window of a row.
        lengths: tokens of each window.

    Returns:
        (window, position, word), each word once, in order.
    """
    best: dict[int, tuple[int, int, int]] = {}
    for window, (positions, length) in enumerate(zip(windows, lengths, strict=True)):
        for word, position in positions.items():
            context = min(position if window else length, length - 1 - position if window + 1 < len(windows) else length)
            if word not in best or context > best[word][0]:
                best[word] = (context, window, position)
    return [(window, position, word) for word, (_, window, position) in sorted(best.items())]


def entities(text: str, offsets: Sequence[tuple[int, int]], tags: Sequence[str], scores: Sequence[float]) -> list[dict[str, Any]]:
    """IOB2 tags -> entities in characters; the score is the mean of their words'.

    >>> entities("in New York", [(0, 2), (3, 6), (7, 11)], ["O", "B-LOC", "I-LOC"], [1, 0.5, 1.0])
    [{'start': 3, 'end': 11, 'label': 'LOC', 'score': 0.75, 'text': 'New York'}]
    """
    spans: list[tuple[str, list[int]]] = []
    previous = "O"
    for number, tag in enumerate(tags):
        prefix, _, label = tag.partition("-")
        if tag != "O":
            if prefix == "I" and previous != "O" and previous.partition("-")[2] == label:
                spans[-1][1].append(number)
            else:
                spans.append((label, [number]))
        previous = tag
    return [
        {
            "start": (start := offsets[words[0]][0]),
            "end": (end := offsets[words[-1]][1]),
            "label": label,
            "score": sum(scores[word] for word in words) / len(words),
            "text": text[start:end],
        }
        for label, words in spans
    ]
