"""The proof that FlashAttention's kernels compute on the model at hand what SDPA computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from lmkit.batch import lay_out
from lmkit.errors import first_line
from lmkit.fast.flash import flash_rows
from lmkit.fast.packing import Packing
from lmkit.fast.proof import Precision, embedded, farther, in_fp32, states_and_gradients
from lmkit.heads import unwrap
from lmkit.models.memory import free_cached_memory, is_out_of_memory
from lmkit.models.trials import TRIAL_ERRORS, in_evaluation

NO_MEMORY = "finds no memory to be tried"
TEXT = 150  # tokens of the longest text that is tried: more than a tile of the kernels
WIDTH = 64  # of the head that is tried without a model
REPEATED = 8  # texts whose gradients are computed again
LONG = 2048  # tokens of each of them, where there are longer ones
SHORT = 4  # tokens of one in which each of them can be seen to count


def refuted(
    model: Any,
    packing: Packing,
    *,
    longest: int,
    precision: Precision,
    repeatable: bool = False,
    again: bool = False,
) -> str | None:
    """Why the kernel of a packing does not compute what SDPA computes on this model; None: it does.

    Three texts in two rows, the model where it is trained. In evaluation mode, hidden states and the gradients of the embeddings
    must be as near to SDPA's in fp32 as SDPA's own are in the run's precision. Rounding could hide a little that a text sees of
    another, so that is tried apart: where a token changes, nothing may change elsewhere, not by a bit. Before all that the kernel
    alone is tried, with scores that are larger than a new model's.

    Args:
        packing: shown to be exact with SDPA (``find_packing``), with a kernel.
        longest: tokens of the longest text.
        precision: autocast as in training.
        repeatable: whether the kernel's gradients have to be the same bit by bit when they are computed again.
        again: whether all of this was shown before, of this kernel on this device, with other weights: of what rounding decides
            nothing is tried, for trained weights may round more.
    """
    inner = unwrap(model)
    if inner.base_model is inner:
        return "the model has no backbone of its own"
    trial = _Trial(inner, packing, longest, precision)
    try:
        with in_evaluation(inner), torch.enable_grad():
            problem = (
                None
                if again
                else _kernel_problem(packing, inner.device, precision) or trial.is_near()
            )
            problem = problem or trial.keeps_apart()
            is_tried = repeatable and not again and problem is None
            if is_tried and not _repeats(
                packing, _head_width(inner.config), min(longest, LONG), inner.device, precision
            ):
                problem = "adds in another order each time, so that a resumed run would not be the same bit for bit"
        if problem is None:
            was_training = inner.training
            inner.train()
            try:
                with torch.no_grad():
                    trial.states(trial.flash)  # is there dropout that the kernel does not know?
            finally:
                inner.train(was_training)
    except TRIAL_ERRORS as error:
        problem = NO_MEMORY if is_out_of_memory(error) else first_line(error)
    if problem == NO_MEMORY:
        free_cached_memory()
    return problem


def _kernel_problem(packing: Packing, device: torch.device, precision: Precision) -> str | None:
    """What is wrong with a kernel between two texts, without a model: which value reaches which query, numbers and gradients."""
    assert packing.kernel is not None
    half = _half(device, precision)
    for window in {None, packing.window}:
        first = TEXT if window is None else window + 2
        texts = torch.tensor([0] * first + [1] * SHORT, device=device)
        starts = torch.tensor([0, first, first + SHORT], dtype=torch.int32, device=device)
        place = torch.arange(len(texts), device=device)
        may = texts[:, None] == texts
        if packing.causal:
            may &= place[:, None] >= place
        if window is not None:
            may &= (place[:, None] - place).abs() <= window
        kernel = partial(
            packing.kernel.attend,
            starts=starts,
            longest=first,
            causal=packing.causal,
            window=window,
            dropout=0.0,
        )

        def with_mask(
            query: Any, key: Any, value: Any, *, scale: float | None, may: torch.Tensor = may
        ) -> torch.Tensor:
            query, key, value = (each.transpose(0, 1)[None] for each in (query, key, value))
            return scaled_dot_product_attention(query, key, value, attn_mask=may, scale=scale)[
                0
            ].transpose(0, 1)

        states = [
            (torch.arange(len(texts) * 2 * WIDTH, device=device) * (n + 1)).sin().view(-1, 2, WIDTH)
            for n in range(3)
        ]
        for scale in (None, 0.5):
            exact = _values(with_mask, states, torch.float32, scale)
            plain, found = (_values(attend, states, half, scale) for attend in (with_mask, kernel))
            if problem := next(
                (
                    each
                    for three in zip(exact, plain, found, strict=True)
                    if (each := farther(*three))
                ),
                None,
            ):
                return f"computes something else, by {problem}"
        for seen in (0, first - 1, first):
            value = (place == seen)[:, None, None].expand(-1, 2, WIDTH)
            reached = kernel(
                *(each.to(half).contiguous() for each in (states[0] / WIDTH, states[1], value)),
                scale=None,
            )
            if not torch.equal(reached.ne(0).any(-1).any(-1), may[:, seen]):
                return "does not see what it may, and that alone"
    return None


def _repeats(
    packing: Packing, width: int, longest: int, device: torch.device, precision: Precision
) -> bool:
    """Whether the gradients of a kernel are the same, bit by bit, each time: what adds in no order is seen at long texts alone."""
    assert packing.kernel is not None
    starts = torch.arange(0, (REPEATED + 1) * longest, longest, dtype=torch.int32, device=device)
    states = [
        torch.sin(torch.arange(REPEATED * longest * 8 * width, device=device) * (n + 1)).view(
            -1, 8, width
        )
        for n in range(3)
    ]
    kernel = partial(
        packing.kernel.attend,
        starts=starts,
        longest=longest,
        causal=packing.causal,
        window=None,
        dropout=0.0,
    )
    first, *again = (_values(kernel, states, _half(device, precision), None) for _ in range(3))
    return all(
        torch.equal(one, other) for each in again for one, other in zip(first, each, strict=True)
    )


def _half(device: torch.device, precision: Precision) -> torch.dtype:
    """The type that products are computed in."""
    with precision():
        return (
            torch.get_autocast_dtype(device.type)
            if torch.is_autocast_enabled(device.type)
            else torch.float32
        )


def _head_width(config: Any) -> int:
    """Numbers of a head, which the tiles of a kernel depend on."""
    return int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )


def _values(
    attend: Callable[..., torch.Tensor],
    states: Sequence[torch.Tensor],
    kind: torch.dtype,
    scale: float | None,
) -> list[torch.Tensor]:
    """What an attention makes of queries, keys and values, and the gradients at them; in fp32."""
    leaves = [each.to(kind).requires_grad_() for each in states]
    with torch.autocast(leaves[0].device.type, enabled=False):
        output = attend(*leaves, scale=scale).float()
        weights = torch.arange(output.numel(), device=output.device).cos().view_as(output)
        gradients = torch.autograd.grad((output * weights).sum(), leaves)
    return [output.detach(), *(each.float() for each in gradients)]


class _Trial:
    """Passes of a few texts through a backbone."""

    def __init__(self, model: Any, packing: Packing, longest: int, precision: Precision):
        self._model, self.flash, self.sdpa, self._precision = (
            model,
            packing,
            replace(packing, kernel=None),
            precision,
        )
        self._vocabulary = len(model.get_input_embeddings().weight)
        first = min(TEXT, longest)
        lengths = [first, max(1, first // 2), min(SHORT, longest)]
        a, b, c = (
            {"input_ids": [(7 + 5 * i + 3 * number) % self._vocabulary for i in range(length)]}
            for number, length in enumerate(lengths)
        )
        laid = lay_out([[a, b], [c]], columns={"input_ids": 0}, packed=True).to(model.device)
        assert laid.segments is not None
        self._inputs, self._segments = laid.inputs, laid.segments

    def states(
        self, packing: Packing, *, rounded: bool = True, ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Hidden states ``(rows, length, width)`` in fp32."""
        ids = self._inputs["input_ids"] if ids is None else ids
        laid = packing.inputs(self._segments, self._inputs["position_ids"])
        with self._precision() if rounded else in_fp32(self._model):
            if packing.kernel is None:
                states: torch.Tensor = self._model.base_model(
                    input_ids=ids, **laid
                ).last_hidden_state
                return states.float()
            with flash_rows(self._model, packing, self._segments) as rows:
                states = self._model.base_model(input_ids=ids, **laid).last_hidden_state
        if not rows.windows:
            raise ValueError("the model does not ask for it: its attention is its own")
        kinds = getattr(self._model.config, "layer_types", None)
        if packing.window is not None and rows.windows != [
            kind == "sliding_attention" for kind in kinds or ()
        ]:
            raise ValueError("which layers have a sliding window is not told to it")
        return states.float()

    def is_near(self) -> str | None:
        """How states and gradients are farther from those in fp32 than SDPA's; None: they are not."""
        of_tokens = [
            states_and_gradients(
                self._model,
                lambda p=packing, r=rounded: self.states(p, rounded=r)[self._segments > 0],  # type: ignore[misc]
            )
            for packing, rounded in ((self.sdpa, False), (self.sdpa, True), (self.flash, True))
        ]
        for what, *three in zip(("hidden states", "gradients"), *of_tokens, strict=True):
            if problem := farther(*three):
                return f"computes other {what}, by {problem}"
        return None

    def keeps_apart(self) -> str | None:
        """Whether a token's change is seen in its own text alone, of causal models behind it, and in a short text by each token."""
        with torch.no_grad():
            before, ids = self.states(self.flash), self._inputs["input_ids"]
            for row, number in ((0, 1), (0, 2), (1, 1)):
                places = (self._segments[row] == number).nonzero()[:, 0].tolist()
                for place in (places[0], places[-1]):
                    other = ids.clone()
                    other[row, place] = (other[row, place] + 1) % self._vocabulary
                    changed = (self.states(self.flash, ids=other) != before).any(-1)
                    may = torch.zeros_like(changed)
                    may[row, places[0] : places[-1] + 1] = True
                    if self.flash.causal:
                        may[row, :place] = False
                    if (changed & ~may).any():
                        return "lets a text see another"
                    if row == 1 and (may & ~changed).any():
                        return "does not let a text see itself"
        with embedded(self._model) as leaves:
            states = self.states(self.flash)
        (gradient,) = torch.autograd.grad(states[0][self._segments[0] == 1].square().sum(), leaves)
        if gradient[0][self._segments[0] != 1].any() or gradient[1].any():
            return "lets gradients of a text reach another"
        return None
