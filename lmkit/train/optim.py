"""Optimizers with the usual decay groups."""

from __future__ import annotations

import importlib.util
import re
from typing import Any

from lmkit.errors import RecipeError
from lmkit.models.layers import layer_of, layer_scales
from lmkit.recipe.schema import Recipe, Train

_LORA_B = re.compile(r"\.lora_(embedding_)?B\b")

# bytes of state for each trained parameter; Muon's is for its matrices, Adafactor's for a square one of some size
STATE_BYTES = {"adamw": 8.0, "adafactor": 0.1, "muon": 4.0, "adamw8bit": 2.0, "schedule_free": 8.0}
_LIBRARIES = {"adamw8bit": "bitsandbytes", "schedule_free": "schedulefree"}
_UNUSED = {"adafactor": ("beta1", "beta2", "epsilon")}
_GROUP_VALUES = (
    "k",
    "weight_sum",
    "lr_max",
)  # what schedule-free counts for a group, not for each parameter


def check_optimizer(recipe: Recipe) -> None:
    """Refuse an optimizer that is not installed, and keys that would have no effect beside it (RecipeError); needs no torch."""
    train, chosen = recipe.train, recipe.train.optimizer
    library = _LIBRARIES.get(chosen)
    if library is not None and importlib.util.find_spec(library) is None:
        raise _not_installed(library, chosen)
    if train.on_spike is None and train.spike_factor != Train().spike_factor:
        raise _useless("spike_factor", "has no effect without train.on_spike")
    if chosen == "schedule_free":
        _check_schedule_free(train)
    if not train.decay_embeddings and (problem := _no_embeddings(recipe)):
        raise _useless("decay_embeddings", problem)
    if chosen == "muon" and recipe.lora:
        problem = "muon updates whole matrices, and lora trains factors of them"
        raise _useless("optimizer", problem, "adamw, or lora=null")
    for key in _UNUSED.get(chosen, ()):
        if getattr(train, key) != getattr(Train(), key):
            raise _useless(key, f"{chosen} has no {key}")


def _not_installed(library: str, chosen: str) -> RecipeError:
    return RecipeError(
        f"{library} is not installed",
        place="train.optimizer",
        remedy=f"pip install 'lmkit[{chosen}]'",
    )


def _useless(key: str, problem: str, remedy: str = "leave it out") -> RecipeError:
    return RecipeError(problem, place=f"train.{key}", remedy=remedy)


def _check_schedule_free(train: Train) -> None:
    """Refuse what schedule-free does in its own way."""
    if train.schedule != "constant":
        problem = "schedule-free has a constant rate after the warm-up"
        raise _useless("schedule", problem, "schedule: constant")
    if train.ema is not None:
        raise _useless("ema", "schedule-free averages the weights itself")
    if train.beta1 == 0:
        raise _useless("beta1", "schedule-free needs one above 0", "0.9")


def _no_embeddings(recipe: Recipe) -> str | None:
    if recipe.lora is not None:
        return "has no effect beside lora, which freezes them"
    if recipe.train.freeze_embeddings:
        return "has no effect beside train.freeze_embeddings"
    return "has no effect where train.weight_decay is 0" if recipe.train.weight_decay == 0 else None


def build_optimizer(
    model: Any, train: Train, *, lora_ratio: float | None = None, crf_rate: float | None = None
) -> Any:
    """Build the optimizer of ``train.optimizer``; weight decay on matrices, not on norms, biases and a CRF's transitions.

    Each group has a ``scale``, the share of the schedule's learning rate that it gets: by layer with
    ``train.layer_decay``, and for LoRA's B matrices.

    Args:
        lora_ratio: learning rate of B over that of A (LoRA+, Hayou et al. 2024); None: the same.
        crf_rate: peak rate of a CRF's transitions; None: ``train.learning_rate``.

    Raises:
        RecipeError: the optimizer does not go with this model or this machine.
    """
    import torch

    from lmkit.heads import crf_of

    crf = crf_of(model) if crf_rate is not None else None
    transitions = {id(parameter) for parameter in crf.parameters()} if crf is not None else set()
    by_layer = layer_scales(model, train.layer_decay) if train.layer_decay is not None else {}
    embeddings = {
        id(p)
        for module in model.modules()
        if isinstance(module, torch.nn.Embedding)
        for p in module.parameters()
    }
    # a group: whether it goes to Muon, whether it is left without decay, its scale
    groups: dict[tuple[bool, bool, float], list[Any]] = {}
    for name, parameter in model.named_parameters():
        if id(parameter) in transitions and crf_rate is not None:
            groups.setdefault((False, True, crf_rate / train.learning_rate), []).append(parameter)
        elif parameter.requires_grad:
            scale = by_layer.get(name, 1.0) * (
                lora_ratio if lora_ratio is not None and _LORA_B.search(name) else 1.0
            )
            is_embedding = id(parameter) in embeddings
            is_hidden = parameter.ndim == 2 and layer_of(name) is not None and not is_embedding
            plain = parameter.ndim < 2 or (is_embedding and not train.decay_embeddings)
            groups.setdefault((train.optimizer == "muon" and is_hidden, plain, scale), []).append(
                parameter
            )
    options: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for (for_muon, plain, scale), parameters in sorted(groups.items(), key=lambda entry: entry[0]):
        decay, rate = 0.0 if plain else train.weight_decay, scale * train.learning_rate
        options[for_muon].append(
            {"params": parameters, "weight_decay": decay, "scale": scale, "lr": rate}
        )
    return _optimizer(train, options[True], options[False])


