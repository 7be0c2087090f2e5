"""BLEU, chrF and TER by sacreBLEU, from raw text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lmkit.errors import LmkitError, suggest
from lmkit.metrics.statistics import FloatArray, Statistics, ratio

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric

# BLEU: lengths of hypothesis and reference, 4 orders correct, 4 orders in all;
# chrF: 6 orders x (hypothesis, reference, match); TER: edits, words of the reference.
WIDTHS = {"bleu": 10, "chrf": 18, "ter": 2}
# besides, of each sentence: is the output empty, was it cut off, one
OUTPUT = 3


def translation_statistics(
    hypotheses: Sequence[str],
    references: Sequence[str],
    *,
    truncated: Sequence[bool] | None = None,
    tokenize: str = "13a",
) -> Statistics:
    """``bleu`` (Papineni et al. 2002) and ``chrf`` (chrF2, Popovic 2015), 0..100; ``ter`` (Snover et al. 2006), from 0.

    Equal to sacreBLEU's ``corpus_bleu``, ``corpus_chrf`` and ``corpus_ter`` (Post 2018); the signature names all three.
    Lower ``ter`` is better, and it can exceed 100. Without examples everything is 0. TER takes most of the time: its
    search for shifts grows fast with the length of a sentence. Beside them ``length_ratio``, tokens of the hypotheses to
    those of the references as BLEU counts them, and ``empty`` and ``truncated``, shares of the outputs.

    Args:
        hypotheses: ``(examples,)`` detokenized text.
        references: ``(examples,)`` detokenized text, one reference per hypothesis.
        truncated: ``(examples,)`` whether the output ended for want of room; None: unknown, and not reported.
        tokenize: sacreBLEU's tokenizer for BLEU: ``13a``, ``intl``, ``zh``, ``ja-mecab``, ``ko-mecab``, ``char``, ...

    Raises:
        LmkitError: no such tokenizer, or the package or the file that it needs is missing.
    """
    from sacrebleu.metrics.chrf import CHRF
    from sacrebleu.metrics.ter import TER

    assert len(hypotheses) == len(references), (
        f"{len(hypotheses)} hypotheses, {len(references)} references"
    )
    metrics: dict[str, Metric] = {"bleu": _bleu(tokenize), "chrf": CHRF(), "ter": TER()}
    counts = [
        _extract(metric, hypotheses, references, WIDTHS[name]) for name, metric in metrics.items()
    ]
    cut = truncated if truncated is not None else [False] * len(hypotheses)
    outputs = [
        (not hypothesis.strip(), end, 1) for hypothesis, end in zip(hypotheses, cut, strict=True)
    ]
    counts.append(np.array(outputs, np.float64).reshape(len(outputs), OUTPUT))
    ends = np.cumsum([WIDTHS[name] for name in metrics])

    def translation_metrics(sums: FloatArray) -> dict[str, FloatArray]:
        # A call per resample: 30 numbers in, microseconds each, and sacreBLEU's own value in every corner case.
        *columns, output = np.split(sums, ends, axis=-1)
        values = {
            name: np.reshape(
                [_score(metric, row) for row in part.reshape(-1, part.shape[-1])], part.shape[:-1]
            )
            for (name, metric), part in zip(metrics.items(), columns, strict=True)
        }
        values["length_ratio"] = ratio(sums[..., 0], sums[..., 1])  # BLEU's first two
        values["empty"] = ratio(output[..., 0], output[..., 2])
        return (
            values
            if truncated is None
            else values | {"truncated": ratio(output[..., 1], output[..., 2])}
        )

    signature = " ".join(_signature(metric, WIDTHS[name]) for name, metric in metrics.items())
    return Statistics(np.concatenate(counts, axis=1), translation_metrics, signature=signature)


def _bleu(tokenize: str) -> Metric:
    from sacrebleu.metrics.bleu import BLEU

    if tokenize not in BLEU.TOKENIZERS:
        raise LmkitError(
            f"sacreBLEU has no tokenizer {tokenize!r}", remedy=suggest(tokenize, BLEU.TOKENIZERS)
        )
    try:
        return BLEU(tokenize=tokenize)
    except (
        ImportError,
        RuntimeError,
        OSError,
    ) as error:  # no package; no dictionary; no network for its model
        reason = " ".join(str(error).split())
        extra = {"ja-mecab": "sacrebleu[ja]", "ko-mecab": "sacrebleu[ko]"}.get(
            tokenize, "sentencepiece"
        )
        raise LmkitError(
            f"sacreBLEU's tokenizer {tokenize!r} cannot be loaded: {reason}",
            remedy=f"pip install '{extra}', or choose a tokenizer that needs nothing: 13a, intl, zh, char",
        ) from error


# sacreBLEU has no public way to sentence statistics; what is private in it is used in these three functions alone.


def _extract(
    metric: Metric, hypotheses: Sequence[str], references: Sequence[str], width: int
) -> FloatArray:
    """Statistics per sentence, ``(examples, width)``."""
    rows = metric._extract_corpus_statistics(list(hypotheses), [list(references)])
    return np.array(rows, np.float64).reshape(len(hypotheses), width)


def _score(metric: Metric, sums: FloatArray) -> float:
    """Return the corpus score of summed statistics ``(width,)``."""
    return float(metric._compute_score_from_stats(sums.tolist()).score)


def _signature(metric: Metric, width: int) -> str:
    """``BLEU|nrefs:1|case:mixed|...``, as sacreBLEU prints it before the score; valid after ``_extract``."""
    name = metric._compute_score_from_stats([0] * width).name
    return f"{name}|{metric.get_signature().format()}"
