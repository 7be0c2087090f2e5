"""lmkit's tagging metrics as a module of the evaluate library: evaluate.load(".../lmkit_tagging")."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from lmkit.metrics.tagging import tagging_statistics


class Tagging(evaluate.Metric):  # type: ignore[misc]
    """Entities of IOB2 tags as conlleval counts them, strict F1, and accuracy of words; of other tags accuracy and macro F1."""

    def _info(self) -> evaluate.EvaluationModuleInfo:
        text = datasets.Sequence(datasets.Value("string"))
        return evaluate.MetricInfo(
            description="entities of IOB2 tags as conlleval counts them, strict F1, and accuracy of words; of other tags accuracy and macro F1",
            citation="",
            inputs_description="predictions and references, one for each example",
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return tagging_statistics(references, predictions).values()
