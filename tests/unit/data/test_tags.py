"""Tag schemes, on sequences that can be checked by eye."""

from __future__ import annotations

import random

import pytest

from lmkit.data.tags import (
    Scheme,
    check_sequence,
    check_tags,
    recognise,
    to_iob2,
    written_otherwise,
)

RIGHT_IOB2 = [["O", "B-PER", "I-PER", "O"], ["B-LOC"], ["B-ORG", "B-ORG", "I-ORG"]]


@pytest.mark.parametrize(
    ("sequences", "scheme"),
    [
        ([["DET", "NOUN", "X"]], "plain"),
        ([["O", "O"]], "plain"),
        ([["B", "M", "E", "S"]], "plain"),
        (RIGHT_IOB2, "iob2"),
        ([["B-NP", "I-NP", "B-VP", "O"]], "iob2"),
        ([["I-PER", "I-PER", "O"], ["I-LOC", "B-LOC"]], "iob1"),
        ([["I-PER", "O"]], "iob1"),
        ([["S-LOC", "O"], ["B-PER", "I-PER", "E-PER"]], "bioes"),
        ([["U-LOC", "O"], ["B-PER", "I-PER", "L-PER"]], "bioes"),
        ([["S-LOC", "O"], ["B-PER", "M-PER", "E-PER"]], "bioes"),
        ([["B-地名", "I-地名"]], "iob2"),
        ([["O", "B", "I", "B"]], "bare iob2"),
        ([["B", "O"]], "bare iob2"),
        ([["B", "I", "B"]], "bare iob2"),
        ([["O", "I", "B", "I"]], "bare iob1"),
        ([["S", "O", "B", "I", "E"]], "bare bioes"),
        ([["U", "O", "B", "I", "L"]], "bare bioes"),
        ([["S", "O", "B", "M", "E"]], "bare bioes"),
        ([["B", "I", "N", "O"]], "plain"),
        ([["I", "O"], ["O"]], "plain"),
        ([["S", "O"]], "plain"),
        ([["B", "O", "L", "S"]], "plain"),  # of two schemes
    ],
)
def test_schemes_are_recognised(sequences: list[list[str]], scheme: Scheme) -> None:
    assert recognise(sequences) == scheme
    assert all(check_sequence(tags, scheme) is None for tags in sequences)


def test_a_few_wrong_sequences_do_not_change_the_scheme() -> None:
    assert recognise(RIGHT_IOB2 * 20 + [["O", "I-PER"]]) == "iob2"
    assert recognise(RIGHT_IOB2 * 20 + [["O", "E-PER"]]) == "iob2"
    assert recognise([*RIGHT_IOB2, ["B_PER"]]) == "iob2"


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("O B_PER I_PER B_LOC", "B_LOC"),
        ("B_NP I_NP B_VP", "B_NP"),
        ("O B:PER", "B:PER"),
        ("O B\u2013PER I\u2013PER", "B\u2013PER"),
        ("O PER-B PER-I", "PER-B"),
        ("O LOC_S PER_B PER_E", "LOC_S"),
        ("o b-per i-per", "b-per"),
        ("O b-per", "b-per"),
        ("NONE B_PER I_PER", "B_PER"),
        ("O B_PER I_PER ??", "B_PER"),
        ("b i o", "b"),
        ("B I o", "o"),
    ],
)
def test_tags_that_mark_entities_in_another_spelling_are_noticed(tags: str, found: str) -> None:
    assert recognise([tags.split()]) == "plain"
    assert written_otherwise(set(tags.split())) == found


def test_right_tags_beside_plain_ones_are_no_other_spelling() -> None:
    assert written_otherwise({"B-X", "I-X", "NN", "VB", "o"}) is None


@pytest.mark.parametrize("tag", ["BI", "ES", ""])
def test_letters_that_follow_one_another_in_a_scheme_are_no_tag(tag: str) -> None:
    assert check_tags(["O", tag], "bare bioes") is not None


PLAIN = {
    "upos": "ADJ ADP ADV AUX CCONJ DET INTJ NOUN NUM PART PRON PROPN PUNCT SCONJ SYM VERB X _",
    "ptb": "CC CD DT EX FW IN JJ JJR LS MD NN NNS NNP PDT POS PRP PRP$ RB RP SYM TO UH VB VBD WP$ -LRB- -RRB- `` '' # $ NNP|x HYPH",
    "stts": "ADJA ADJD ADV APPR APPRART ART CARD FM ITJ KOUI NE NN PDS PIAT PPOSAT PTKNEG VVFIN VAINF VMPP XY $, $. $(",
    "hyphens": "ADJ-pos N-sg N-pl V-fin A-b P-x E-sg O",
    "underscores": "NN_sg NN_pl VB_s VB_b N_S N_M N_L O",
    "letters": "N V A B I O D P",
    "ctb": "AD AS BA CC CD CS DEC DEG DT ETC FW IJ JJ LB LC M MSP NN NR NT OD ON P PN PU SB SP VA VC VE VV",
    "penn with labels": "O PER LOC ORG",
    "inside": "O I",
}


@pytest.mark.parametrize("tags", PLAIN.values(), ids=PLAIN)
def test_parts_of_speech_are_not_taken_for_entities(tags: str) -> None:
    assert recognise([tags.split()]) == "plain"
    assert written_otherwise(set(tags.split())) is None


