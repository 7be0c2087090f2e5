"""Tag schemes of word tagging: which one is used, what is wrong with a sequence, and how to turn it into IOB2.

Four schemes are told apart:

- ``plain``: a tag per word that means the word alone (parts of speech).
- ``iob2``: ``B-X`` begins every entity, ``I-X`` continues it (CoNLL-2002; Tjong Kim Sang and Veenstra 1999).
- ``iob1``: ``I-X`` begins and continues; ``B-X`` only parts an entity from one of the same type right before it
  (Ramshaw and Marcus 1995; CoNLL-2003 as published, Tjong Kim Sang and De Meulder 2003). CoNLL-2000 is IOB2
  (Tjong Kim Sang and Buchholz 2000).
- ``bioes``: ends and single words are marked, too; written BIOES, BILOU (Ratinov and Roth 2009) or BMES.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

Scheme = Literal["plain", "iob2", "iob1", "bioes"]
PREFIXED = re.compile(r"([BIESLUM])-(.+)", re.DOTALL)
PREFIXES: dict[Scheme, str] = {"iob2": "BI", "iob1": "BI", "bioes": "BIESLUM"}
BEGINS, GOES_ON, ENDS, SINGLE = frozenset("B"), frozenset("IM"), frozenset("EL"), frozenset("SU")


def split_tag(tag: str) -> tuple[str, str]:
    """Prefix and type; a tag without a prefix has an empty type.

    >>> split_tag("B-PER"), split_tag("O")
    (('B', 'PER'), ('O', ''))
    """
    match = PREFIXED.fullmatch(tag)
    return (match[1], match[2]) if match else (tag, "")


def recognise(sequences: Iterable[Sequence[str]]) -> Scheme:
    """The scheme of a corpus, from its training sequences, read once.

    A few wrong sequences do not change the answer: data is IOB1 only where no ``B-`` begins an entity after
    another type or ``O``, and BIOES only where ends and single words are about as frequent as beginnings.

    >>> recognise([["DET", "NOUN"]])
    'plain'
    >>> recognise([["O", "B-PER", "I-PER"], ["B-LOC"]])
    'iob2'
    >>> recognise([["O", "I-PER", "B-PER"]])
    'iob1'
    >>> recognise([["S-LOC", "O", "B-PER", "E-PER"]])
    'bioes'
    """
    distinct: set[str] = set()
    prefixes: Counter[str] = Counter()
    i_begins = b_begins = 0
    for tags in sequences:
        distinct.update(tags)
        previous = ""
        for prefix, kind in map(split_tag, tags):
            if kind:
                prefixes[prefix] += 1
                i_begins += prefix == "I" and kind != previous
                b_begins += prefix == "B" and kind != previous
            previous = kind
    distinct.discard("O")
    prefixed = sum(PREFIXED.fullmatch(tag) is not None for tag in distinct)
    if not prefixed or 2 * prefixed < len(distinct):
        return "plain"
    if 2 * sum(prefixes[p] for p in ENDS | SINGLE) > prefixes["B"]:
        return "bioes"
    return "iob1" if i_begins and not b_begins else "iob2"


def check_sequence(tags: Sequence[str], scheme: Scheme) -> tuple[int, str] | None:
    """The first tag that cannot stand where it stands, as (index, problem); None for a right sequence.

    >>> check_sequence(["O", "I-PER"], "iob2")
    (1, 'I-PER follows O; an entity begins with B-')
    >>> check_sequence(["B_PER"], "iob2")
    (0, "'B_PER' is not a tag of this data (O or B-TYPE, I-TYPE); did you mean 'B-PER'?")
    >>> check_sequence(["B-PER", "O"], "bioes")
    (1, 'O follows B-PER; an entity of several words ends with E- (or L-)')
    """
    if scheme == "plain":
        return None
    before, previous, is_open = "", "", False
    for i, tag in enumerate(tags):
        prefix, kind = split_tag(tag)
        if unknown := check_tags([tag], scheme):
            return i, unknown[1]
        after = f"follows {before}" if before else "begins the sentence"
        if scheme == "iob2" and prefix == "I" and kind != previous:
            return i, f"{tag} {after}; an entity begins with B-"
        if scheme == "iob1" and prefix == "B" and kind != previous:
            return (
                i,
                f"{tag} {after}; here B- only parts an entity from one of the same type right before it, others begin with I-",
            )
        if scheme == "bioes":
            if prefix in GOES_ON | ENDS and not (is_open and kind == previous):
                return i, f"{tag} {after}; an entity begins with B-"
            if is_open and prefix not in GOES_ON | ENDS:
                return i, f"{tag} {after}; an entity of several words ends with E- (or L-)"
            is_open = prefix in BEGINS | GOES_ON
        before, previous = tag, kind
    if is_open:
        return len(tags) - 1, f"{before} ends the sentence; an entity of several words ends with E- (or L-)"
    return None


def check_tags(tags: Sequence[str], scheme: Scheme) -> tuple[int, str] | None:
    """The first tag that is none of the scheme's, wherever it stands, as (index, problem)."""
    for i, tag in enumerate(tags):
        prefix, kind = split_tag(tag)
        if scheme != "plain" and tag != "O" and (not kind or prefix not in PREFIXES[scheme]):
            forms = ", ".join(f"{p}-TYPE" for p in PREFIXES[scheme])
            return i, f"{tag!r} is not a tag of this data (O or {forms})" + _meant(tag, scheme)
    return None


def _meant(tag: str, scheme: Scheme) -> str:
    """The tag that was probably meant: another sign than ``-``, small letters, no prefix."""
    if tag in {"", "0", "o"}:
        return "; did you mean 'O'?"
    if match := re.fullmatch(r"([A-Za-z])[-_:./ ]?-?(.+)", tag):
        prefix = match[1].upper()
        if prefix in PREFIXES[scheme] and not tag[1].isalnum():
            return f"; did you mean '{prefix}-{match[2]}'?"
    return "" if PREFIXED.fullmatch(tag) else f"; did you mean 'B-{tag}'?"


def to_iob2(tags: Sequence[str], scheme: Scheme) -> list[str]:
    """The same entities in IOB2.

    A wrong sequence is read as conlleval reads it: an entity begins at a tag that continues none of its type, and ends
    where the next tag does not continue it.

    >>> to_iob2(["I-PER", "I-PER", "B-PER", "O", "I-LOC"], "iob1")
    ['B-PER', 'I-PER', 'B-PER', 'O', 'B-LOC']
    >>> to_iob2(["B-PER", "E-PER", "S-LOC"], "bioes")
    ['B-PER', 'I-PER', 'B-LOC']
    >>> to_iob2(["O", "I-PER", "I-LOC"], "iob2"), to_iob2(["B-PER", "O", "E-LOC"], "bioes")
    (['O', 'B-PER', 'B-LOC'], ['B-PER', 'O', 'B-LOC'])
    """
    if scheme == "plain":
        return list(tags)
    converted, is_open = [], ""  # the type of the entity that the next tag may continue
    for tag in tags:
        prefix, kind = split_tag(tag)
        begins = prefix in BEGINS | SINGLE or kind != is_open
        converted.append(f"{'B' if begins else 'I'}-{kind}" if kind else tag)
        is_open = kind if prefix not in ENDS | SINGLE else ""
    return converted
