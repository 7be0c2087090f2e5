from __future__ import annotations

import numpy as np
import pytest
import sacrebleu

from lmkit.errors import LmkitError
from lmkit.metrics import translation_statistics

REFERENCES = [
    "The cat sat on the mat, and it didn't move at all.",
    "Prices rose by 3.5% in the year to June.",
    "Hello, world!",
    "她 在 北京 工作。",
    "",
    "A sentence whose translation is empty.",
]
HYPOTHESES = [
    "The cat was sitting on the mat and it did not move at all.",
    "In the year to June prices rose by 3.5%.",
    "Hello world!",
    "她在北京上班。",
    "something out of nothing",
    "",
]


def by_sacrebleu(
    hypotheses: list[str], references: list[str], tokenize: str = "13a"
) -> dict[str, float]:
    bleu = sacrebleu.corpus_bleu(hypotheses, [references], tokenize=tokenize)
    return {
        "bleu": bleu.score,
        "length_ratio": bleu.sys_len / bleu.ref_len if bleu.ref_len else 0.0,
        "empty": hypotheses.count("") / len(hypotheses),
        "chrf": sacrebleu.corpus_chrf(hypotheses, [references]).score,
        "ter": sacrebleu.corpus_ter(hypotheses, [references]).score,
    }


@pytest.mark.parametrize("tokenize", ["13a", "zh", "char", "intl", "none"])
def test_equals_sacrebleu(tokenize: str) -> None:
    statistics = translation_statistics(HYPOTHESES, REFERENCES, tokenize=tokenize)
    assert statistics.values() == pytest.approx(
        by_sacrebleu(HYPOTHESES, REFERENCES, tokenize), abs=1e-9
    )


@pytest.mark.parametrize("rows", [[2], [3], [4], [5], [4, 5], [0, 0, 1], [2, 2, 2]])
def test_equals_sacrebleu_in_corner_cases(rows: list[int]) -> None:
    hypotheses, references = [HYPOTHESES[row] for row in rows], [REFERENCES[row] for row in rows]
    expected = by_sacrebleu(hypotheses, references)
    assert translation_statistics(hypotheses, references).values() == pytest.approx(
        expected, abs=1e-9
    )


def test_each_resample_equals_sacrebleu_on_the_repeated_sentences() -> None:
    statistics = translation_statistics(HYPOTHESES, REFERENCES)
    draws = np.random.default_rng(0).integers(6, size=(2, 4, 6))
    resampled = statistics.metrics(statistics.counts[draws].sum(axis=2))
    for index in np.ndindex(2, 4):
        rows = draws[index]
        expected = by_sacrebleu(
            [HYPOTHESES[row] for row in rows], [REFERENCES[row] for row in rows]
        )
        assert {name: values[index] for name, values in resampled.items()} == pytest.approx(
            expected, abs=1e-9
        )


def test_signature_is_what_sacrebleu_prints() -> None:
    metrics = [sacrebleu.BLEU(tokenize="zh"), sacrebleu.CHRF(), sacrebleu.TER()]
    printed = [
        metric.corpus_score(HYPOTHESES, [REFERENCES])
        .format(signature=metric.get_signature().format())
        .split(" = ")[0]
        for metric in metrics
    ]
    assert translation_statistics(HYPOTHESES, REFERENCES, tokenize="zh").signature == " ".join(
        printed
    )
    assert printed[0].startswith("BLEU|nrefs:1|case:mixed|eff:no|tok:zh|smooth:exp|version:")


def test_no_examples() -> None:
    assert translation_statistics([], []).values() == {
        "bleu": 0,
        "chrf": 0,
        "ter": 0,
        "length_ratio": 0,
        "empty": 0,
    }


def test_shares_of_empty_and_truncated_outputs() -> None:
    statistics = translation_statistics(
        ["a b c", "", " ", "d"], ["a b", "a b", "a", "d"], truncated=[True, False, False, False]
    )
    values = statistics.values()
    assert (values["empty"], values["truncated"]) == (0.5, 0.25)
    assert values["length_ratio"] == pytest.approx(4 / 6)
    assert statistics.select(np.array([0, 3])).values()["truncated"] == 0.5


def test_an_unknown_tokenizer_suggests_the_nearest() -> None:
    with pytest.raises(LmkitError, match="did you mean 'ja-mecab'"):
        translation_statistics(HYPOTHESES, REFERENCES, tokenize="ja_mecab")


def test_a_missing_tokenizer_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sacrebleu.tokenizers.tokenizer_ja_mecab.MeCab", None)
    with pytest.raises(LmkitError, match=r"pip install 'sacrebleu\[ja\]'"):
        translation_statistics(HYPOTHESES, REFERENCES, tokenize="ja-mecab")