@pytest.mark.parametrize(
    ("tags", "scheme", "index", "problem"),
    [
        (["O", "I-PER"], "iob2", 1, "I-PER follows O; an entity begins with B-"),
        (["I-PER"], "iob2", 0, "I-PER begins the sentence; an entity begins with B-"),
        (["B-LOC", "I-PER"], "iob2", 1, "I-PER follows B-LOC"),
        (["B_PER"], "iob2", 0, "did you mean 'B-PER'?"),
        (["PER"], "iob2", 0, "did you mean 'B-PER'?"),
        (["b-PER"], "iob2", 0, "did you mean 'B-PER'?"),
        (["o"], "iob2", 0, "did you mean 'O'?"),
        (["B-X", "E-X"], "iob2", 1, "'E-X' is not a tag of this data"),
        (["O", "B-PER"], "iob1", 1, "B-PER follows O"),
        (["B-X", "O"], "bioes", 1, "O follows B-X"),
        (["B-X", "I-X"], "bioes", 1, "I-X ends the sentence"),
        (["S-X", "E-X"], "bioes", 1, "E-X follows S-X"),
        (["O", "I"], "bare iob2", 1, "I follows O; an entity begins with B"),
        (["O", "B"], "bare iob1", 1, "B follows O; here B only parts an entity"),
        (["B", "O"], "bare bioes", 1, "O follows B; an entity of several words ends with E (or L)"),
        (["O", "B-X"], "bare iob2", 1, "'B-X' is not a tag of this data (O or B, I)"),
        (["O", "b"], "bare iob2", 1, "did you mean 'B'?"),
        (["B-X", "I"], "iob2", 1, "'I' is not a tag of this data (O or B-TYPE, I-TYPE)"),
        (["B-X", "S-X"], "bioes", 1, "S-X follows B-X"),
    ],
)
def test_wrong_sequences_are_described(
    tags: list[str], scheme: Scheme, index: int, problem: str
) -> None:
    found = check_sequence(tags, scheme)
    assert found is not None
    assert found[0] == index
    assert problem in found[1]


@pytest.mark.parametrize(
    ("tags", "scheme", "expected"),
    [
        (["I-A", "I-A", "B-A", "I-A", "I-B"], "iob1", ["B-A", "I-A", "B-A", "I-A", "B-B"]),
        (["B-A", "I-A", "E-A", "S-A", "O"], "bioes", ["B-A", "I-A", "I-A", "B-A", "O"]),
        (["B-A", "L-A", "U-A"], "bioes", ["B-A", "I-A", "B-A"]),
        (["NOUN"], "plain", ["NOUN"]),
        (["I", "I", "B", "O", "I"], "bare iob1", ["B", "I", "B", "O", "B"]),
        (["B", "I", "E", "S", "O"], "bare bioes", ["B", "I", "I", "B", "O"]),
        (["B", "L", "U"], "bare bioes", ["B", "I", "B"]),
    ],
)
def test_conversion_keeps_the_entities(
    tags: list[str], scheme: Scheme, expected: list[str]
) -> None:
    assert to_iob2(tags, scheme) == expected
    assert (
        check_sequence(
            expected, "plain" if scheme == "plain" else "bare iob2" if "bare" in scheme else "iob2"
        )
        is None
    )


@pytest.mark.parametrize(
    ("tags", "scheme", "expected"),
    [
        (["O", "I-A", "I-A"], "iob2", ["O", "B-A", "I-A"]),
        (["B-A", "I-B", "I-A"], "iob2", ["B-A", "B-B", "B-A"]),
        (["O", "B-A", "I-A"], "iob1", ["O", "B-A", "I-A"]),
        (["I-A", "O", "E-A", "O"], "bioes", ["B-A", "O", "B-A", "O"]),
        (["B-A", "O", "B-A"], "bioes", ["B-A", "O", "B-A"]),  # neither ever ends
        (["S-A", "I-A", "L-A"], "bioes", ["B-A", "B-A", "I-A"]),
        (["B-A", "U-A", "L-A"], "bioes", ["B-A", "B-A", "B-A"]),
        (["O", "I", "I"], "bare iob2", ["O", "B", "I"]),
        (["I", "O", "E", "O"], "bare bioes", ["B", "O", "B", "O"]),
    ],
)
def test_wrong_sequences_are_repaired_as_conlleval_reads_them(
    tags: list[str], scheme: Scheme, expected: list[str]
) -> None:
    assert check_sequence(tags, scheme) is not None
    assert check_tags(tags, scheme) is None
    assert to_iob2(tags, scheme) == expected


@pytest.mark.parametrize(
    ("scheme", "prefixes"), [("iob2", "BI"), ("iob1", "BI"), ("bioes", "BIES")]
)
def test_the_repaired_entities_are_those_that_seqeval_finds(scheme: Scheme, prefixes: str) -> None:
    """seqeval's default mode reads as conlleval does."""
    from seqeval.metrics.sequence_labeling import get_entities

    draw, wrong = random.Random(3), 0
    for _ in range(300):
        tags = draw.choices(
            ["O", *(f"{p}-{kind}" for p in prefixes for kind in "XY")], k=draw.randint(1, 8)
        )
        if scheme == "iob1" and any(tag[0] == "B" for tag in tags):
            continue  # conlleval knows IOB2 alone: there B- always begins
        wrong += check_sequence(tags, scheme) is not None
        assert check_sequence(to_iob2(tags, scheme), "iob2") is None
        assert get_entities(to_iob2(tags, scheme)) == get_entities(tags)
    assert wrong > 200 or scheme == "iob1"
