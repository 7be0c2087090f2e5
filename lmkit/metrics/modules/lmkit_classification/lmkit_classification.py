"""lmkit's classification metrics as a module of the evaluate library: evaluate.load(".../lmkit_classification")."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from lmkit.metrics.classification import classification_statistics


class Classification(evaluate.Metric):  # type: ignore[misc]
    """Accuracy, macro F1 and Matthews correlation of one label per example."""

    def _info(self) -> evaluate.EvaluationModuleInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="accuracy, macro F1 and Matthews correlation of one label per example",
            citation="",
            inputs_description="predictions and references, one for each example",
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return classification_statistics(references, predictions, []).values()
