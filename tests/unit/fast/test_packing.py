"""Documents that share a row do not see each other, or packing refuses the model [LLaMA-Factory#4744, trl#805]."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from lmkit.batch import IGNORE, Batch, lay_out
from lmkit.fast.packing import Packing, find_packing

ENCODERS = ("bert", "roberta", "distilbert", "electra", "modernbert")
DECODERS = ("llama", "gpt2", "qwen3")
WINDOWED = {
    "use_sliding_window": True,
    "sliding_window": 8,
    "max_window_layers": 1,
}  # the first layer sees all, the second 8 tokens
LENGTHS = (5, 150, 1, 40)  # one is longer than ModernBERT's window of 128


def model_of(tiny: Any, architecture: str, **config: Any) -> Any:
    task = "clm" if architecture in DECODERS else "mlm"
    model = tiny.model(tiny.recipe(task, architecture, model={"config": config}))
    torch.manual_seed(2)
    with torch.no_grad():  # weights of a size at which looking at another document is seen
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
    return model


def documents(lengths: tuple[int, ...] = LENGTHS) -> list[dict[str, list[int]]]:
    tokens = torch.randint(
        5, 100, (sum(lengths),), generator=torch.Generator().manual_seed(3)
    ).tolist()
    ends = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    return [{"input_ids": tokens[start:end]} for start, end in pairwise(ends)]


def logits(model: Any, batch: Batch) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(**batch.inputs).logits
    return found


def largest_difference(model: Any, packing: Packing, pieces: list[dict[str, list[int]]]) -> float:
    """Between the logits of documents packed into one row, padding behind, and those of each alone; by the largest logit."""
    other = [
        {"input_ids": [7] * (1 + sum(len(piece["input_ids"]) for piece in pieces))}
    ]  # a longer row, so that there is padding
    packed = logits(
        model, packing.apply(lay_out([pieces, other], columns={"input_ids": 0}, packed=True))
    )[0]
    differences, start = [], 0
    for piece in pieces:
        alone = logits(model, lay_out([[piece]], columns={"input_ids": 0}, packed=False))[0]
        differences.append(
            (packed[start : start + len(alone)] - alone).abs().max() / alone.abs().max()
        )
        start += len(alone)
    return float(max(differences))


@pytest.mark.parametrize("architecture", ENCODERS + DECODERS)
def test_packed_documents_have_the_logits_they_have_alone(tiny: Any, architecture: str) -> None:
    model = model_of(tiny, architecture)
    packing = find_packing(model, longest=150)
    assert packing is not None
    assert largest_difference(model, packing, documents()) < 1e-5


def test_without_the_mask_a_document_sees_the_others(tiny: Any) -> None:
    """The measure of the tests here, and of find_packing's tolerance."""

    class Open(Packing):
        def _mask(self, segments: torch.Tensor) -> Any:
            return (segments[:, None, :, None] > 0) & (segments[:, None, None, :] > 0)

    assert largest_difference(model_of(tiny, "bert"), Open(causal=False), documents()) > 1e-2


@pytest.mark.parametrize(("architecture", "window"), [("modernbert", 64), ("qwen3", 7)])
def test_a_sliding_window_stays_in_the_layers_that_have_one(
    tiny: Any, architecture: str, window: int
) -> None:
    model = model_of(tiny, architecture, **(WINDOWED if architecture == "qwen3" else {}))
    packing = find_packing(model, longest=150)
    assert packing is not None
    assert packing.window == window
    assert largest_difference(model, packing, documents()) < 1e-5
    for wrong in (window - 1, window + 1, None):
        assert (
            largest_difference(
                model, Packing(packing.causal, packing.first_position, wrong), documents()
            )
            > 1e-4
        )


def test_a_window_that_no_document_reaches_beyond_does_not_matter(tiny: Any) -> None:
    model = model_of(tiny, "modernbert")
    packing = find_packing(model, longest=32)
    assert packing is not None
    assert packing.window is None
    assert largest_difference(model, packing, documents((32, 10, 32))) < 1e-5


def test_a_window_too_long_to_be_tried_is_not_believed(tiny: Any) -> None:
    model = model_of(tiny, "qwen3", **WINDOWED | {"sliding_window": 4096})
    assert find_packing(model, longest=4096) is None
    assert find_packing(model, longest=2048) == Packing(causal=True)


@pytest.mark.parametrize(
    ("task", "architecture"),
    [("mlm", "deberta-v2"), ("translation", "marian"), ("translation", "t5")],
)
def test_packing_refuses_architectures_that_take_no_such_mask(
    tiny: Any, task: str, architecture: str
) -> None:
    assert find_packing(tiny.model(tiny.recipe(task, architecture)), longest=32) is None


@pytest.mark.parametrize("architecture", ENCODERS + DECODERS)
def test_packing_refuses_a_model_that_lets_documents_see_each_other(
    tiny: Any, architecture: str
) -> None:
    """With random weights too, where what leaks is small."""
    model = tiny.model(tiny.recipe("clm" if architecture in DECODERS else "mlm", architecture))
    assert find_packing(model, longest=150) is not None

    def leak(module: Any, arguments: Any, output: Any) -> Any:
        states = output["last_hidden_state"]
        output["last_hidden_state"] = states + 1e-3 * states.mean(1, keepdim=True)
        return output

    model.base_model.register_forward_hook(leak)
    assert find_packing(model, longest=150) is None


def test_looking_for_a_packing_leaves_the_model_as_it_was(tiny: Any) -> None:
    model = tiny.model(tiny.recipe("mlm"))
    for training in (True, False):
        find_packing(model.train(training), longest=32)
        assert model.training is training


def test_a_segment_sees_itself_alone_and_padding_sees_padding() -> None:
    inputs = {
        "input_ids": torch.tensor([[5, 6, 7, 0]]),
        "position_ids": torch.tensor([[0, 1, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 0]]),
    }
    segments = torch.tensor([[1, 1, 2, 0]])
    batch = Batch(inputs, torch.full_like(segments, IGNORE), segments=segments)
    both = Packing(causal=False, first_position=2).apply(batch)
    assert both.inputs["attention_mask"][0, 0].int().tolist() == [
        [1, 1, 0, 0],
        [1, 1, 0, 0],
        [0, 0, 1, 0],
        [0, 0, 0, 1],
    ]
    assert both.inputs["position_ids"].tolist() == [[2, 3, 2, 2]]
    assert both.segments is None
    backwards = Packing(causal=True).apply(batch).inputs["attention_mask"][0, 0].int().tolist()
    assert backwards == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
