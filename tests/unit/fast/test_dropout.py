"""Dropout that is drawn faster is dropout."""

from __future__ import annotations

import threading

import pytest
import torch
from transformers import AutoConfig, AutoModel

from lmkit.fast.dropout import FastDropout, _calls_the_function, dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_rate_is_kept_and_the_rest_is_scaled(rate: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    found = dropout(torch.ones(1000, 1001, dtype=dtype), rate)
    assert (found == 0).float().mean().item() == pytest.approx(rate, abs=2e-3)
    assert torch.unique(found).tolist() == pytest.approx(
        [0, 1 / (1 - rate)], rel=1e-2 if dtype == torch.bfloat16 else 1e-3
    )


def test_neighbours_are_dropped_independently() -> None:
    """Four decisions come from one random number."""
    torch.manual_seed(0)
    kept = (dropout(torch.ones(400_000), 0.5) > 0).float().view(-1, 4)
    assert (torch.corrcoef(kept.T) - torch.eye(4)).abs().max() < 0.01


def test_gradients_pass_where_values_passed() -> None:
    values = torch.full((9, 7), 2.0, requires_grad=True)
    found = dropout(values, 0.3)
    found.sum().backward()
    torch.testing.assert_close(values.grad, found.detach() / 2)


def test_the_generator_decides() -> None:
    def draw(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return dropout(torch.ones(100), 0.5)

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_at_rate_0_nothing_is_computed_and_at_rate_1_all_is_dropped() -> None:
    values = torch.randn(5)
    assert dropout(values, 0.0) is values
    assert dropout(values, 1.0).tolist() == [0, 0, 0, 0, 0]


class CallsTheFunction(torch.nn.Module):
    """A model with a layer, and with a call of the function as in Marian and BART."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Dropout(0.4)

    def forward(self, values: torch.Tensor) -> list[torch.Tensor]:
        torch.manual_seed(0)
        first = self.layer(values)
        torch.manual_seed(0)
        return [first, torch.nn.functional.dropout(values, p=0.4, training=self.training)]


def test_the_function_of_torch_stays_what_it_is_and_other_threads_draw_as_ever() -> None:
    plain, values, path = torch.nn.functional.dropout, torch.randn(30, 20), FastDropout()
    model, another = CallsTheFunction(), CallsTheFunction()
    before = another(values)
    drawn: list[list[torch.Tensor]] = []
    with path.applied(model):
        assert torch.nn.functional.dropout is plain
        thread = threading.Thread(target=lambda: drawn.append(another(values)))
        thread.start()
        thread.join()
    torch.testing.assert_close(drawn[0], before, atol=0, rtol=0)


def test_applied_twice_it_is_gone_when_the_first_one_is() -> None:
    model, path = torch.nn.Sequential(torch.nn.Dropout(0.4)), FastDropout()
    with path.applied(model):
        with path.applied(model):
            pass
        assert "forward" in vars(model[0])
    assert "forward" not in vars(model[0])


def test_layers_and_models_without_layers_draw_so_while_it_is_active() -> None:
    model, values = CallsTheFunction(), torch.randn(30, 20)
    before = model(values)
    with FastDropout().applied(model):
        inside = model(values)
        assert model.eval().layer(values) is values
        model.train()
    torch.manual_seed(0)
    torch.testing.assert_close(inside, [dropout(values, 0.4)] * 2, atol=0, rtol=0)
    assert not torch.equal(inside[0], before[0])
    torch.testing.assert_close(model(values), before, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("family", "calls"),
    [("bert", False), ("llama", False), ("marian", True), ("bart", True), ("falcon", True)],
)
def test_models_that_call_the_function_are_recognised(family: str, calls: bool) -> None:
    with torch.device("meta"):
        model: torch.nn.Module = AutoModel.from_config(AutoConfig.for_model(family))
    assert any(_calls_the_function(module) for module in model.modules()) == calls
