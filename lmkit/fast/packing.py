"""Several documents in one row that do not see each other, on models where that is shown to be exact.

A batch carries ``segments``; a block mask lets a token attend to its own segment only, and positions
start anew in each. Nothing is believed of an architecture: ``find_packing`` runs two documents together
and apart through the model at hand and packs only if the logits are equal.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lmkit.batch import Batch, lay_out
from lmkit.heads import unwrap
from lmkit.models.trials import TOLERANCE, TRIAL_ERRORS, in_evaluation

if TYPE_CHECKING:
    import torch

    from lmkit.fast.flash import Kernel

LONGEST_TRIAL = 1100  # tokens of a document that is run to see whether a sliding window is kept


@dataclass(frozen=True)
class Packing:
    """How a model takes a packed row.

    Args:
        causal: tokens attend backwards only.
        first_position: position id of the first token of a segment (RoBERTa's is 2).
        window: tokens to either side that a sliding layer sees; None where all layers see all.
        kernel: computes the attention of such rows without a mask; None: SDPA, with one.
    """

    causal: bool
    first_position: int = 0
    window: int | None = None
    kernel: Kernel | None = None

    def apply(self, batch: Batch) -> Batch:
        """Give a batch the mask and positions of this model; one without segments passes unchanged."""
        if batch.segments is None:
            return batch
        laid = self.inputs(batch.segments, batch.inputs["position_ids"])
        return replace(batch, inputs=batch.inputs | laid, segments=None)

    def inputs(self, segments: torch.Tensor, positions: torch.Tensor) -> dict[str, Any]:
        """Make the mask and the position ids of rows ``(rows, length)``."""
        return {
            "attention_mask": self._mask(segments) if self.kernel is None else None,
            "position_ids": positions + self.first_position,
        }

    def _mask(self, segments: torch.Tensor) -> Any:
        """``(rows, 1, length, length)``, True where a query may see a key; padding sees padding, so no row is empty."""
        import torch

        mask = segments[:, None, :, None] == segments[:, None, None, :]
        if self.causal:
            mask = mask.tril()
        if self.window is None:
            return mask
        place = torch.arange(segments.shape[1], device=segments.device)
        near = (place[:, None] - place[None, :]).abs() <= self.window
        return {"full_attention": mask, "sliding_attention": mask & near}


def find_packing(model: Any, *, longest: int) -> Packing | None:
    """The way in which this model, in fp32 and evaluation mode, gives packed documents their unpacked logits; None if none does.

    Args:
        longest: tokens of the longest document. Where it reaches beyond a sliding window, that window is tried too;
            a window of more than ``LONGEST_TRIAL`` tokens is not, and such documents are not packed.
    """
    import torch

    inner = unwrap(model)
    config = inner.config
    causal = (
        getattr(config, "is_decoder", False)
        or "CausalLM" in type(inner).__name__
        or "LMHead" in type(inner).__name__
    )
    length = trial_length(config, longest)
    if length is None:
        return None
    with in_evaluation(inner), torch.inference_mode():
        return next(
            (
                each
                for each in candidates(config, longest, causal=causal)
                if _is_exact(inner, each, length)
            ),
            None,
        )


def trial_length(config: Any, longest: int) -> int | None:
    """Tokens of the documents to try a model with; None: it cannot be tried."""
    if getattr(config, "is_encoder_decoder", False):
        return None
    if getattr(config, "attention_type", None) == "block_sparse":
        return None  # BigBird turns to full attention for good once it has read a short text
    window = _window(config, longest)
    length = 12 if window is None else window + 8
    return length if length <= LONGEST_TRIAL else None


def candidates(config: Any, longest: int, *, causal: bool) -> list[Packing]:
    """The ways to try: where positions begin, and what a sliding window may mean."""
    window = _window(config, longest)
    padding = getattr(config, "pad_token_id", None) or 0
    # what architectures mean by a window: the width to both sides, that to one with or without the token itself
    halves: tuple[int | None, ...] = (
        (None,) if window is None else (window // 2, window - 1, window, None)
    )
    return [Packing(causal, first, half) for first in (0, padding + 1) for half in halves]


def _window(config: Any, longest: int) -> int | None:
    window = getattr(config, "sliding_window", None) or getattr(config, "local_attention", None)
    return (
        None if window is None or longest <= window // 2 else window
    )  # None: no document reaches beyond it


def _is_exact(model: Any, packing: Packing, length: int) -> bool:
    vocabulary = len(model.get_input_embeddings().weight)  # PEFT wraps some that learn new rows
    tokens = [(7 + 5 * i) % max(2, vocabulary - 1) + 1 for i in range(2 * length)]
    tokens = [token % vocabulary for token in tokens]
    documents = [
        {"input_ids": tokens[: length - 3]},
        {"input_ids": tokens[length - 3 : 2 * length - 4]},
    ]
    columns = {"input_ids": 0}
    together = packing.apply(lay_out([documents], columns=columns, packed=True).to(model.device))
    try:
        packed = _logits(model, together)[0]
        for document, start in zip(documents, (0, length - 3), strict=True):
            single = lay_out([[document]], columns=columns, packed=False).to(model.device)
            alone = _logits(model, single)[0]
            if (
                not (packed[start : start + len(alone)] - alone).abs().max()
                <= TOLERANCE * alone.abs().max()
            ):
                return False
    except TRIAL_ERRORS:
        return False  # the architecture does not take such a mask
    return True


def _logits(model: Any, batch: Batch) -> torch.Tensor:
    logits: torch.Tensor = model(**batch.inputs).logits.float()
    return logits
