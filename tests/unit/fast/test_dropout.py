"""Dropout that is drawn faster is dropout."""

from __future__ import annotations

import pytest
import torch

from lmkit.fast.dropout import drawn_faster, dropout


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


def test_plain_dropout_comes_back_when_the_last_is_done_in_whatever_order() -> None:
    plain = torch.nn.functional.dropout
    first, second = drawn_faster(torch.device("cpu")), drawn_faster(torch.device("cpu"))
    first.__enter__()
    faster = torch.nn.functional.dropout
    second.__enter__()
    first.__exit__(None, None, None)
    assert torch.nn.functional.dropout is faster is not plain
    second.__exit__(None, None, None)
    assert torch.nn.functional.dropout is plain


def test_layers_and_models_without_layers_draw_so_while_it_is_active() -> None:
    layer, values = torch.nn.Dropout(0.4), torch.randn(30, 20)

    def draws() -> list[torch.Tensor]:
        found = []
        for draw in (
            lambda: layer(values),
            lambda: torch.nn.functional.dropout(values, p=0.4, training=True),
        ):
            torch.manual_seed(0)
            found.append(draw())
        return found

    before = draws()
    with drawn_faster(torch.device("cpu")):
        inside = draws()
        assert layer.eval()(values) is values
        layer.train()
    torch.manual_seed(0)
    torch.testing.assert_close(inside, [dropout(values, 0.4)] * 2, atol=0, rtol=0)
    assert not torch.equal(inside[0], before[0])
    torch.testing.assert_close(draws(), before, atol=0, rtol=0)
