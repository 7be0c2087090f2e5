"""Tag schemes of word tagging: which one is used, what is wrong with a sequence, and how to turn it into IOB2.

Four schemes are told apart:

- ``plain``: a tag per word that means the word alone (parts of speech).
- ``iob2``: ``B-X`` begins every entity, ``I-X`` continues it (CoNLL-2002; Tjong Kim Sang and Veenstra 1999).
- ``iob1``: ``I-X`` begins and continues; ``B-X`` only parts an entity from one of the same type right before it
  (Ramshaw and Marcus 1995; CoNLL-2003 as published, Tjong Kim Sang and De Meulder 2003). CoNLL-2000 is IOB2
  (Tjong Kim Sang and Buchholz 2000).
- ``bioes``: ends and single words are marked, too; written BIOES, BILOU (Ratinov and Roth 2009) or BMES.

The last three may come without types (keyphrases, aspects: ``B``, ``I``, ``O``): the same schemes with ``bare`` before
the name, whose entities are all of one type.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Literal

Scheme = Literal["plain", "iob2", "iob1", "bioes", "bare iob2", "bare iob1", "bare bioes"]
PREFIXED = re.compile(r"([BIESLUM])-(.+)", re.DOTALL)
PREFIXES = {"iob2": tuple("BI"), "iob1": tuple("BI"), "bioes": tuple("BIESLUM")}
BARE = [
    frozenset("BIOES"),
    frozenset("BILOU"),
    frozenset("BMESO"),
]  # the tags of the schemes where entities have no types
BARE_LETTERS = frozenset("BIOESLUM")
SIGN = "[-_:./|\u2010-\u2015\u2212 ]"  # what stands for the hyphen between prefix and type, now and then
OTHER_SPELLINGS = (
    re.compile(f"(?P<prefix>[BIESLUM]){SIGN}(?P<kind>.+)", re.I),
    re.compile(f"(?P<kind>.+){SIGN}(?P<prefix>[BIESLUM])", re.I),
)
BEGINS, GOES_ON, ENDS, SINGLE = frozenset("B"), frozenset("IM"), frozenset("EL"), frozenset("SU")


def split_tag(tag: str) -> tuple[str, str]:
    """Prefix and type; a tag without a prefix has an empty type.

    >>> split_tag("B-PER"), split_tag("O")
    (('B', 'PER'), ('O', ''))
    """
    match = PREFIXED.fullmatch(tag)
    return (match[1], match[2]) if match else (tag, "")


def are_bare(distinct: Collection[str]) -> bool:
    """Tell whether these tags, all that a corpus has, are prefixes without types: nothing else, and ``B`` beside ``O`` or ``I``.

    Some parts of speech have one letter, too, so one other tag is enough to make all of them plain.

    >>> are_bare({"B", "I", "O"}), are_bare({"B", "I", "N", "O"}), are_bare({"I", "O"})
    (True, False, False)
    """
    found = set(distinct)
    return "B" in found and bool(found & {"O", "I"}) and any(found <= letters for letters in BARE)


def _split(tag: str, scheme: Scheme) -> tuple[str, str]:
    """Split a tag as ``split_tag`` does, but give all bare tags one type."""
    return (tag, "any") if scheme.startswith("bare ") and tag != "O" else split_tag(tag)


def _prefixes(scheme: Scheme) -> Sequence[str]:
    return PREFIXES[scheme.removeprefix("bare ")]


def written_otherwise(distinct: Collection[str]) -> str | None:
    """Return one of the plain tags that seem to mark entities in another spelling (``B_PER``, ``PER-B``, ``b-per``); None for others.

    Args:
        distinct: all tags of a corpus that ``recognise`` calls plain.

    Most tags have to be a prefix and a type, the other way round, or in small letters; and there is a type that begins
    and goes on, or nothing but beginnings and what is outside. Names of parts of speech are neither.

    >>> written_otherwise({"O", "B_PER", "I_PER"}), written_otherwise({"o", "b", "i"})
    ('B_PER', 'b')
    >>> written_otherwise({"NN", "NN_sg", "PRP$", "-LRB-", "ADJ-pos"})
    """
    inside = sorted(tag for tag in distinct if tag not in {"O", "o"})
    if are_bare({tag.upper() for tag in distinct}):
        return next((tag for tag in inside if tag.islower()), "o")
    for form in OTHER_SPELLINGS:
        parts = {
            tag: (match["prefix"].upper(), match["kind"])
            for tag in inside
            if (match := form.fullmatch(tag))
        }
        begin = {kind for prefix, kind in parts.values() if prefix in BEGINS}
        go_on = {kind for prefix, kind in parts.values() if prefix in GOES_ON | ENDS}
        only = len(parts) == len(inside) < len(distinct)
        if 2 * len(parts) >= len(inside) and (begin & go_on or (begin and only)):
            return next((tag for tag in parts if not PREFIXED.fullmatch(tag)), None)
    return None


def recognise(sequences: Iterable[Sequence[str]]) -> Scheme:
    """Recognise the scheme of a corpus from its training sequences, read once.

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
    >>> recognise([["O", "B", "I"]])
    'bare iob2'
    """
    distinct: set[str] = set()
    with_types, bare = _Counts(), _Counts()
    for tags in sequences:
        distinct.update(tags)
        with_types.add(split_tag(tag) for tag in tags)
        if distinct <= BARE_LETTERS:
            bare.add(_split(tag, "bare iob2") for tag in tags)
    if are_bare(distinct):
        form = bare.form()
        return "bare iob2" if form == "iob2" else "bare iob1" if form == "iob1" else "bare bioes"
    distinct.discard("O")
    prefixed = sum(PREFIXED.fullmatch(tag) is not None for tag in distinct)
    return with_types.form() if prefixed and 2 * prefixed >= len(distinct) else "plain"


class _Counts:
    """How often which prefix stands where: what tells the schemes that mark entities from each other."""

    def __init__(self) -> None:
        self.prefixes: Counter[str] = Counter()
        self.i_begins = self.b_begins = 0

    def add(self, sequence: Iterable[tuple[str, str]]) -> None:
        previous = ""
        for prefix, kind in sequence:
            if kind:
                self.prefixes[prefix] += 1
                self.i_begins += prefix == "I" and kind != previous
                self.b_begins += prefix == "B" and kind != previous
            previous = kind

    def form(self) -> Literal["iob2", "iob1", "bioes"]:
        if 2 * sum(self.prefixes[p] for p in ENDS | SINGLE) > self.prefixes["B"]:
            return "bioes"
        return "iob1" if self.i_begins and not self.b_begins else "iob2"


def check_sequence(tags: Sequence[str], scheme: Scheme) -> tuple[int, str] | None:
    """Find the first tag that cannot stand where it stands, as (index, problem); None for a right sequence.

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
    hyphen = "" if scheme.startswith("bare ") else "-"
    form = scheme.removeprefix("bare ")
    for i, tag in enumerate(tags):
        prefix, kind = _split(tag, scheme)
        if unknown := check_tags([tag], scheme):
            return i, unknown[1]
        after = f"follows {before}" if before else "begins the sentence"
        if form == "iob2" and prefix == "I" and kind != previous:
            return i, f"{tag} {after}; an entity begins with B{hyphen}"
        if form == "iob1" and prefix == "B" and kind != previous:
            return (
                i,
                f"{tag} {after}; here B{hyphen} only parts an entity from one of the same type right before it, others begin with I{hyphen}",
            )
        if form == "bioes":
            if prefix in GOES_ON | ENDS and not (is_open and kind == previous):
                return i, f"{tag} {after}; an entity begins with B{hyphen}"
            if is_open and prefix not in GOES_ON | ENDS:
                return (
                    i,
                    f"{tag} {after}; an entity of several words ends with E{hyphen} (or L{hyphen})",
                )
            is_open = prefix in BEGINS | GOES_ON
        before, previous = tag, kind
    if is_open:
        return (
            len(tags) - 1,
            f"{before} ends the sentence; an entity of several words ends with E{hyphen} (or L{hyphen})",
        )
    return None


