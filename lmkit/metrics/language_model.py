"""Loss, perplexity, bits per byte and accuracy of a language model, token-weighted over documents."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from lmkit.metrics.statistics import FloatArray, Statistics, ratio


def language_model_statistics(
    nll: ArrayLike, tokens: ArrayLike, num_bytes: ArrayLike | None, correct: ArrayLike
) -> Statistics:
    """``loss`` (nats per token), ``perplexity`` = exp(loss), ``bits_per_byte`` and ``accuracy`` (0..1).

    An example is a document. All are ratios of sums over documents, so they do not depend on how documents were
    batched; ``bits_per_byte`` does not depend on the tokenizer either (Gao et al. 2020, The Pile). A perplexity too
    large for a float is inf. Without tokens ``loss`` and ``perplexity`` are nan, for nothing was measured, and so is
    ``bits_per_byte`` without bytes; ``accuracy`` is 0.

    Args:
        nll: ``(documents,)`` summed negative log-likelihood of the predicted tokens, in nats.
        tokens: ``(documents,)`` number of predicted tokens.
        num_bytes: ``(documents,)`` UTF-8 bytes of the predicted text; None for masked models, whose loss covers only a
            part of the text: ``bits_per_byte`` is left out.
        correct: ``(documents,)`` number of predicted tokens whose most probable token is right.
    """
    columns = [nll, tokens, correct] if num_bytes is None else [nll, tokens, correct, num_bytes]
    counts = np.stack([np.asarray(column, np.float64) for column in columns], axis=-1)
    assert counts.ndim == 2, "one number per document in each column"

    def language_model_metrics(sums: FloatArray) -> dict[str, FloatArray]:
        loss = ratio(sums[..., 0], sums[..., 1], undefined=math.nan)
        with np.errstate(over="ignore"):
            metrics = {"loss": loss, "perplexity": np.exp(loss)}
        if num_bytes is not None:
            metrics["bits_per_byte"] = ratio(
                sums[..., 0] / math.log(2), sums[..., 3], undefined=math.nan
            )
        return metrics | {"accuracy": ratio(sums[..., 2], sums[..., 1])}

    return Statistics(counts, language_model_metrics)
