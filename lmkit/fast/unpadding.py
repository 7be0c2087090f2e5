"""Texts of a padded batch share rows inside the backbone, and leave it as they came: no padding is computed.

Tasks lay out one text a row and read hidden states or logits there. Between the two, hooks on the backbone move the
tokens into full rows with a block mask (``packing.py``) and back. As packing, it is used only where it is shown to be
exact on the model at hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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
    is_off = "off" in (recipe.hardware.packing, recipe.hardware.fast)
    packing = None if is_off else find(model, longest=recipe.data.max_length)
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


class SharedRows:
    """The path that puts several texts in a row: packed rows, and padded ones in which no padding is computed.

    Args:
        packing: how the model takes such rows; None: ``available`` tries the ways that there are.
        packs: rows come packed; else one text a row, and padding.
        longest: tokens of the longest text.
    """

    name = "packing"
    experimental = False

    def __init__(self, packing: Packing | None = None, *, packs: bool = False, longest: int = 0):
        self.packing, self._packs, self._longest = packing, packs, longest
        self._model: Any = None
        self._batch: Batch | None = None  # whose tokens are moved when they arrive at the backbone
        self._has_moved = False
        self._kernel = ExitStack()  # the attention of the batch, where it is not the model's own

    def available(self, model: Any, device: torch.device) -> str | None:
        if self.packing is None:
            find = find_packing if self._packs else find_unpadding
            self.packing = find(model, longest=self._longest)
        return None if self.packing else "texts that share a row are not computed as apart"

    def transform(self, batch: Batch) -> Batch:
        """Give packed rows the mask and positions of the model; take note of padded rows with ``shared``."""
        assert self.packing is not None
        self._batch = None if batch.shared is None else batch
        if self.packing.kernel is not None and self._model is not None:
            self._use_kernel(batch)
        return self.packing.apply(batch) if batch.shared is None else replace(batch, shared=None)

    @contextmanager
    def applied(self, model: Any) -> Iterator[Any]:
        """Let the tokens of the batch that was transformed last go through the backbone without padding."""
        self._model, backbone = model, unwrap(model).base_model
        hooks = (
            backbone.register_forward_pre_hook(self._share, with_kwargs=True),
            backbone.register_forward_hook(self._part),
        )
        try:
            yield model
        finally:
            self._kernel.close()
            self._model = self._batch = None
            for hook in hooks:
                hook.remove()

    def _use_kernel(self, batch: Batch) -> None:
        from lmkit.fast.flash import flash_rows

        assert self.packing is not None
        self._kernel.close()
        segments = batch.segments if batch.shared is None else _segments(batch)
        if segments is not None:
            self._kernel.enter_context(flash_rows(self._model, self.packing, segments))

    def _share(
        self, module: Any, arguments: tuple[Any, ...], inputs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self._batch is None:
            return None
        arguments, inputs = _by_name(module, arguments, inputs)
        batch = self._batch
        if inputs.get("input_ids") is not batch.inputs["input_ids"]:
            return None  # other texts, in between
        assert batch.shared is not None
        assert self.packing is not None
        texts, longest = batch.inputs["attention_mask"].shape
        places = batch.shared.clamp(min=0)
        moved = {
            name: value.flatten()[places]
            for name, value in inputs.items()
            if name in batch.inputs and value.shape == (texts, longest)
        }
        laid = self.packing.inputs(_segments(batch), places % longest)
        self._has_moved = True
        return arguments, inputs | moved | laid

    def _part(self, module: Any, arguments: Any, output: Any) -> Any:
        if not self._has_moved:
            return None
        self._has_moved = False
        assert self._batch is not None
        assert self._batch.shared is not None
        texts, longest = self._batch.inputs["attention_mask"].shape
        is_there = self._batch.shared >= 0
        hidden = output["last_hidden_state"]
        apart = hidden.new_zeros(texts * longest, hidden.shape[-1]).index_copy(
            0, self._batch.shared[is_there], hidden[is_there]
        )
        output["last_hidden_state"] = apart.view(texts, longest, -1)
        if output.get("pooler_output") is not None:
            output["pooler_output"] = module.pooler(output["last_hidden_state"])
        return output


def _segments(batch: Batch) -> torch.Tensor:
    """Number the texts of shared rows from 1; 0 is padding, whose place is -1."""
    assert batch.shared is not None
    longest = batch.inputs["attention_mask"].shape[1]
    return batch.shared.div(longest, rounding_mode="floor") + 1


@contextmanager
def shared_rows(model: Any, packing: Packing | None, batch: Batch) -> Iterator[Batch]:
    """Let a forward pass of ``model`` on the batch that is given share rows while active."""
    if packing is None:
        yield batch
        return
    rows = SharedRows(packing)
    with rows.applied(model):
        yield rows.transform(batch)


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
