"""Windows that slide, and tokens that are hidden one by one: each equal to its definition on a tiny model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lmkit.data.encode import encode
from lmkit.evaluation.evaluate import measure, metrics_of
from lmkit.evaluation.forward import Forward
from lmkit.models.tokenizer import tokenizer_hash


def evaluated(
    tiny: Any, recipe: Any, *, budget: int = 200
) -> tuple[Any, Any, list[dict[str, Any]]]:
    prepared = tiny.prepared(recipe)
    learned = prepared.task.problem.task(recipe, prepared.task.facts, prepared.task.tokenizer)
    task = learned.problem.scorer(learned)
    model = tiny.model(recipe)
    torch.manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    encoded = encode(prepared.encoded["validation"].rows, task, tokenizer_hash(task.tokenizer))
    return model, task, list(Forward(task, model, tiny.processes, budget).predictions(encoded))


def test_a_sliding_window_scores_each_token_once_with_its_context(tiny: Any) -> None:
    size, stride = 8, 3
    recipe = tiny.recipe("clm", data={"max_length": size}, eval={"stride": stride})
    model, task, records = evaluated(tiny, recipe)
    tokenizer = task.tokenizer
    for record in records[:5]:
        ids = tokenizer(record["text"], add_special_tokens=False)["input_ids"]
        tokens = [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
        total = 0.0
        for target in range(1, len(tokens)):
            # the window that scores it: the first that reaches it
            begin = max(0, -(-(target - size) // stride)) * stride
            with torch.inference_mode():
                logits = model(torch.tensor([tokens[begin:target]])).logits[0, -1]
            total -= logits.double().log_softmax(-1)[tokens[target]].item()
        assert record["nll"] == pytest.approx(total, rel=1e-5)
        assert record["items"] == len(tokens) - 1
    found = measure(records, task, seconds=0)
    metrics = metrics_of(found, task, split="validation", options=recipe.eval, seed=1)
    assert metrics.signature.startswith("stride:3 ")


def test_a_stride_of_the_whole_window_is_blocks(tiny: Any) -> None:
    blocks = evaluated(tiny, tiny.recipe("clm", data={"max_length": 8}))[2]
    assert (
        evaluated(tiny, tiny.recipe("clm", data={"max_length": 8}, eval={"stride": 8}))[2] == blocks
    )
    assert sum(r["items"] for r in blocks) == sum(
        r["items"]
        for r in evaluated(tiny, tiny.recipe("clm", data={"max_length": 8}, eval={"stride": 1}))[2]
    )


def test_pseudo_perplexity_hides_every_token_once(tiny: Any) -> None:
    recipe = tiny.recipe("mlm", data={"max_rows": 6}, eval={"pseudo_perplexity": True})
    model, task, records = evaluated(tiny, recipe)
    total, count = 0.0, 0
    for record in records:
        ids = task.tokenizer(record["text"])["input_ids"]
        alone = 0.0
        for position in range(1, len(ids) - 1):
            hidden = [
                task.tokenizer.mask_token_id if i == position else token
                for i, token in enumerate(ids)
            ]
            with torch.inference_mode():
                logits = model(torch.tensor([hidden])).logits[0, position]
            alone -= logits.double().log_softmax(-1)[ids[position]].item()
        assert record["pseudo_nll"] == pytest.approx(alone, rel=1e-5)
        assert record["pseudo_items"] == len(ids) - 2
        total, count = total + alone, count + len(ids) - 2
    assert measure(records, task, seconds=0).value("pseudo_perplexity") == pytest.approx(
        np.exp(total / count), rel=1e-5
    )


def test_pseudo_perplexity_leaves_the_other_metrics_as_they_are(tiny: Any) -> None:
    plain = evaluated(tiny, tiny.recipe("mlm", data={"max_rows": 6}))
    pseudo = evaluated(
        tiny, tiny.recipe("mlm", data={"max_rows": 6}, eval={"pseudo_perplexity": True}), budget=40
    )
    mine, theirs = (measure(records, task, seconds=0) for _, task, records in (plain, pseudo))
    assert theirs.loss == pytest.approx(mine.loss, abs=1e-6)
    assert theirs.value("perplexity") == pytest.approx(mine.value("perplexity"), rel=1e-5)
