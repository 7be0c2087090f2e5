"""Texts longer than the model reads, in overlapping windows (or cut, or refused): ``data.long_text``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmkit.batch import Columns, Piece, Row
from lmkit.errors import RecipeError
from lmkit.tasks.base import Task, TooLong

Positions = Sequence[int]


def encode_windows(
    task: Task,
    rows: Sequence[Row],
    texts: Sequence[Any],
    pairs: Sequence[str] | None = None,
    **options: Any,
) -> tuple[Columns, Any, list[Positions]]:
    """Tokenise with ``data.long_text``: overlapping windows, a part of the text, or an error at the first too long.

    Args:
        pairs: second texts, read behind the first ones.

    Returns:
        The columns that the model reads with ``row``, ``length`` and ``cut`` (1 where some of the text was left
        out), the tokenizer's answer for the whole texts, and which positions of its row's answer each piece has.
    """
    data = task.recipe.data
    encoded = task.tokenizer(texts, pairs, verbose=False, **options)
    lengths = [len(ids) for ids in encoded["input_ids"]]
    long = [(row, length) for row, length in enumerate(lengths) if length > task.max_length]
    if long and data.long_text == "error":
        raise TooLong(long, task.max_length)
    names = [name for name in ("input_ids", "token_type_ids") if name in encoded]
    columns: Columns = {name: [] for name in (*names, "row", "length", "cut")}
    pieces: list[Positions] = []
    for row, length in enumerate(lengths):
        parts: list[Positions] = [range(length)]
        is_cut = False
        if length > task.max_length:
            parts, is_cut = _parts(
                encoded.sequence_ids(row), task.max_length, data.long_text, data.overlap
            )
        for positions in parts:
            for name in names:
                whole = encoded[name][row]
                columns[name].append([whole[position] for position in positions])
            columns["row"].append(row)
            columns["length"].append(len(positions))
            columns["cut"].append(int(is_cut and positions is parts[0]))
        pieces += parts
    return columns, encoded, pieces


def _parts(
    owners: Sequence[int | None], size: int, how: str, overlap: float
) -> tuple[list[Positions], bool]:
    """Return the positions of each piece of a text that is too long, and if some of the text is in none.

    Args:
        owners: of each token the text it belongs to, 0 or 1, None for special tokens, which every piece has.
        size: tokens of a piece.
    """
    texts = [
        [position for position, owner in enumerate(owners) if owner == number] for number in (0, 1)
    ]
    room = size - owners.count(None)
    if room < 2:
        raise RecipeError(
            f"{size} tokens leave no room beside {owners.count(None)} special ones",
            place="data.max_length",
            remedy="raise it",
        )
    # as much of either text as fits, the longer one cut first
    shares = [
        min(len(text), max(room - len(other), (room + 1 - number) // 2))
        for number, (text, other) in enumerate(zip(texts, texts[::-1], strict=True))
    ]
    if how == "windows":
        sliding = int(len(texts[1]) > len(texts[0]))
        fixed = texts[1 - sliding][: min(shares[1 - sliding], room // 2)]
        chosen = [[*fixed, *window] for window in slide(texts[sliding], room - len(fixed), overlap)]
        is_cut = len(fixed) < len(texts[1 - sliding])
    else:
        heads = [
            share // 4 if how == "head_tail" else share for share in shares
        ]  # 128 of 512 (Sun et al. 2019)
        ends = [
            len(text) - share + head for text, share, head in zip(texts, shares, heads, strict=True)
        ]
        chosen = [
            [
                p
                for text, head, end in zip(texts, heads, ends, strict=True)
                for p in (*text[:head], *text[end:])
            ]
        ]
        is_cut = True
    special = [position for position, owner in enumerate(owners) if owner is None]
    return [sorted([*special, *positions]) for positions in chosen], is_cut


def slide(positions: Positions, size: int, overlap: float) -> list[Positions]:
    """Return windows of ``size`` positions that have a share of them in common with the next; none left out.

    >>> slide([0, 1, 2, 3, 4], 3, 0.5)
    [[0, 1, 2], [2, 3, 4]]
    """
    step = size - int(overlap * max(0, size - 1))
    count = max(1, -(-(len(positions) - size) // step) + 1)
    return [positions[start : start + size] for start in range(0, count * step, step)]


def padding_of(task: Task, examples: Sequence[Sequence[Piece]]) -> dict[str, int]:
    """Return the padding value of each column that the model reads."""
    columns = {"input_ids": task.tokenizer.pad_token_id}
    if "token_type_ids" in examples[0][0]:
        columns["token_type_ids"] = getattr(task.tokenizer, "pad_token_type_id", 0)
    return columns
