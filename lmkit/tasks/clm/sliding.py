"""Windows that slide over a document, so that each token is predicted from many others (``eval.stride``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmkit.batch import Columns, Row
from lmkit.tasks.base import Scorer
from lmkit.tasks.clm.task import CausalLanguageModeling


class SlidingWindow(Scorer):
    """Causal language modelling in windows of which only the last ``stride`` tokens are scored."""

    task: CausalLanguageModeling

    def __init__(self, task: CausalLanguageModeling, stride: int):
        super().__init__(task)
        self.stride = stride
        self.signature = f"stride:{stride}"

    def encode(self, rows: Sequence[Row]) -> Columns:
        return self.task.encode_blocks(rows, self.stride)

    def encoding_options(self) -> Any:
        return ("stride", self.stride)
