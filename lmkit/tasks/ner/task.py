"""Word tagging: one tag a word, for named entities (IOB2) as for parts of speech (plain tags)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from lmkit.batch import IGNORE, Batch, Columns, Piece, Row, flat, lay_out, pad
from lmkit.errors import DataError, RecipeError
from lmkit.recipe.schema import Recipe, Tagging
from lmkit.tasks.base import Task
from lmkit.tasks.fields import Field, Form
from lmkit.tasks.ner.decoding import Transitions, iob2_transitions, marginals, viterbi
from lmkit.tasks.ner.spans import SPLIT, words_with_tags
from lmkit.tasks.windows import encode_windows, padding_of
from lmkit.tasks.words import joined, split_words, word_split

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from lmkit.metrics.statistics import Statistics

WORD_MARKS = frozenset(
    {"Ġ", "▁"}
)  # tokens of byte-level and SentencePiece vocabularies that only say: a word begins


class WordTagging(Task):
    name = "ner"
    stage = "finetune"
    model_class = "AutoModelForTokenClassification"
    family = "bert"
    headlines = ("f1", "accuracy")
    fields = (
        Field("tokens", "words", aliases=("words", "text_tokens")),
        Field("tags", "tags", aliases=("ner_tags", "labels", "pos_tags", "upos"), gold=True),
    )
    forms = (
        Form(
            (
                Field("text", "text", aliases=("sentence", "content", "document")),
                Field(
                    "entities",
                    "spans",
                    aliases=("spans", "ents", "annotations", "label", "labels"),
                    gold=True,
                ),
            ),
            convert=words_with_tags,
            adds=(Field("text", "text"), Field("offsets", "offsets")),
        ),
    )

    @classmethod
    def learn(cls, rows: Sequence[Row], labels: Sequence[str]) -> dict[str, Any]:
        if len(labels) < 2:
            raise DataError(
                f"all words have one tag: {', '.join(map(repr, labels))}",
                place="data.train",
                remedy="tagging needs at least two; is data.columns right?",
            )
        sample = rows[:1000]
        # raw text is cut as the training words were: by lmkit itself, or so that it looks like them
        split = (
            SPLIT
            if "offsets" in sample[0]
            else word_split([word for row in sample for word in row["tokens"]])
        )
        return {"labels": list(labels), "word_split": split}

    def __init__(self, recipe: Recipe, facts: Mapping[str, Any], tokenizer: Any):
        super().__init__(recipe, facts, tokenizer)
        self.labels: list[str] = self.facts["labels"]
        self._number = {label: number for number, label in enumerate(self.labels)}
        self._outside = "O" if "O" in self._number else self.labels[0]
        self.is_entities = marks_entities(self.labels)
        _check_tagging(recipe, self.is_entities)
        self._decoding = recipe.tagging.decoding or ("viterbi" if recipe.tagging.crf else "argmax")
        self._legal: Transitions | None = None

    @property
    def metrics(self) -> tuple[str, ...]:
        return (
            ("f1", "f1_strict", "precision", "recall", "accuracy", "loss")
            if self.is_entities
            else ("accuracy", "f1_macro", "loss")
        )

    def model_config(self) -> dict[str, Any]:
        return {
            "num_labels": len(self.labels),
            "id2label": dict(enumerate(self.labels)),
            "label2id": self._number,
        }

    def encode(self, rows: Sequence[Row]) -> Columns:
        """Windows with the positions they answer for: each word stands in the window with most context around it."""
        columns, encoded, positions = encode_windows(
            self,
            rows,
            [row["tokens"] for row in rows],
            is_split_into_words=True,
            return_offsets_mapping=True,
        )
        by_row: dict[int, list[int]] = {}
        for piece, row in enumerate(columns["row"]):
            by_row.setdefault(row, []).append(piece)
        columns |= {name: [[] for _ in positions] for name in ("positions", "words", "tags")}
        for row, pieces in by_row.items():
            whole = encoded.word_ids(row), encoded["offset_mapping"][row], encoded.tokens(row)
            first_tokens = []
            for piece in pieces:
                word_ids, offsets, tokens = (
                    [column[i] for i in positions[piece]] for column in whole
                )
                first_tokens.append(first_with_text(word_ids, offsets, rows[row]["tokens"], tokens))
            gold = rows[row].get("tags")
            for window, position, word in assign(
                first_tokens, [columns["length"][piece] for piece in pieces]
            ):
                columns["positions"][pieces[window]].append(position)
                columns["words"][pieces[window]].append(word)
                columns["tags"][pieces[window]].append(self._number[gold[word]] if gold else IGNORE)
        return columns

    def collate(
        self, examples: Sequence[Sequence[Piece]], *, epoch: int = 0, packed: bool = False
    ) -> Batch:
        batch = lay_out(examples, columns=padding_of(self, examples), packed=False)
        labels = [[IGNORE] * len(piece["input_ids"]) for piece in flat(examples)]
        for row, piece in zip(labels, flat(examples), strict=True):
            for position, tag in zip(piece["positions"], piece["tags"], strict=True):
                row[position] = tag
        batch.labels = pad(labels, IGNORE)
        return batch

    def loss(self, model: PreTrainedModel, batch: Batch) -> torch.Tensor:
        """With a CRF, the summed negative log-likelihood of the windows' tag sequences; its weight is words, as without."""
        if (crf := _crf_of(model)) is None:
            return super().loss(model, batch)
        return sequence_losses(crf, *self.logits(model, batch)).sum()

    def predict(
        self, model: PreTrainedModel, batch: Batch, pieces: Sequence[Piece]
    ) -> list[dict[str, Any]]:
        """Log-probabilities of the words that each piece answers for; with a CRF its potentials, and its transitions."""
        logits, labels = self.logits(model, batch)
        crf = _crf_of(model)
        emissions = logits.float().log_softmax(-1) if crf is None else logits.float()
        if crf is None:
            losses = (
                -emissions.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
                .where(labels != IGNORE, 0)
                .sum(-1)
            )
        else:
            losses = sequence_losses(crf, logits, labels)
            learned = [
                p.tolist() for p in (crf.start_transitions, crf.transitions, crf.end_transitions)
            ]
        return [
            {
                "words": piece["words"],
                "emissions": emissions[row, piece["positions"]].tolist(),
                "nll": losses[row].item(),
                "items": sum(tag != IGNORE for tag in piece["tags"]),
            }
            | ({} if crf is None else {"transitions": learned})
            for row, piece in enumerate(pieces)
        ]

    def combine(self, row: Row, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """A tag for every word of the row; a word that the tokenizer drops entirely is outside of all entities."""
        import numpy as np

        emissions = np.full((len(row["tokens"]), len(self.labels)), -np.inf)
        emissions[:, self._number[self._outside]] = 0
        read = [word for part in parts for word in part["words"]]
        if read:
            emissions[read] = [word for part in parts for word in part["emissions"]]
        learned = next(
            (
                Transitions(*map(np.asarray, part["transitions"]))
                for part in parts
                if "transitions" in part
            ),
            None,
        )
        tags, probabilities = self._decode(emissions, learned)
        scores = np.zeros(len(tags))
        scores[read] = probabilities[read, [tags[word] for word in read]]
        names = [self.labels[tag] for tag in tags]
        record = {
            "id": row["id"],
            "tokens": list(row["tokens"]),
            "gold": row.get("tags"),
            "prediction": names,
        }
        record |= {"score": scores.tolist()}
        if "offsets" in row:
            record |= {"text": row["text"], "offsets": row["offsets"]}
            if self.is_entities:
                record["entities"] = entities(row["text"], row["offsets"], names, record["score"])
        return record | {key: sum(part[key] for part in parts) for key in ("nll", "items")}

    def _decode(self, emissions: Any, learned: Transitions | None) -> tuple[list[int], Any]:
        """Tags of a whole row, and ``(words, tags)`` probabilities; ``learned`` are a CRF's transitions."""
        import numpy as np

        probabilities = np.exp(emissions) if learned is None else marginals(emissions, learned)
        if self._decoding == "argmax":
            return probabilities.argmax(axis=-1).tolist(), probabilities
        self._legal = self._legal or iob2_transitions(self.labels)
        scores = (
            self._legal
            if learned is None
            else Transitions(*(a + b for a, b in zip(self._legal, learned, strict=True)))
        )
        return viterbi(emissions, scores), probabilities

    def score(self, records: Sequence[Mapping[str, Any]]) -> Statistics:
        from lmkit.metrics.tagging import tagging_statistics

        gold, predicted = [r["gold"] for r in records], [r["prediction"] for r in records]
        return tagging_statistics(gold, predicted, entities=self.is_entities)

    def text_rows(self, texts: Sequence[str]) -> list[Row]:
        rows = []
        for number, text in enumerate(texts):
            words = split_words(text, self.facts.get("word_split", "punctuation"))
            rows.append(
                {
                    "id": number,
                    "text": text,
                    "tokens": [text[start:end] for start, end in words],
                    "offsets": words,
                }
            )
        return rows

    def show(self, record: dict[str, Any]) -> dict[str, Any]:
        tokens, tags = record["tokens"], record["prediction"]
        text, offsets = (
            (record["text"], record["offsets"]) if "offsets" in record else joined(tokens)
        )
        shown = {"id": record["id"], "text": text, "tokens": tokens, "tags": tags}
        return shown | {
            "entities": entities(text, offsets, tags, record["score"]) if self.is_entities else []
        }


def marks_entities(labels: Collection[str]) -> bool:
    """Whether the tags that there are mark entities: some have a type, or all are of ``B``, ``I``, ``O`` with a ``B``.

    >>> marks_entities(["O", "B-X", "I-X"]), marks_entities(["O", "B", "I"]), marks_entities(["B", "I", "N", "O"])
    (True, True, False)
    """
    return any(label.startswith(("B-", "I-")) for label in labels) or {"B"} < set(labels) <= {
        "B",
        "I",
        "O",
    }


def _check_tagging(recipe: Recipe, is_entities: bool) -> None:
    """Refuse keys of ``tagging`` that would have no effect, or cannot have theirs here."""
    options = recipe.tagging
    if options.decoding == "viterbi" and not options.crf and not is_entities:
        problem = "every sequence of these tags is allowed: they mark no entities (B-TYPE, I-TYPE, O, or B, I, O)"
        raise RecipeError(problem, place="tagging.decoding", remedy="leave it out")
    if options.crf_learning_rate != Tagging().crf_learning_rate and not options.crf:
        raise RecipeError(
            "has no effect without a CRF",
            place="tagging.crf_learning_rate",
            remedy="leave it out, or tagging.crf=true",
        )
    if options.crf and recipe.train.label_smoothing:
        problem = "has no effect with tagging.crf, whose loss is of whole sequences"
        raise RecipeError(problem, place="train.label_smoothing", remedy="leave one of the two out")
    if options.crf and find_spec("torchcrf") is None:
        problem = "the library it needs, pytorch-crf, is not installed"
        raise RecipeError(
            problem, place="tagging.crf", remedy="pip install pytorch-crf, or lmkit[crf]"
        )


def _crf_of(model: Any) -> Any:
    from lmkit.heads import crf_of

    return crf_of(model)


def sequence_losses(crf: Any, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihoods ``(batch,)`` of the labels that count, each row's taken as one sequence; 0 without any.

    Args:
        logits: ``(batch, length, classes)``; labels: ``(batch, length)``.
    """
    counts = labels != IGNORE
    width = max(1, int(counts.sum(1).max()))
    order = counts.int().argsort(dim=1, descending=True, stable=True)[
        :, :width
    ]  # those that count, in order, then padding
    emissions = logits.gather(1, order[..., None].expand(-1, -1, logits.shape[-1])).float()
    mask = counts.gather(1, order)
    mask[:, 0] = (
        True  # the library wants at least one; what a row without any gives is taken out again below
    )
    likelihoods = crf(emissions, labels.gather(1, order).clamp(min=0), mask, reduction="none")
    losses: torch.Tensor = -likelihoods * counts.any(1)
    return losses


def first_with_text(
    word_ids: Sequence[int | None],
    offsets: Sequence[tuple[int, int]],
    words: Sequence[str],
    tokens: Sequence[str],
) -> dict[int, int]:
    """Word -> position of its first token that carries text, not the bare mark of a word's beginning.

    XLM-R style tokenizers split a pre-tokenised ideograph into ``▁`` and the ideograph, byte-level ones into ``Ġ``
    and its bytes; the mark may have an empty span, that of a white space, or that of the first letter.
    """
    found: dict[int, int] = {}
    bare: dict[int, int] = {}
    for position, (word, (start, end), token) in enumerate(
        zip(word_ids, offsets, tokens, strict=True)
    ):
        if word is None:
            continue
        target = found if words[word][start:end].strip() and token not in WORD_MARKS else bare
        target.setdefault(word, position)
    return bare | found


def assign(
    windows: Sequence[Mapping[int, int]], lengths: Sequence[int]
) -> list[tuple[int, int, int]]:
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
            context = min(
                position if window else length,
                length - 1 - position if window + 1 < len(windows) else length,
            )
            if word not in best or context > best[word][0]:
                best[word] = (context, window, position)
    return [(window, position, word) for word, (_, window, position) in sorted(best.items())]


def entities(
    text: str, offsets: Sequence[tuple[int, int]], tags: Sequence[str], scores: Sequence[float]
) -> list[dict[str, Any]]:
    """IOB2 tags -> entities in characters; the score is the mean of their words'.

    >>> entities("in New York", [(0, 2), (3, 6), (7, 11)], ["O", "B-LOC", "I-LOC"], [1, 0.5, 1.0])
    [{'start': 3, 'end': 11, 'label': 'LOC', 'score': 0.75, 'text': 'New York'}]
    >>> [found["label"] for found in entities("Rome", [(0, 4)], ["B"], [1])]
    ['_']
    """
    from lmkit.metrics.tagging import type_of

    spans: list[tuple[str, list[int]]] = []
    previous = "O"
    for number, tag in enumerate(tags):
        if tag != "O":
            prefix, label = tag.partition("-")[0], type_of(tag)
            if prefix == "I" and previous != "O" and type_of(previous) == label:
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
