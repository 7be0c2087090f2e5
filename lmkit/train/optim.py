"""AdamW with the usual decay groups, and learning rates as a pure function of what is done."""

from __future__ import annotations

import math
from typing import Any

from lmkit.recipe.schema import Train


def build_optimizer(model: Any, train: Train, *, crf_rate: float | None = None) -> Any:
    """AdamW (Loshchilov & Hutter 2019), fused; weight decay on matrices, not on norms and biases.

    Args:
        crf_rate: peak rate of a CRF's transitions, which do not decay either; None: ``train.learning_rate``.
    """
    import torch

    from lmkit.models.heads import crf_of

    crf = crf_of(model) if crf_rate is not None else None
    own = {id(parameter) for parameter in crf.parameters()} if crf is not None else set()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad and id(parameter) not in own]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": train.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    if crf is not None and crf_rate is not None:
        groups.append({"params": list(crf.parameters()), "weight_decay": 0.0, "scale": crf_rate / train.learning_rate})
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=train.learning_rate,
        betas=(train.beta1, train.beta2),
        eps=train.epsilon,
        fused=True,
    )


def set_learning_rate(optimizer: Any, rate: float) -> None:
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
