"""Dropout that is drawn faster is dropout."""

from __future__ import annotations

import pytest
import torch

from lmkit.models.dropout import Dropout, dropout, replace_dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_rate_is_kept_and_the_rest_is_scaled(rate: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    found = dropout(torch.ones(1000, 1001, dtype=dtype), rate)
    assert (found == 0).float().mean().item() == pytest.approx(rate, abs=2e-3)
    assert torch.unique(found).tolist() == pytest.approx([0, 1 / (1 - rate)], rel=1e-2 if dtype == torch.bfloat16 else 1e-3)


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


def test_layers_are_replaced_where_they_stand() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.4))
    names = list(model.state_dict())
    replace_dropout(model)
    assert type(model[1]) is Dropout
    assert model[1].p == 0.4
    assert list(model.state_dict()) == names
    values = torch.randn(3, 2)
    torch.testing.assert_close(model.eval()[1](values), values, atol=0, rtol=0)
