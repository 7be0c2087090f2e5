"""Check that tags can stand where they stand, and turn those that mark entities into IOB2."""

from __future__ import annotations

import itertools
from collections.abc import Collection

from filelock import FileLock

from lmkit import console
from lmkit.data import tags
from lmkit.data.check.labels import Fault, distinct, leave_out
from lmkit.data.row import FORMAT, LEAVE_OUT, OnBadRow, Row, hash_of
from lmkit.data.rows import Rows, is_whole, write_rows
from lmkit.errors import DataError, RecipeError

REPAIR = "correct it, have all such sequences read as conlleval reads them with tagging.repair=true, or leave such rows out with data.on_bad_row=skip"


def scheme_of(rows: Rows, field: str = "tags") -> tags.Scheme:
    """Return the tag scheme of a split: see ``tags.recognise``."""
    return tags.recognise(row[field] for batch in rows.batches(names=[field]) for row in batch)


def prepare_tags(
    splits: dict[str, Rows],
    *,
    on_bad_row: OnBadRow,
    repair: bool = False,
    model_tags: Collection[str] | None = None,
    field: str = "tags",
) -> dict[str, Rows]:
    """Return every split with its tags checked and, where they mark entities, in IOB2.

    The scheme is that of the training split (of the first, where there is none), and the same for all; but tags that
    were made of entities in characters are IOB2 already.

    Args:
        repair: sequences of right tags in a wrong order are read as conlleval reads them (see ``tags.to_iob2``),
            counted and reported.
        model_tags: the tags of the model, or of ``data.labels``: where they hold other bare letters than ``B``, ``I`` and ``O``,
            such tags are meant as they are (a hub model's ``B``, ``M``, ``E``, ``S`` of word segmentation).

    Raises:
        DataError: a tag that cannot stand where it stands, at its line; or no row is left.
        RecipeError: ``repair``, where nothing can be wrong.
    """
    scheme = _choose_scheme(splits, model_tags, field)
    to_check = {}
    if scheme != "plain":
        to_check = {split: rows for split, rows in splits.items() if "offsets" not in rows.names}
    if repair and "train" in splits and not to_check:
        kind = "plain tags" if scheme == "plain" else "entities in characters"
        raise RecipeError(
            f"{kind} have no order to repair", place="tagging.repair", remedy="leave it out"
        )

    def find_fault(row: Row) -> Fault | None:
        wrong = tags.check_tags(row[field], scheme)
        remedy = LEAVE_OUT
        if wrong is None and not repair:
            wrong = tags.check_sequence(row[field], scheme)
            remedy = REPAIR
        return None if wrong is None else Fault(wrong[1], remedy, word=wrong[0])

    prepared = dict(splits)
    for split, rows in to_check.items():
        prepared[split] = rows = leave_out(rows, find_fault, on_bad_row, split)
        is_repaired = repair and _warn_of_repairs(rows, field, scheme, split)
        if is_repaired or scheme not in ("iob2", "bare iob2"):
            prepared[split] = _in_iob2(rows, field, scheme)
    return prepared


def _choose_scheme(
    splits: dict[str, Rows], model_tags: Collection[str] | None, field: str
) -> tags.Scheme:
    learned_from = splits["train"] if "train" in splits else next(iter(splits.values()))
    scheme = scheme_of(learned_from, field)
    is_bare = scheme.startswith("bare ")
    if is_bare and model_tags is not None and not set(model_tags) <= set("BIO"):
        return "plain"
    if "train" in splits and scheme == "plain":
        _check_plain(splits["train"], field)
    elif "train" in splits and is_bare:
        console.say("data.train: tags without types, taken for entities of one type")
    return scheme


def _check_plain(train: Rows, field: str) -> None:
    """Report plain tags that seem to mark entities: their F1 would be the accuracy of words.

    Raises:
        DataError: some mark entities, and most do not.
    """
    plain = distinct(train, field)
    typed = sorted(tag for tag in plain if tag.startswith(("B-", "I-")))
    others = plain - {*typed, "O"}
    if typed and others:
        raise DataError(
            f"{typed[0]!r} marks an entity, and other tags, such as {min(others)!r}, mark none",
            place=_first_place(train, field, typed[0]),
            remedy="write all entities as B-TYPE and I-TYPE and the rest as O, or begin no tag with B- or I-",
        )
    if all(tag.isdecimal() for tag in plain):
        console.warn(
            "data.train: the tags are numbers, so nothing tells entities; write their names (O, B-PER, ...) if they mark some"
        )
        return
    odd = tags.written_otherwise(plain)
    if odd is not None:
        right = "B, I and O" if len(odd) == 1 else "B-PER, I-PER and O"
        console.warn(
            f"data.train: tags such as {odd!r} ({_first_place(train, field, odd)}) seem to mark entities, but are taken as they "
            f"are, a tag a word, without entities and their F1; if they mark some, write them like {right}"
        )


def _first_place(rows: Rows, field: str, tag: str) -> str:
    """Return the place of the first word with a tag."""
    for i, row in enumerate(rows):
        if tag in row[field]:
            return rows.place(i, word=row[field].index(tag))
    raise ValueError(tag)


def _warn_of_repairs(rows: Rows, field: str, scheme: tags.Scheme, split: str) -> bool:
    """Report the sequences that are not right in their scheme; tell if there are any."""
    count = 0
    first = ""
    for i, row in enumerate(rows):
        wrong = tags.check_sequence(row[field], scheme)
        if wrong is not None and count == 0:
            first = f"{rows.place(i, word=wrong[0])}: {wrong[1]}"
        count += wrong is not None
    if count:
        console.warn(
            f"data.{split}: {count} of {len(rows)} tag sequences repaired, the first at {first}"
        )
    return count > 0


def _in_iob2(rows: Rows, field: str, scheme: tags.Scheme) -> Rows:
    fingerprint = hash_of([rows.fingerprint, "iob2", scheme, FORMAT])
    stem = hash_of([rows.path.stem, fingerprint])[:32]  # slice columns have other paths
    path = rows.path.with_name(f"rows-{stem}.arrow")
    with FileLock(f"{path}.lock"):
        if not is_whole(path):
            schema = rows.schema
            all_rows = itertools.chain.from_iterable(rows.batches(names=schema.names))
            converted = ({**row, field: tags.to_iob2(row[field], scheme)} for row in all_rows)
            write_rows(path, schema, converted)
    return Rows(path, files=rows.files, rejected=rows.rejected, fingerprint=fingerprint)
