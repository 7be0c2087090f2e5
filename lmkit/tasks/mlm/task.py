"""Masked language modelling (Devlin et al. 2019): predict the tokens that were hidden, from both sides."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache, cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

from lmkit.batch import IGNORE, Batch, Columns, Piece, Row, flat, keyed_rng, lay_out
from lmkit.errors import ModelError
from lmkit.tasks.language import EVALUATION_EPOCH, LanguageModeling

if TYPE_CHECKING:
    import numpy as np

IDEOGRAPH = re.compile(
    r"[\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
FIRST_IDEOGRAPH, LAST_CODE = 0x3005, 0xFFFF


class MaskedLanguageModeling(LanguageModeling):
    @cached_property
    def _ordinary(self) -> np.ndarray:
        """The tokens that may stand in for a hidden one: a stray padding token would shift RoBERTa's positions."""
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
        """The tokens of pieces one after the other -> what the model sees of them, and the labels; each ``(tokens,)``.

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


def word_numbers(
    text: str, word_ids: Sequence[int | None], offsets: Sequence[tuple[int, int]]
) -> list[int]:
    """The word that each token belongs to, counted from 0; -1 for special tokens.

    Words are the tokenizer's own, and end at white space besides: a Metaspace tokenizer may call a
    whole sentence one word [transformers#11768]. An ideograph is a word of its own; the bytes of one
    character, and a space that is a token, belong with what they are part of or stand before.

    >>> word_numbers("a bc", [None, 0, 0, 0, None], [(0, 0), (0, 1), (1, 3), (3, 4), (0, 0)])
    [-1, 0, 1, 1, -1]
    """
    import numpy as np

    numbers = np.array([-1 if word is None else word for word in word_ids], dtype=np.int64)
    there = np.flatnonzero(numbers >= 0)
    if not len(there):
        return [-1] * len(numbers)
    words, spans = (
        numbers[there],
        np.fromiter(chain.from_iterable(offsets), np.int64, 2 * len(offsets)).reshape(-1, 2)[there],
    )
    first = max(0, int(spans.min()) - 1)  # and what stands before it
    codes = np.frombuffer(
        text[first : int(spans.max()) + 1].encode("utf-32-le", "surrogatepass"), np.uint32
    )
    spaces = np.concatenate(
        [[0], np.cumsum(_space_codes()[np.minimum(codes, LAST_CODE)])]
    )  # up to each character
    start, end = np.minimum(
        spans - first, len(codes)
    ).T  # each token beside the one before it, from the second on
    last_start, last_end, start = start[:-1], end[:-1], start[1:]
    after_space = spaces[np.minimum(start + 1, len(codes))] > spaces[last_end]
    goes_on = (start < last_end) | (
        (start == last_end)
        & (last_start < last_end)
        & (spaces[last_end] - spaces[last_start] == last_end - last_start)
    )
    is_new = (words[1:] != words[:-1]) | after_space
    if codes.max(initial=0) >= FIRST_IDEOGRAPH:
        matches = [*map(IDEOGRAPH.match, text[first : first + len(codes)]), None]
        ideographs = np.array([match is not None for match in matches])
        is_new |= ideographs[start] | ideographs[np.maximum(last_end - 1, 0)]
    numbers[there] = np.concatenate([[0], np.cumsum(is_new & ~goes_on)])
    found: list[int] = numbers.tolist()
    return found


@cache
def _space_codes() -> np.ndarray:
    """Whether each character up to ``LAST_CODE`` is white space; none above is."""
    import numpy as np

    return np.array([chr(code).isspace() for code in range(LAST_CODE + 1)])


def choose(words: np.ndarray, share: float, *, whole_words: bool, rng: Any) -> np.ndarray:
    """Which tokens to predict: each token, or each word with all its tokens, with probability ``share``.

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
