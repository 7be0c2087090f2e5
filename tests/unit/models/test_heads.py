"""Heads that run on chosen positions alone give the logits they give on all."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lmkit.models.heads import logits_at


@pytest.mark.parametrize(
    ("task", "architecture"),
    [
        *(("mlm", name) for name in ("bert", "modernbert", "roberta", "distilbert", "electra", "deberta-v2")),
        *(("clm", name) for name in ("llama", "gpt2", "qwen3", "bart")),  # whose decoder alone is no call of its backbone
    ],
)
def test_chosen_logits_are_those_of_all(tiny: Any, task: str, architecture: str) -> None:
    model = tiny.model(tiny.recipe(task, architecture))
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    labels = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    chosen = torch.tensor([[False, True, True, False], [True, False, False, False]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.inference_mode():
        some, their_labels = logits_at(model, inputs, labels, chosen)
        all_of_them = model(**inputs).logits
        none, no_labels = logits_at(model, inputs, labels, torch.zeros_like(chosen))
    assert their_labels.tolist() == [[2, 3, 5]]
    torch.testing.assert_close(some[0], all_of_them[chosen], atol=1e-6, rtol=0)
    assert (none.shape[1], no_labels.numel()) == (0, 0)


def test_a_model_that_is_all_backbone_gives_all_logits_and_they_are_chosen_then() -> None:
    class Plain(torch.nn.Module):
        base_model = property(lambda self: self)

        def forward(self, input_ids: torch.Tensor) -> Any:
            return type("Output", (), {"logits": torch.nn.functional.one_hot(input_ids, 5).float()})

    ids = torch.tensor([[1, 2, 3]])
    logits, labels = logits_at(Plain(), {"input_ids": ids}, ids, ids > 1)
    assert logits.argmax(-1).tolist() == labels.tolist() == [[2, 3]]


def test_a_head_that_reads_something_else_of_its_backbone_gives_all_logits_and_they_are_chosen_then() -> None:
    class Backbone(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
            return dict.fromkeys(("last_hidden_state", "of_the_head"), torch.nn.functional.one_hot(input_ids, 5).float())

    class Elsewhere(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base_model = Backbone()

        def forward(self, input_ids: torch.Tensor) -> Any:
            return type("Output", (), {"logits": self.base_model(input_ids)["of_the_head"]})

    ids = torch.tensor([[1, 2, 3], [4, 0, 0]])
    logits, labels = logits_at(Elsewhere(), {"input_ids": ids}, ids, ids > 1)
    assert logits.argmax(-1).tolist() == labels.tolist() == [[2, 3, 4]]
