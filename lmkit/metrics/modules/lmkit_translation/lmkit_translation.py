"""lmkit's translation metrics as a module of the evaluate library: evaluate.load(".../lmkit_translation")."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from lmkit.metrics.translation import translation_statistics


class Translation(evaluate.Metric):  # type: ignore[misc]
    """BLEU, chrF and TER by sacreBLEU, on raw text."""

    def _info(self) -> evaluate.EvaluationModuleInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="BLEU, chrF and TER by sacreBLEU, on raw text",
            citation="",
            inputs_description="predictions and references, one for each example",
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(
        self, predictions: Any, references: Any, tokenize: str = "13a"
    ) -> dict[str, float]:
        return translation_statistics(predictions, references, tokenize=tokenize).values()
