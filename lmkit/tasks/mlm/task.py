"""Masked language modelling (Devlin et al. 2019): predict the tokens that were hidden, from both sides."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lmkit.batch import IGNORE, Batch, Columns, Piece, Row, flat, keyed_rng, lay_out
from lmkit.errors import ModelError
from lmkit.tasks.language import EVALUATION_EPOCH, LanguageModeling
from lmkit.tasks.words import word_numbers

if TYPE_CHECKING:
    import numpy as np


class MaskedLanguageModeling(LanguageModeling):
    @cached_property
    def _ordinary(self) -> np.ndarray:
        """Return the tokens that may stand in for a hidden one: a stray padding token would shift RoBERTa's positions."""
        import numpy as np

        return np.setdiff1d(np.arange(len(self.tokenizer)), self.tokenizer.all_special_ids)

    def encode(self, rows: Sequence[Row]) -> Columns:
        if self.tokenizer.mask_token_id is None:
            raise ModelError(
                "this tokenizer has no mask token, and mlm needs one",
                place="tokenizer",
                remedy="use task: clm, or another tokenizer",
            )
        texts = [row["text"] for row in rows]
        encoded = self.tokenizer(
            texts,
            truncation=True,
            max_length=self.max_length,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        columns: Columns = {
            "input_ids": encoded["input_ids"],
            "row": list(encoded["overflow_to_sample_mapping"]),
        }
        columns["words"] = [
            word_numbers(texts[row], encoded.word_ids(piece), encoded["offset_mapping"][piece])
            for piece, row in enumerate(columns["row"])
        ]
        columns["length"] = [len(ids) for ids in columns["input_ids"]]
        return columns

    def collate(
        self,
        examples: Sequence[Sequence[Piece]],
        *,
        epoch: int = EVALUATION_EPOCH,
        packed: bool = False,
    ) -> Batch:
        batch = lay_out(examples, columns={"input_ids": self.tokenizer.pad_token_id}, packed=packed)
        ids = batch.inputs["input_ids"].numpy()
        there = batch.inputs["attention_mask"].numpy() == 1
        ids[there], batch.labels.numpy()[there] = self._mask(ids[there], flat(examples), epoch)
        return batch

    def _mask(
        self, ids: np.ndarray, pieces: Sequence[Piece], epoch: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return what the model sees of the tokens of pieces, one after the other, and the labels; each ``(tokens,)``.

        What is drawn for a piece depends on nothing but the piece.
        """
        import numpy as np

        share, whole_words = self.recipe.masking.share, self.recipe.masking.whole_words
        drawn: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for piece in pieces:
            rng, words = (
                keyed_rng(self.recipe.seed, epoch, piece["piece"]),
                np.asarray(piece["words"]),
            )
            chosen = choose(words, share, whole_words=whole_words, rng=rng)
            drawn.append(
                (chosen, rng.random(len(words)), rng.integers(0, len(self._ordinary), len(words)))
            )
        hidden, roll, random = (np.concatenate(each) for each in zip(*drawn, strict=True))
        seen = np.where(
            roll < 0.8,
            self.tokenizer.mask_token_id,
            np.where(roll < 0.9, self._ordinary[random], ids),
        )
        return np.where(hidden, seen, ids), np.where(hidden, ids, IGNORE)


def choose(words: np.ndarray, share: float, *, whole_words: bool, rng: Any) -> np.ndarray:
    """Choose the tokens to predict: each token, or each word with all its tokens, with probability ``share``.

    Args:
        words: ``(length,)`` the word of every token, -1 where none may be chosen.

    Returns:
        ``(length,)`` booleans.
    """
    draws = (
        rng.random(max(1, int(words.max(initial=-1)) + 1))[words]
        if whole_words
        else rng.random(len(words))
    )
    chosen: np.ndarray = (draws < share) & (words >= 0)
    return chosen
