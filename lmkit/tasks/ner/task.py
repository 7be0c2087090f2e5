"""The tagging task: windows of words in, a tag for every word out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lmkit.batch import IGNORE, Batch, Columns, Piece, Row, flat, lay_out, pad
from lmkit.heads import crf_of
from lmkit.tasks.base import Facts, Problem, Task
from lmkit.tasks.ner.decoding import Transitions, iob2_transitions, marginals, viterbi
from lmkit.tasks.ner.entities import entities, marks_entities
from lmkit.tasks.windows import encode_windows, padding_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lmkit.recipe.schema import Recipe

# tokens of byte-level and SentencePiece vocabularies that only say: a word begins
WORD_MARKS = frozenset({"Ġ", "▁"})


class WordTagging(Task):
    def __init__(
        self,
        problem: Problem,
        recipe: Recipe,
        facts: Facts,
        tokenizer: PreTrainedTokenizerBase,
    ):
        super().__init__(problem, recipe, facts, tokenizer)
        self.labels: list[str] = self.facts["labels"]
        self._number = {label: number for number, label in enumerate(self.labels)}
        self._outside = "O" if "O" in self._number else self.labels[0]
        self.is_entities = marks_entities(self.labels)
        self._decoding = recipe.tagging.decoding or ("viterbi" if recipe.tagging.crf else "argmax")
        self._legal: Transitions | None = None

    def model_config(self) -> dict[str, Any]:
        return {
            "num_labels": len(self.labels),
            "id2label": dict(enumerate(self.labels)),
            "label2id": self._number,
        }

    def encode(self, rows: Sequence[Row]) -> Columns:
        """Cut rows into windows with the positions they answer for: each word stands in the window with most context around it."""
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
        """Return, with a CRF, the summed negative log-likelihood of the windows' tag sequences; its weight is words, as without."""
        if (crf := crf_of(model)) is None:
            return super().loss(model, batch)
        return sequence_losses(crf, *self.logits(model, batch)).sum()

    def predict(
        self, model: PreTrainedModel, batch: Batch, pieces: Sequence[Piece]
    ) -> list[dict[str, Any]]:
        """Return log-probabilities of the words that each piece answers for; with a CRF its potentials, and its transitions."""
        logits, labels = self.logits(model, batch)
        crf = crf_of(model)
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
        """Return a tag for every word of the row; a word that the tokenizer drops entirely is outside of all entities."""
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
        """Return the tags of a whole row, and ``(words, tags)`` probabilities; ``learned`` are a CRF's transitions."""
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


def sequence_losses(crf: Any, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return negative log-likelihoods ``(batch,)`` of the labels that count, each row's taken as one sequence; 0 without any.

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
    """Return by word the position of its first token that carries text, not the bare mark of a word's beginning.

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
