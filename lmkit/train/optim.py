"""AdamW with the usual decay groups, and learning rates as a pure function of what is done."""

from __future__ import annotations

import math
import re
from typing import Any

from lmkit.models.layers import layer_scales
from lmkit.recipe.schema import Train

_LORA_B = re.compile(r"\.lora_(embedding_)?B\b")


def build_optimizer(model: Any, train: Train, *, lora_ratio: float | None = None, crf_rate: float | None = None) -> Any:
    """AdamW (Loshchilov & Hutter 2019), fused; weight decay on matrices, not on norms, biases and a CRF's transitions.

    Each group has a ``scale``, the share of the schedule's learning rate that it gets: by layer with
    ``train.layer_decay``, and for LoRA's B matrices.

    Args:
        lora_ratio: learning rate of B over that of A (LoRA+, Hayou et al. 2024); None: the same.
        crf_rate: peak rate of a CRF's transitions; None: ``train.learning_rate``.
    """
    import torch

    from lmkit.models.heads import crf_of

    crf = crf_of(model) if crf_rate is not None else None
    transitions = {id(parameter) for parameter in crf.parameters()} if crf is not None else set()
    by_layer = layer_scales(model, train.layer_decay) if train.layer_decay is not None else {}
    groups: dict[tuple[bool, float], list[Any]] = {}
    for name, parameter in model.named_parameters():
        if id(parameter) in transitions and crf_rate is not None:
            groups.setdefault((True, crf_rate / train.learning_rate), []).append(parameter)
        elif parameter.requires_grad:
            scale = by_layer.get(name, 1.0) * (lora_ratio if lora_ratio is not None and _LORA_B.search(name) else 1.0)
            groups.setdefault((parameter.ndim < 2, scale), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "weight_decay": 0.0 if is_vector else train.weight_decay,
                "scale": scale,
                "lr": scale * train.learning_rate,
            }
            for (is_vector, scale), parameters in sorted(groups.items(), key=lambda entry: entry[0])
        ],
        lr=train.learning_rate,
        betas=(train.beta1, train.beta2),
        eps=train.epsilon,
        fused=True,
    )


def set_learning_rate(optimizer: Any, rate: float) -> None:
    """The schedule's rate, times each group's own scale."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("scale", 1.0)


def learning_rate(train: Train, *, step: int, total: int, share: float | None = None) -> float:
    """The rate of a step, whatever the number of processes and wherever the run was resumed.

    Args:
        step: counted from 0.
        total: steps of the whole run.
        share: with ``max_minutes``, the share of the time that is gone, in place of ``step / total``.

    >>> round(learning_rate(Train(learning_rate=1.0, warmup=2), step=0, total=10), 3)
    0.5
    """
    if train.warmup < 1:
        warmup_share = train.warmup
        done = share if share is not None else step / total
        risen = (
            1.0 if done >= warmup_share else (done + 1 / max(total, 1)) / warmup_share if share is None else done / warmup_share
        )
    else:
        warmup_share = min(1.0, train.warmup / max(total, 1)) if share is None else 0.0
        risen = (step + 1) / train.warmup
        done = share if share is not None else step / total
    if risen < 1:
        return train.learning_rate * max(risen, 1e-3)
    left = min(1.0, max(0.0, (1 - done) / (1 - warmup_share) if warmup_share < 1 else 1.0))
    factor = {
        "constant": 1.0,
        "linear": left,
        "cosine": 0.5 * (1 + math.cos(math.pi * (1 - left))),
        "wsd": min(1.0, left / 0.2),  # warm-up, stable, decay over the last fifth (Hu et al. 2024)
    }[train.schedule]
    return train.learning_rate * factor
