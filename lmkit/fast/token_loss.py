"""The loss of a language model without its logits, on models where that is shown to be exact.

The head's projection is left out of a forward pass, and what would have entered it goes to ``linear_cross_entropy``. What a
model does to its logits after the projection is not believed but tried, once for each head (``_trial``): adding numbers
(Marian, BART) and scaling (Granite, Cohere) are carried over; anything else (Gemma 2's soft cap, an adapter on the head)
leaves the plain way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from lmkit.batch import IGNORE, Batch
from lmkit.fast.path import has_attribute
from lmkit.heads import only_at, unwrap
from lmkit.models.memory import is_out_of_memory
from lmkit.models.trials import TOLERANCE, TRIAL_ERRORS, in_evaluation

if TYPE_CHECKING:
    import torch

_scales: WeakKeyDictionary[Any, float | None] = (
    WeakKeyDictionary()
)  # by head: what a trial found, None where it failed
STEEP = 1e4  # a logit that a soft cap or a clamp would change


@dataclass
class _Captured:
    """What entered the head's projection, and the type that the product would have had."""

    hidden: torch.Tensor | None = None
    dtype: torch.dtype | None = None
    times: int = 0


class TokenLoss:
    """The path that lets a task take the loss without logits: ``lmkit_token_loss`` of the model, while applied."""

    name = "loss"
    experimental = False

    def available(self, model: Any, device: torch.device) -> str | None:
        head = _linear_head(model)
        if head is None:
            return "the model has no head that is a plain linear layer over the vocabulary"
        return None if _scale_of(model, head) is not None else "the loss needs the model's logits"

    def transform(self, batch: Batch) -> Batch:
        return batch

    @contextmanager
    def applied(self, model: Any) -> Iterator[Any]:
        with has_attribute(unwrap(model), "lmkit_token_loss", partial(token_loss, model)):
            yield model


def token_loss(
    model: Any, inputs: Mapping[str, torch.Tensor], labels: torch.Tensor, *, label_smoothing: float
) -> torch.Tensor | None:
    """The sum of the cross-entropies of the labels that count, in nats; None: this model's logits are needed for it.

    Args:
        inputs: of the model, without labels.
        labels: ``(rows, length)``, aligned with the logits, -100 where nothing counts.
    """
    from lmkit.fast.linear_cross_entropy import Options, linear_cross_entropy

    head = _linear_head(model)
    if head is None or (scale := _scale_of(model, head)) is None:
        return None
    chosen = labels != IGNORE
    captured, output = _run(
        model, head, inputs, chosen, head.weight.new_zeros(1, 1, len(head.weight))
    )
    assert captured.hidden is not None
    added: torch.Tensor | None = output[0, 0]
    if head.bias is not None:
        added = scale * head.bias + added
    elif added is not None and not added.any():
        added = None
    options = Options(label_smoothing=label_smoothing, scale=scale, dtype=captured.dtype)
    return linear_cross_entropy(captured.hidden, head.weight, added, labels[chosen], options)


def _linear_head(model: Any) -> Any:
    """The projection to the vocabulary, if it is a plain linear layer with its weights at hand: no adapter, shard or code book."""
    import torch

    try:
        head = unwrap(model).get_output_embeddings()
    except (*TRIAL_ERRORS, NotImplementedError):
        return None
    if hasattr(head, "modules_to_save") and not head.disable_adapters:
        head = head.modules_to_save[
            head.active_adapters[0]
        ]  # a new head under an adapter: PEFT's copy, which is trained
    is_plain = (
        type(head) is torch.nn.Linear
        and type(head.weight) is torch.nn.Parameter
        and "forward" not in vars(head)
    )
    return head if is_plain else None


def _run(
    model: Any, head: Any, inputs: Mapping[str, Any], chosen: torch.Tensor, stand_in: torch.Tensor
) -> tuple[_Captured, torch.Tensor]:
    """A forward pass in which ``stand_in`` takes the place of the projection's logits.

    Returns:
        The hidden states ``(chosen, width)`` that were to be projected; what the model made of the stand-in.
    """
    with only_at(model, chosen) as selection, _capturing(head, stand_in) as captured:
        output = model(**inputs).logits
    assert captured.times == 1, "the head runs once in a forward pass"
    hidden = captured.hidden
    assert hidden is not None
    captured.hidden = hidden[0] if selection.happened else hidden[chosen]
    return captured, output


@contextmanager
def _capturing(head: Any, stand_in: torch.Tensor) -> Iterator[_Captured]:
    import torch

    captured = _Captured()

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        device = hidden.device.type
        captured.hidden = hidden
        captured.dtype = (
            torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        )
        captured.times += 1
        return stand_in

    head.forward = forward
    try:
        yield captured
    finally:
        del head.forward


def _scale_of(model: Any, head: Any) -> float | None:
    import torch

    from lmkit.fast.flash import with_masks

    if head not in _scales:
        try:
            with (
                torch.inference_mode(False),
                with_masks(model),
            ):  # which would make tensors that no gradient may pass
                _scales[head] = _trial(unwrap(model), head)
        except TRIAL_ERRORS as error:
            if is_out_of_memory(error):
                raise
            _scales[head] = None  # the architecture does not take a stand-in for its logits
    return _scales[head]


def _trial(model: Any, head: Any) -> float | None:
    """By what this model multiplies its logits, if that and adding numbers is all that it does to them; else None.

    Shown on the model at hand, in evaluation mode and its own precision: steep logits go through what follows the projection,
    and those of two short texts are computed both ways.
    """
    import torch
    from torch.nn.functional import linear

    width, device = len(head.weight), head.weight.device
    tokens = min(
        len(model.get_input_embeddings().weight), width
    )  # Marian may have two vocabularies
    ids = (torch.arange(12, device=device).view(2, 6) * 5 + 7) % tokens
    chosen = torch.arange(12, device=device).view(2, 6) % 4 != 1
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if getattr(model.config, "is_encoder_decoder", False):
        inputs |= {"decoder_input_ids": ids.flip(1)}
    steep = torch.linspace(-STEEP, STEEP, width, dtype=head.weight.dtype, device=device)
    stand_in = torch.stack([torch.zeros_like(steep), torch.ones_like(steep), steep, steep.flip(0)])[
        None
    ]
    with in_evaluation(model), _in_own_precision(model), torch.enable_grad():
        captured, output = _run(model, head, inputs, chosen, stand_in)
    if output.shape != stand_in.shape or output.requires_grad:
        return None  # what is learned after the projection would get no gradient
    added = output[0, 0].double()
    scale = float(output[0, 1, 0].double() - added[0])
    expected = scale * stand_in[0].double() + added
    if not (output[0].double() - expected).abs().max() <= TOLERANCE * abs(scale) * STEEP:
        return None
    with in_evaluation(model), _in_own_precision(model), torch.no_grad():
        plain = model(**inputs).logits[chosen].double()
        assert captured.hidden is not None
        ours = scale * linear(captured.hidden, head.weight, head.bias).double() + added
    return scale if (ours - plain).abs().max() <= TOLERANCE * plain.abs().max() else None


@contextmanager
def _in_own_precision(model: Any) -> Iterator[None]:
    """Without autocast, also that which Accelerate puts around ``forward``."""
    import torch

    accelerated = vars(model).pop("forward", None)
    try:
        with torch.autocast(next(model.parameters()).device.type, enabled=False):
            yield
    finally:
        if accelerated is not None:
            model.forward = accelerated