def check_tags(tags: Sequence[str], scheme: Scheme) -> tuple[int, str] | None:
    """Find the first tag that is none of the scheme's, wherever it stands, as (index, problem)."""
    if scheme == "plain":
        return None
    for i, tag in enumerate(tags):
        prefix, kind = _split(tag, scheme)
        if tag != "O" and (not kind or prefix not in _prefixes(scheme)):
            forms = ", ".join(
                p if scheme.startswith("bare ") else f"{p}-TYPE" for p in _prefixes(scheme)
            )
            return i, f"{tag!r} is not a tag of this data (O or {forms})" + _meant(tag, scheme)
    return None


def _meant(tag: str, scheme: Scheme) -> str:
    """Suggest the tag that was probably meant: another sign than ``-``, small letters, no prefix."""
    if tag in {"", "0", "o"}:
        return "; did you mean 'O'?"
    if scheme.startswith("bare "):
        return f"; did you mean {tag.upper()!r}?" if tag.upper() in _prefixes(scheme) else ""
    if tag in _prefixes(scheme):  # its type is missing
        return ""
    if match := re.fullmatch(f"([A-Za-z]){SIGN}?-?(.+)", tag):
        prefix = match[1].upper()
        if prefix in _prefixes(scheme) and not tag[1].isalnum():
            return f"; did you mean '{prefix}-{match[2]}'?"
    return "" if PREFIXED.fullmatch(tag) else f"; did you mean 'B-{tag}'?"


def to_iob2(tags: Sequence[str], scheme: Scheme) -> list[str]:
    """Write the same entities in IOB2.

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
        prefix, kind = _split(tag, scheme)
        letter = "B" if prefix in BEGINS | SINGLE or kind != is_open else "I"
        converted.append(
            tag if not kind else letter if scheme.startswith("bare ") else f"{letter}-{kind}"
        )
        is_open = kind if prefix not in ENDS | SINGLE else ""
    return converted
