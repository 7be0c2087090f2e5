"""Texts of a padded batch share rows inside the backbone, and leave it as they came: no padding is computed.

Tasks lay out one text a row and read hidden states or logits there. Between the two, hooks on the backbone move the
tokens into full rows with a block mask (``models/packing.py``) and back. As packing, it is used only where it is shown to be
exact on the model at hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lmkit.batch import IGNORE, Batch, pad
from lmkit.fast.packing import Packing, candidates, find_packing, trial_length
from lmkit.heads import unwrap
from lmkit.models.padding import warn_of_padding
from lmkit.models.trials import TOLERANCE, TRIAL_ERRORS, in_evaluation
from lmkit.recipe.schema import Recipe
from lmkit.tasks.base import Problem

if TYPE_CHECKING:
    import torch


def choose_packing(recipe: Recipe, problem: Problem, model: Any) -> Packing | None:
    """How this model takes several texts in a row, as ``hardware.packing`` says; None: it has one text a row, and padding."""
    find = find_packing if problem.packs else find_unpadding
    packing = (
        find(model, longest=recipe.data.max_length) if recipe.hardware.packing != "off" else None
    )
    if packing is None:
        warn_of_padding(model)
    return packing


def find_unpadding(model: Any, *, longest: int) -> Packing | None:
    """The way in which this model, in fp32 and evaluation mode, gives texts that share rows the logits that they have apart.

    Args:
        longest: tokens of the longest text (see ``find_packing``).
    """
    import torch

    inner = unwrap(model)
    length = trial_length(inner.config, longest)
    if length is None or inner.base_model is inner:
        return None
    with in_evaluation(inner), torch.inference_mode():
        tries = (
            each
            for causal in (False, True)
            for each in candidates(inner.config, longest, causal=causal)
        )
        return next((packing for packing in tries if _is_exact(inner, packing, length)), None)


@contextmanager
def shared_rows(model: Any, packing: Packing | None, batch: Batch) -> Iterator[Batch]:
    """While active, a forward pass of ``model`` on the batch that is given shares rows as ``batch`` says.

    Packed rows get the mask and positions of the model; padded rows with ``shared`` (``data/plan.py rows_to_share``) go through
    the backbone without padding.
    """
    if packing is None or batch.shared is None:
        with _without_mask(model, packing, batch.segments):
            yield packing.apply(batch) if packing else batch
        return
    backbone, places = unwrap(model).base_model, batch.shared
    texts, longest = batch.inputs["attention_mask"].shape
    is_there = places >= 0
    came_from = places[is_there]
    segments = places.div(longest, rounding_mode="floor") + 1  # 0 for padding, which is -1

    def share(
        module: Any, arguments: tuple[Any, ...], inputs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        arguments, inputs = _by_name(module, arguments, inputs)
        moved = {
            name: value.flatten()[places.clamp(min=0)]
            for name, value in inputs.items()
            if name in batch.inputs and value.shape == (texts, longest)
        }
        laid = packing.inputs(segments, places.clamp(min=0) % longest)
        return arguments, inputs | moved | laid

    def part(module: Any, arguments: Any, output: Any) -> Any:
        hidden = output["last_hidden_state"]
        apart = hidden.new_zeros(texts * longest, hidden.shape[-1]).index_copy(
            0, came_from, hidden[is_there]
        )
        output["last_hidden_state"] = apart.view(texts, longest, -1)
        if output.get("pooler_output") is not None:
            output["pooler_output"] = module.pooler(output["last_hidden_state"])
        return output

    hooks = (
        backbone.register_forward_pre_hook(share, with_kwargs=True),
        backbone.register_forward_hook(part),
    )
    try:
        with _without_mask(model, packing, segments):
            yield replace(batch, shared=None)
    finally:
        for hook in hooks:
            hook.remove()


def _without_mask(
    model: Any, packing: Packing | None, segments: torch.Tensor | None
) -> AbstractContextManager[Any]:
    """The attention for rows of these segments, where the packing has a kernel of its own for them."""
    if packing is None or packing.kernel is None or segments is None:
        return nullcontext()
    from lmkit.fast.flash import flash_rows

    return flash_rows(model, packing, segments)


def _by_name(
    module: Any, arguments: tuple[Any, ...], inputs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Heads hand the tokens to their backbone by place or by name; here they all have names."""
    import inspect

    names = list(inspect.signature(type(module).forward).parameters)[1:]
    return (), dict(zip(names, arguments, strict=False)) | inputs


def _is_exact(model: Any, packing: Packing, length: int) -> bool:
    """Of texts of several lengths, the longest of which goes beyond a sliding window."""
    import torch

    vocabulary = len(model.get_input_embeddings().weight)
    lengths = [length, 3, length - 3, 5, 4]
    texts = [
        [((7 + 5 * i + 3 * number) % max(2, vocabulary - 1) + 1) % vocabulary for i in range(n)]
        for number, n in enumerate(lengths)
    ]
    mask = pad([[1] * n for n in lengths], 0)
    filling = getattr(model.config, "pad_token_id", None) or 0
    inputs = {"input_ids": pad(texts, filling), "attention_mask": mask}
    places = pad(
        [
            [text * length + i for text in group for i in range(lengths[text])]
            for group in ([0, 1], [2, 3, 4])
        ],
        -1,
    )
    batch = Batch(inputs, torch.full_like(mask, IGNORE), shared=places).to(model.device)
    try:
        apart = model(**batch.inputs).logits.float()
        with shared_rows(model, packing, batch) as given:
            together = model(**given.inputs).logits.float()
    except TRIAL_ERRORS:
        return False  # the architecture does not take such rows
    if together.shape != apart.shape:
        return False
    if apart.shape[:2] == mask.shape:
        apart, together = (
            logits[torch.as_tensor(mask, dtype=torch.bool)] for logits in (apart, together)
        )
    return bool((together - apart).abs().max() <= TOLERANCE * apart.abs().max())
