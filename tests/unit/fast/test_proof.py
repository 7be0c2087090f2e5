"""One proof for all paths: logits and gradients are those of the plain way, and a path that is wrong is found out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForTokenClassification

from lmkit.batch import IGNORE, Batch, pad
from lmkit.fast.proof import same_on
from lmkit.fast.registry import paths_for_evaluation, paths_for_training
from lmkit.fast.unpadding import SharedRows

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 90,
    "pad_token_id": 0,
}
LENGTHS = (9, 4, 5, 2)


def tiny_model(auto: Any, family: str = "bert") -> Any:
    torch.manual_seed(0)
    return auto.from_config(AutoConfig.for_model(family, **TINY))


def padded_batch() -> Batch:
    """Four texts of several lengths, and the two rows that they share."""
    mask = pad([[1] * length for length in LENGTHS], 0)
    ids = torch.arange(mask.numel()).view(mask.shape) % 80 + 5
    longest = max(LENGTHS)
    rows = [
        [text * longest + i for text in row for i in range(LENGTHS[text])] for row in ([0], [1, 2])
    ]
    rows[0] += [3 * longest, 3 * longest + 1]
    inputs = {"input_ids": ids * mask, "attention_mask": mask}
    return Batch(inputs, torch.full_like(mask, IGNORE), shared=pad(rows, -1))


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert"])
@pytest.mark.parametrize("path", [*paths_for_training(), *paths_for_evaluation()])
def test_paths_compute_what_the_model_computes(path: Any, family: str) -> None:
    assert same_on(path, tiny_model(AutoModelForMaskedLM, family), [padded_batch()]) is None


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert"])
def test_texts_that_share_rows_have_their_own_logits_and_gradients(family: str) -> None:
    model, rows = tiny_model(AutoModelForTokenClassification, family), SharedRows(longest=9)
    assert rows.available(model, model.device) is None
    assert same_on(rows, model, [padded_batch()]) is None


class Wrong:
    """A path that computes something else."""

    name = "wrong"
    experimental = False

    def available(self, model: Any, device: torch.device) -> str | None:
        return None

    def transform(self, batch: Batch) -> Batch:
        return batch

    @contextmanager
    def applied(self, model: Any) -> Iterator[Any]:
        norm = next(module for module in model.modules() if isinstance(module, torch.nn.LayerNorm))
        before, norm.eps = norm.eps, 1e-2
        try:
            yield model
        finally:
            norm.eps = before


def test_a_path_that_computes_something_else_is_found_out() -> None:
    problem = same_on(Wrong(), tiny_model(AutoModelForMaskedLM), [padded_batch()])
    assert problem is not None
    assert problem.startswith("computes other logits")