def _optimizer(train: Train, hidden: list[dict[str, Any]], others: list[dict[str, Any]]) -> Any:
    """Build the library's optimizer over these groups; ``hidden`` ones are Muon's."""
    if train.optimizer == "adamw":
        return _adamw(train, others)
    if train.optimizer == "muon":
        return _muon(train, hidden, others)
    return _rare_optimizer(train, others)


def _rare_optimizer(train: Train, others: list[dict[str, Any]]) -> Any:
    """Build an optimizer that saves memory or needs no schedule."""
    rate, adam = train.learning_rate, _adam_options(train)
    if train.optimizer == "adafactor":
        import torch

        # Shazeer & Stern 2018: the rate is relative to the size of the weights
        return torch.optim.Adafactor(others, lr=rate)
    if train.optimizer == "adamw8bit":  # Dettmers et al. 2022
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(others, lr=rate, **adam)
    from schedulefree import AdamWScheduleFree  # Defazio et al. 2024

    free = AdamWScheduleFree(others, lr=rate, **adam)
    free.train()
    return free


def _adam_options(train: Train) -> dict[str, Any]:
    return {"betas": (train.beta1, train.beta2), "eps": train.epsilon}


def _adamw(train: Train, groups: list[dict[str, Any]]) -> Any:
    """Build AdamW (Loshchilov & Hutter 2019); None: there is nothing for it."""
    import torch

    if not groups:
        return None
    return torch.optim.AdamW(groups, lr=train.learning_rate, fused=True, **_adam_options(train))


def _muon(train: Train, hidden: list[dict[str, Any]], others: list[dict[str, Any]]) -> Any:
    """Build Muon for the hidden matrices (Jordan et al. 2024), with AdamW for the rest."""
    import torch

    if not hasattr(torch.optim, "Muon"):
        raise RecipeError(
            f"muon needs torch 2.9 or newer, this is {torch.__version__}",
            place="train.optimizer",
            remedy="adamw",
        )
    if not hidden:
        raise RecipeError(
            "this model has no hidden matrices to train with muon",
            place="train.optimizer",
            remedy="adamw",
        )
    from lmkit.train.combined import Combined

    adamw = _adamw(train, others)
    # scaled to AdamW's step sizes, so that one learning rate serves both (Liu et al. 2025)
    muon = torch.optim.Muon(hidden, lr=train.learning_rate, adjust_lr_fn="match_rms_adamw")
    return Combined([part for part in (muon, adamw) if part is not None])


def state_bytes(train: Train, parameters: int) -> int:
    """Estimate the bytes that the optimizer will keep for so many trained parameters, averages included."""
    return round(parameters * (STATE_BYTES[train.optimizer] + (4 if train.ema is not None else 0)))


def group_values(optimizer: Any) -> list[dict[str, float]]:
    """Return what the optimizer counts for each group, for a checkpoint."""
    return [
        {key: group[key] for key in _GROUP_VALUES if key in group}
        for group in optimizer.param_groups
    ]


def set_group_values(optimizer: Any, values: list[dict[str, float]]) -> None:
    """Restore what ``group_values`` returned; older checkpoints have nothing."""
    for group, saved in zip(optimizer.param_groups, values, strict=bool(values)):
        group.update(saved)


def set_learning_rate(optimizer: Any, rate: float) -> None:
    """Set the schedule's rate, times each group's own scale."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("scale", 1.0)
