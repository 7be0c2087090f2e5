"""The loss that never makes all logits is torch's cross-entropy, and so are its gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy, linear

from lmkit.fast.linear_cross_entropy import Options, linear_cross_entropy


def tensors(
    tokens: int = 11,
    width: int = 6,
    vocabulary: int = 9,
    dtype: torch.dtype = torch.float32,
    *,
    seed: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, weight, bias and labels; the same numbers for every type that holds them."""
    maker = torch.Generator().manual_seed(seed)
    shapes = (tokens, width), (vocabulary, width), (vocabulary,)
    floats = [torch.randn(shape, generator=maker).to(dtype).requires_grad_() for shape in shapes]
    return *floats, torch.randint(vocabulary, (tokens,), generator=maker)  # type: ignore[return-value]


def loss_of(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    labels: torch.Tensor,
    **options: Any,
) -> torch.Tensor:
    return linear_cross_entropy(hidden, weight, bias, labels, Options(**options))


def gradients(loss: torch.Tensor, *of: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(loss / 7, of)


def plain(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    labels: torch.Tensor,
    *,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    logits = linear(hidden, weight, bias)
    if logits.dtype == torch.bfloat16:
        logits = logits.float()
    return cross_entropy(
        logits, labels, reduction="sum", label_smoothing=label_smoothing, ignore_index=-100
    )


def test_a_loss_that_can_be_computed_by_hand() -> None:
    hidden, weight = torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0], [math.log(3)]])
    loss = loss_of(hidden, weight, None, torch.tensor([1, 0]))
    assert loss.item() == pytest.approx(
        math.log(4 / 3) + math.log(2)
    )  # probabilities 3 : 1, and evenly


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunk", [1, 4, 11, 256])
def test_loss_and_gradients_are_those_in_double_precision(smoothing: float, chunk: int) -> None:
    hidden, weight, bias, labels = tensors()
    labels[[2, 5]] = -100
    loss = loss_of(hidden, weight, bias, labels, label_smoothing=smoothing, chunk=chunk)
    exact = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight, bias)]
    reference = plain(*exact, labels, label_smoothing=smoothing)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(reference.item(), rel=1e-6)
    for ours, theirs in zip(
        gradients(loss, hidden, weight, bias), gradients(reference, *exact), strict=True
    ):
        assert (ours - theirs).norm() <= 1e-6 * theirs.norm()


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_gradients_are_the_slopes_of_the_loss(smoothing: float, with_bias: bool) -> None:
    hidden, weight, bias, labels = tensors(dtype=torch.float64)
    options: dict[str, Any] = {"label_smoothing": smoothing, "scale": 0.7, "chunk": 4}
    inputs = (hidden, weight, bias) if with_bias else (hidden, weight)

    def loss(
        hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        return loss_of(hidden, weight, bias, labels, **options)

    assert loss(*inputs).dtype == torch.float64
    assert torch.autograd.gradcheck(loss, inputs)


def test_a_scale_is_that_of_the_projection() -> None:
    hidden, weight, bias, labels = tensors()
    scaled = loss_of(hidden, weight, bias, labels, scale=0.25)
    torch.testing.assert_close(scaled, loss_of(hidden * 0.25, weight, bias, labels))


def test_a_token_that_is_nearly_impossible_costs_what_it_costs() -> None:
    """Its probability is 0 in fp32, its loss is not infinite."""
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[0.0], [500.0]])
    assert loss_of(hidden, weight, None, torch.tensor([0])).item() == 500


@pytest.mark.parametrize("tokens", [0, 3])
def test_where_no_label_counts_the_loss_and_its_gradients_are_zero(tokens: int) -> None:
    hidden, weight, bias, _ = tensors(tokens)
    loss = loss_of(hidden, weight, bias, torch.full((tokens,), -100), label_smoothing=0.1)
    assert loss.item() == 0
    for gradient, of in zip(
        gradients(loss, hidden, weight, bias), (hidden, weight, bias), strict=True
    ):
        assert torch.equal(gradient, torch.zeros_like(of))


def test_tied_weights_get_both_their_gradients() -> None:
    _, table, _, labels = tensors()
    ids = labels.flip(0)
    (ours,) = gradients(loss_of(table[ids], table, None, labels, chunk=4), table)
    (theirs,) = gradients(plain(table[ids], table, None, labels), table)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_frozen_weights_get_no_gradient_and_the_others_get_theirs() -> None:
    hidden, weight, bias, labels = tensors()
    with_all = gradients(loss_of(hidden, weight, bias, labels), hidden)
    loss = loss_of(hidden, weight.detach(), bias.detach(), labels)
    assert [saved is None for saved in loss.grad_fn.saved_tensors] == [False, True, True]  # type: ignore[union-attr]
    torch.testing.assert_close(gradients(loss, hidden), with_all, rtol=0, atol=0)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_the_loss_is_the_same(mode: Any) -> None:
    hidden, weight, bias, labels = tensors()
    with mode():
        loss = loss_of(hidden, weight, bias, labels)
    assert not loss.requires_grad
    assert torch.equal(loss, loss_of(hidden, weight, bias, labels).detach())


def test_a_second_backward_pass_gives_the_same_gradients() -> None:
    hidden, weight, bias, labels = tensors()
    loss = loss_of(hidden, weight, bias, labels) / 3
    first, second = (
        torch.autograd.grad(loss, (hidden, weight, bias), retain_graph=True) for _ in range(2)
    )
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_in_bf16_nothing_is_further_from_the_truth_than_under_autocast(smoothing: float) -> None:
    """Over many chunks; the mean of several draws, as each alone is a matter of luck."""
    ours_off, theirs_off = torch.zeros(4), torch.zeros(4)
    for seed in range(8):
        hidden, weight, bias, labels = tensors(512, 32, 500, seed=seed)
        exact = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight, bias)]
        reference = plain(*exact, labels, label_smoothing=smoothing)
        truth = reference, *gradients(reference, *exact)
        ours = loss_of(
            hidden, weight, bias, labels, label_smoothing=smoothing, dtype=torch.bfloat16, chunk=32
        )
        with torch.autocast("cpu", torch.bfloat16):
            theirs = plain(hidden, weight, bias, labels, label_smoothing=smoothing)
        for off, loss in ((ours_off, ours), (theirs_off, theirs)):
            found = loss, *gradients(loss, hidden, weight, bias)
            off += torch.stack(
                [
                    (one - right).norm() / right.norm()
                    for one, right in zip(found, truth, strict=True)
                ]
            ).detach()
    assert theirs_off[1:].min() > 8e-4  # it is bf16
    assert (ours_off[1:] <= 1.02 * theirs_off[1:]).all(), (ours_off, theirs_off)
    assert ours_off[0] <= 1e-3
