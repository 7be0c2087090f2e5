"""Averaged weights: evaluated and saved in place of the weights that are trained.

The average of a parameter stands in the optimizer's state, so checkpoints hold it like any moment. While the
model is evaluated or saved, the two change places, without rounding: ``state[AVERAGE]`` then holds the weights
that are trained. So ``model.safetensors`` of a checkpoint always has the weights that validation measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lmkit.recipe.schema import Train

AVERAGE = "average"


def update_ema(optimizer: Any, decay: float, *, step: int) -> None:
    """Move the average of every weight towards it (Polyak & Juditsky 1992).

    Args:
        decay: of the average in the long run; early on ``(1 + step) / (10 + step)``, lest the random start weigh for long.
        step: counted from 0.
    """
    from torch.optim.swa_utils import get_ema_multi_avg_fn

    averages, weights = [], []
    for parameter, state in _states(optimizer):
        if AVERAGE not in state:
            state[AVERAGE] = parameter.detach().clone()
        averages.append(state[AVERAGE])
        weights.append(parameter.detach())
    follow: Any = get_ema_multi_avg_fn(min(decay, (1 + step) / (10 + step)))  # type: ignore[no-untyped-call]
    if averages:
        with torch.no_grad():
            follow(averages, weights, None)


def keeps_average(train: Train) -> bool:
    """Return whether the optimizer's state has averages to evaluate and save."""
    return train.ema is not None or train.optimizer == "schedule_free"


@contextmanager
def averaged_weights(optimizer: Any) -> Iterator[None]:
    """Give the model, while active, the weights that are evaluated and saved."""
    use_average(optimizer)
    try:
        yield
    finally:
        use_trained(optimizer)


def use_average(optimizer: Any) -> None:
    """Give the model its averaged weights: of ``train.ema``, or schedule-free's; without either nothing changes."""
    for group in optimizer.param_groups:
        # schedule-free's x = (1 - 1/beta1) z + y / beta1 (Defazio et al. 2024)
        if "weight_sum" in group:
            for parameter in group["params"]:
                if "z" in (state := optimizer.state[parameter]):
                    state[AVERAGE] = torch.lerp(
                        parameter.detach(), state["z"], 1 - 1 / group["betas"][0]
                    )
    _change_places(optimizer)


def use_trained(optimizer: Any) -> None:
    """Give the model back the weights that are trained."""
    _change_places(optimizer)
    for group in optimizer.param_groups:
        if "weight_sum" in group:
            for parameter in group["params"]:
                # it is computed anew when it is needed
                optimizer.state[parameter].pop(AVERAGE, None)


def _change_places(optimizer: Any) -> None:
    with torch.no_grad():
        for parameter, state in _states(optimizer):
            if AVERAGE in state:
                trained = parameter.detach().clone()
                parameter.copy_(state[AVERAGE])
                state[AVERAGE].copy_(trained)


def _states(optimizer: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield the parameters that have been trained, with the optimizer's state of each."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if optimizer.state.get(parameter):
                yield parameter, optimizer.state[parameter]
