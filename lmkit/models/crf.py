"""A linear-chain CRF (Lafferty et al. 2001) beside a token classifier: pytorch-crf's layer, kept in a file of its own.

The layer is a module ``crf`` of the Hugging Face model, so it is trained, moved and counted with it; but the weights
stay those of a plain token classifier, and the transitions lie beside them, with an adapter as with full weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lmkit.errors import ModelError
from lmkit.heads import crf_of, unwrap

FILE = "crf.safetensors"


def add_crf(model: Any, num_labels: int, weights: dict[str, Any] | None = None) -> None:
    """Give the model a CRF with these transitions, or with random ones near 0, which are trained even under an adapter."""
    from torchcrf import CRF

    crf = CRF(num_labels, batch_first=True)
    if weights is not None:
        crf.load_state_dict(weights)
    unwrap(model).crf = crf


def save_crf(model: Any, folder: Path) -> None:
    from safetensors.torch import save_file

    save_file(
        {name: value.contiguous().cpu() for name, value in crf_of(model).state_dict().items()},
        folder / FILE,
    )


def load_crf(location: str, revision: str | None) -> dict[str, Any] | None:
    """The transitions beside a model's weights, in a directory or on the hub; None where there are none."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from transformers.utils import cached_file

    path = cached_file(
        location, FILE, revision=revision, _raise_exceptions_for_missing_entries=False
    )
    if path is None:
        return None
    try:
        weights: dict[str, Any] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"cannot be read: {error}", place=str(path), remedy="fetch or train the model again"
        ) from None
    return weights
