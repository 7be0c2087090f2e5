"""Heads that run on chosen positions alone give the logits they give on all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lmkit.heads import head_in_fp32, logits_at, unwrap
from lmkit.models.load import load_trained
from lmkit.models.save import save_model
from lmkit.models.source import find_model


@pytest.mark.parametrize(
    ("task", "architecture"),
    [
        *(
            ("mlm", name)
            for name in ("bert", "modernbert", "roberta", "distilbert", "electra", "deberta-v2")
        ),
        *(
            ("clm", name) for name in ("llama", "gpt2", "qwen3", "bart")
        ),  # whose decoder alone is no call of its backbone
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


def test_a_head_that_reads_something_else_of_its_backbone_gives_all_logits_and_they_are_chosen_then() -> (
    None
):
    class Backbone(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
            return dict.fromkeys(
                ("last_hidden_state", "of_the_head"),
                torch.nn.functional.one_hot(input_ids, 5).float(),
            )

    class Elsewhere(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base_model = Backbone()

        def forward(self, input_ids: torch.Tensor) -> Any:
            return type("Output", (), {"logits": self.base_model(input_ids)["of_the_head"]})

    ids = torch.tensor([[1, 2, 3], [4, 0, 0]])
    logits, labels = logits_at(Elsewhere(), {"input_ids": ids}, ids, ids > 1)
    assert logits.argmax(-1).tolist() == labels.tolist() == [[2, 3, 4]]


@pytest.mark.parametrize("lora", [None, {"rank": 2}], ids=["all weights", "lora"])
@pytest.mark.parametrize(
    ("before", "architecture"),
    [
        *(("mlm", name) for name in ("bert", "roberta", "distilbert", "deberta-v2", "modernbert")),
        *(("clm", name) for name in ("gpt2", "llama")),
        *(("denoise", name) for name in ("t5", "bart")),
    ],
)
def test_the_answer_of_a_classifier_is_not_rounded_under_autocast(
    tiny: Any, tmp_path: Path, before: str, architecture: str, lora: Any
) -> None:
    """As it is built, and as it is loaded again."""
    recipe = tiny.recipe("classification", base=tiny.base(before, architecture), lora=lora)
    task, model = tiny.prepared(recipe).task, tiny.model(recipe)
    save_model(model, task, tmp_path)
    for each in (model, load_trained(find_model(str(tmp_path)), task)):
        check_that_the_head_is_not_rounded(each, task)


def check_that_the_head_is_not_rounded(model: Any, task: Any) -> None:
    columns = task.encode(
        task.problem.rows(["1 Main St", "22 Elm Street, Springfield"], task.facts)
    )
    batch = task.collate(
        [[dict(zip(columns, piece, strict=True))] for piece in zip(*columns.values(), strict=True)]
    )
    *_, head = (
        m
        for m in unwrap(model).modules()
        if type(m) is torch.nn.Linear and m.out_features == model.config.num_labels
    )
    read: list[torch.Tensor] = []
    head.register_forward_pre_hook(lambda module, arguments: read.append(arguments[0].float()))
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = task.logits(model, batch)[0]
    with torch.inference_mode():
        exact = head(read[0]).flatten(0, -2)
    assert found.dtype == torch.float32
    assert not torch.equal(found, found.bfloat16().float())
    for row in found:  # of causal models the last token's alone
        assert (exact == row).all(-1).any()


def test_a_head_learns_through_what_is_computed_in_fp32_and_only_once(tiny: Any) -> None:
    model = tiny.model(tiny.recipe("classification"))
    head_in_fp32(model)
    assert len(model.classifier._forward_hooks) == 1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(input_ids=torch.tensor([[5, 6, 7, 8]])).logits[0, 0].backward()
    assert model.classifier.weight.grad[0].abs().sum() > 0
    assert model.classifier.bias.grad.tolist()[0] == 1.0
