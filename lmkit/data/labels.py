"""What is to be predicted: labels and tags, the same in all splits; and rows set aside for validation."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Collection, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock

from lmkit import console
from lmkit.data import tags
from lmkit.data.row import FORMAT, LEAVE_OUT, OnBadRow, Row, hash_of
from lmkit.data.rows import Rows, is_whole, write_rows
from lmkit.errors import DataError, RecipeError, suggest

Fault = tuple[int | None, str, str]  # of a row: the word or None, the problem, what to do
REPAIR = "correct it, have all such sequences read as conlleval reads them with tagging.repair=true, or leave such rows out with data.on_bad_row=skip"


def labels_of(rows: Rows, field: str) -> list[str]:
    """The distinct labels of a field, in an order that does not depend on the rows'.

    Numbers are ordered by value, names by the alphabet; tags as ``O``, then by type, ``B-`` before ``I-``. A type of
    IOB2 brings both its tags, as a type whose entities all have one word in training may have longer ones elsewhere;
    so do ``B`` and ``I`` without types (see ``tags.are_bare``).
    """
    found = _distinct(rows, field)
    if all(re.fullmatch(r"-?\d+", label) for label in found):
        return sorted(found, key=lambda label: (int(label), label))
    are_tags = "tokens" in rows.names  # the labels of a text may have such names, too
    if are_tags and found <= set("BIO") and tags.are_bare(found):
        return [*(["O"] if "O" in found else []), "B", "I"]
    if are_tags and all(label == "O" or label[:2] in ("B-", "I-") for label in found):
        kinds = {label[2:] for label in found if label != "O"}
        return [
            *(["O"] if "O" in found else []),
            *(f"{p}-{kind}" for kind in sorted(kinds) for p in "BI"),
        ]
    return sorted(found, key=lambda label: (label != "O", label))


def _distinct(rows: Rows, field: str) -> set[str]:
    column = rows.column(field)
    return set(
        pc.unique(pc.list_flatten(column) if pa.types.is_list(column.type) else column).to_pylist()
    )


def check_labels(
    rows: Rows, field: str, labels: Sequence[str], *, split: str, on_bad_row: OnBadRow = "error"
) -> Rows:
    """The rows whose labels are all known; the others raise, or with ``skip`` are left out and recorded.

    Raises:
        DataError: a label that is not one of ``labels``; or no row is left.
    """
    known = set(labels)
    if _distinct(rows, field) <= known:
        return rows

    remedy = "correct it, list it in data.labels, or leave such rows out with data.on_bad_row=skip"

    def unknown(row: Row) -> Fault | None:
        found = row[field] if isinstance(row[field], list) else [row[field]]
        for i, label in enumerate(found):
            if label not in known:
                what = "tag" if row.get("tokens") else "label"
                problem = (
                    f"the {what} {label!r} does not occur in training; {suggest(label, known)}"
                )
                return (i if what == "tag" else None), problem, remedy
        return None

    return _without(rows, unknown, on_bad_row, split)


def _without(
    rows: Rows, fault: Callable[[Row], Fault | None], on_bad_row: OnBadRow, split: str
) -> Rows:
    """The rows without a fault."""
    bad: list[int] = []
    rejected: list[Row] = []
    for i, row in enumerate(rows):
        found = fault(row)
        if found is None:
            continue
        word, problem, remedy = found
        if on_bad_row == "error":
            raise DataError(problem, place=rows.place(i, word=word), remedy=remedy)
        content = {name: value for name, value in row.items() if name != "id"}
        bad.append(i)
        rejected.append(
            {"place": rows.place(i, word=word), "problem": problem, "id": row["id"], "row": content}
        )
    if len(bad) == len(rows):
        raise DataError(
            f"no usable row is left for {split}; the first: {rejected[0]['problem']}",
            place=rejected[0]["place"],
            remedy="correct the data",
        )
    return rows.without(bad, rejected=rows.rejected + rejected) if rejected else rows


def scheme_of(rows: Rows, field: str = "tags") -> tags.Scheme:
    """The tag scheme of a split: see ``tags.recognise``."""
    return tags.recognise(row[field] for batch in rows.batches(names=[field]) for row in batch)


def prepare_tags(
    splits: dict[str, Rows],
    *,
    on_bad_row: OnBadRow,
    repair: bool = False,
    known: Collection[str] | None = None,
    field: str = "tags",
) -> dict[str, Rows]:
    """Every split with its tags checked and, where they mark entities, in IOB2.

    The scheme is that of the training split (of the first, where there is none), and the same for all; but tags that
    were made of entities in characters are IOB2 already.

    Args:
        repair: sequences of right tags in a wrong order are read as conlleval reads them (see ``tags.to_iob2``),
            counted and said.
        known: the tags of the model, or of ``data.labels``: where they hold other bare letters than ``B``, ``I`` and ``O``,
            such tags are meant as they are (a hub model's ``B``, ``M``, ``E``, ``S`` of word segmentation).

    Raises:
        DataError: a tag that cannot stand where it stands, at its line; or no row is left.
        RecipeError: ``repair``, where nothing can be wrong.
    """
    scheme = scheme_of(splits["train"] if "train" in splits else next(iter(splits.values())), field)
    if scheme.startswith("bare ") and known is not None and not set(known) <= set("BIO"):
        scheme = "plain"
    elif "train" in splits and scheme == "plain":
        _check_plain(splits["train"], field)
    elif "train" in splits and scheme.startswith("bare "):
        console.say("data.train: tags without types, taken for entities of one type")
    given = (
        {split: rows for split, rows in splits.items() if "offsets" not in rows.names}
        if scheme != "plain"
        else {}
    )
    if repair and "train" in splits and not given:
        what = "plain tags" if scheme == "plain" else "entities in characters"
        raise RecipeError(
            f"{what} have no order to repair", place="tagging.repair", remedy="leave it out"
        )

    def fault(row: Row) -> Fault | None:
        if found := tags.check_tags(row[field], scheme):
            return *found, LEAVE_OUT
        found = None if repair else tags.check_sequence(row[field], scheme)
        return (*found, REPAIR) if found else None

    prepared = dict(splits)
    for split, rows in given.items():
        prepared[split] = rows = _without(rows, fault, on_bad_row, split)
        wrong = _wrong_sequences(rows, field, scheme) if repair else []
        if wrong:
            place = rows.place(wrong[0][0], word=wrong[0][1])
            console.warn(
                f"data.{split}: {len(wrong)} of {len(rows)} tag sequences repaired, the first at {place}: {wrong[0][2]}"
            )
        if wrong or scheme not in ("iob2", "bare iob2"):
            prepared[split] = _in_iob2(rows, field, scheme)
    return prepared


def _check_plain(train: Rows, field: str) -> None:
    """Say where plain tags seem to mark entities: their F1 would be the accuracy of words.

    Raises:
        DataError: some mark entities, and most do not.
    """
    distinct = _distinct(train, field)
    typed = sorted(tag for tag in distinct if tag.startswith(("B-", "I-")))
    if typed and (others := distinct - {*typed, "O"}):
        number, word = next(
            (i, row[field].index(typed[0])) for i, row in enumerate(train) if typed[0] in row[field]
        )
        raise DataError(
            f"{typed[0]!r} marks an entity, and other tags, such as {min(others)!r}, mark none",
            place=train.place(number, word=word),
            remedy="write all entities as B-TYPE and I-TYPE and the rest as O, or begin no tag with B- or I-",
        )
    if all(tag.isdecimal() for tag in distinct):
        console.warn(
            "data.train: the tags are numbers, so nothing tells entities; write their names (O, B-PER, ...) if they mark some"
        )
    elif (odd := tags.written_otherwise(distinct)) is not None:
        number, word = next(
            (i, row[field].index(odd)) for i, row in enumerate(train) if odd in row[field]
        )
        right = "B, I and O" if len(odd) == 1 else "B-PER, I-PER and O"
        console.warn(
            f"data.train: tags such as {odd!r} ({train.place(number, word=word)}) seem to mark entities, but are taken as they "
            f"are, a tag a word, without entities and their F1; if they mark some, write them like {right}"
        )


def _wrong_sequences(rows: Rows, field: str, scheme: tags.Scheme) -> list[tuple[int, int, str]]:
    """(row, word, problem) of every sequence that is not right in its scheme."""
    found = ((i, tags.check_sequence(row[field], scheme)) for i, row in enumerate(rows))
    return [(i, *problem) for i, problem in found if problem]


def _in_iob2(rows: Rows, field: str, scheme: tags.Scheme) -> Rows:
    fingerprint = hash_of([rows.fingerprint, "iob2", scheme, FORMAT])
    path = rows.path.with_name(
        f"rows-{hash_of([rows.path.stem, fingerprint])[:32]}.arrow"
    )  # slice columns have other paths
    with FileLock(f"{path}.lock"):
        if not is_whole(path):
            schema = rows.schema
            everything = itertools.chain.from_iterable(rows.batches(names=schema.names))
            write_rows(
                path,
                schema,
                ({**row, field: tags.to_iob2(row[field], scheme)} for row in everything),
            )
    return Rows(path, files=rows.files, rejected=rows.rejected, fingerprint=fingerprint)


def split_by_hash(rows: Rows, fraction: float) -> tuple[Rows, Rows]:
    """Training and validation rows, told apart by the SHA-256 of a row's content.

    So a row stays on its side when others come, go or move, and equal rows are on the same side. ``rejected`` stays
    with the training rows.

    Raises:
        DataError: one of the sides is empty.
    """
    remedy = "choose a fraction nearer to one half, add rows, or name a file in data.validation"
    chosen = lambda digest: int(digest[:16], 16) < fraction * 2**64  # noqa: E731
    return _by_hash(rows, chosen, "validation", place="data.validation_fraction", remedy=remedy)


def split_by_fold(rows: Rows, fold: str) -> tuple[Rows, Rows]:
    """Training and test rows of one fold, ``"2/5"``, told apart by the SHA-256 of a row's content.

    Every row is in one fold, and equal rows are in the same one. The digits are others than ``split_by_hash`` looks at,
    so what is left can still be split evenly.

    Raises:
        RecipeError: there is no such fold. DataError: it is empty, or all that there is.
    """
    number, folds = map(int, fold.split("/"))
    if number > folds or folds < 2:
        raise RecipeError(
            f"there is no fold {fold}", place="data.fold", remedy=f"1/{max(2, folds)} is the first"
        )
    chosen = lambda digest: int(digest[16:32], 16) * folds >> 64 == number - 1  # noqa: E731
    return _by_hash(
        rows, chosen, f"fold {fold}", place="data.fold", remedy="choose fewer folds, or add rows"
    )


def _by_hash(
    rows: Rows, chosen: Callable[[str], bool], name: str, *, place: str, remedy: str
) -> tuple[Rows, Rows]:
    """The rows that are not chosen by the hash of their content, and those that are."""
    names = sorted(set(rows.names) - {"id"})
    contents = itertools.chain.from_iterable(rows.batches(names=names))
    is_chosen = np.fromiter(
        (chosen(hash_of(row)) for row in contents), bool, len(rows)
    )  # a byte a row
    if is_chosen.all() or not is_chosen.any():
        empty, all_rows = (
            ("training" if is_chosen.any() else name),
            f"{len(rows)} row{'s' * (len(rows) != 1)}",
        )
        raise DataError(f"no row of {all_rows} falls to {empty}", place=place, remedy=remedy)
    return rows.select(np.flatnonzero(~is_chosen)), rows.select(
        np.flatnonzero(is_chosen), rejected=[]
    )
