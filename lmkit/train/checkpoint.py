"""Checkpoints: everything a run needs to go on, whole or absent, in safetensors and JSON alone."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from lmkit import console
from lmkit.errors import ModelError
from lmkit.models.heads import unwrap_parallel
from lmkit.run import Run, atomic_directory

WEIGHTS, MOMENTS = "model.safetensors", "optimizer.safetensors"


def name_of(step: int) -> str:
    return f"step-{step:08d}"


def checkpoint_steps(run: Run) -> list[int]:
    """Steps of the checkpoints that are there, oldest first."""
    if not run.checkpoints.is_dir():
        return []
    names = [re.fullmatch(r"step-(\d{8})", path.name) for path in run.checkpoints.iterdir()]
    return sorted(int(name[1]) for name in names if name)


def newest_whole(run: Run) -> int | None:
    """The step of the newest checkpoint that can be read; damaged ones after it are named, and stay where they are."""
    for step in reversed(checkpoint_steps(run)):
        try:
            load_state(run, step)
            for name in WEIGHTS, MOMENTS:
                _keys(run.checkpoints / name_of(step) / name)
        except ModelError as error:
            console.warn(f"{error.place}: {error.problem}; taking the checkpoint before")
            continue
        return step
    return None


def save_checkpoint(run: Run, step: int, model: Any, optimizer: Any, state: dict[str, Any]) -> Path:
    """Write trained weights, optimizer state and ``state`` aside, then rename into place.

    The random state needs no saving: it is keyed on the step.
    """
    from safetensors.torch import save_file

    target = run.checkpoints / name_of(step)
    inner = unwrap_parallel(model)
    weights = {name: p.detach().contiguous() for name, p in inner.named_parameters() if p.requires_grad}
    moments = {
        f"{key}/{name}": _storable(value)
        for name, p in inner.named_parameters()
        for key, value in _optimizer_state(optimizer).get(p, {}).items()
    }
    with atomic_directory(target) as folder:
        save_file(weights, folder / WEIGHTS)
        save_file(moments, folder / MOMENTS)
        (folder / "state.json").write_text(json.dumps({"step": step, **state}), encoding="utf-8")
    return target


def load_weights(run: Run, step: int, model: Any) -> None:
    """Copy a checkpoint's weights into the model, in place."""
    import torch

    path = run.checkpoints / name_of(step) / WEIGHTS
    stored = _tensors(path)
    parameters = {name: p for name, p in unwrap_parallel(model).named_parameters() if p.requires_grad}
    if stored.keys() != parameters.keys() or any(stored[name].shape != p.shape for name, p in parameters.items()):
        raise ModelError(
            "the checkpoint is of another model",
            place=str(path),
            remedy="the recipe's model changed; start anew with --overwrite",
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(stored[name])


def load_state(run: Run, step: int) -> dict[str, Any]:
    """The state that was saved beside weights and moments.

    Raises:
        ModelError: it is missing or broken.
    """
    path = run.checkpoints / name_of(step) / "state.json"
    try:
        saved: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from None
    return saved


def load_checkpoint(run: Run, step: int, model: Any, optimizer: Any) -> dict[str, Any]:
    """Restore weights and optimizer; returns the state that was saved with them."""
    import torch

    load_weights(run, step, model)
    folder = run.checkpoints / name_of(step)
    parameters = dict(unwrap_parallel(model).named_parameters())
    state = _optimizer_state(optimizer)
    for key, value in _tensors(folder / MOMENTS).items():
        kind, _, name = key.partition("/")
        parameter = parameters[name]
        if value.ndim == 0 and value.dtype == torch.int64:  # bitsandbytes counts steps in Python's numbers
            state[parameter][kind] = int(value)
            continue
        # AdamW keeps its step count on the CPU unless the kernel is fused on a GPU
        state[parameter][kind] = (
            value.clone() if kind == "step" and parameter.device.type == "cpu" else value.to(parameter.device).clone()
        )
    return load_state(run, step)


def drop_old(run: Run, *, keep: int, best: int | None, also: Collection[int] = ()) -> None:
    """Remove all but the newest ``keep`` checkpoints, the best one, and those that are ``also`` needed."""
    steps = checkpoint_steps(run)
    for step in steps[: max(0, len(steps) - keep)]:
        if step != best and step not in also:
            shutil.rmtree(run.checkpoints / name_of(step))


def averaged(steps: Sequence[int], number: int | None, *, every: int, last: int, best: int | None) -> list[int]:
    """Which checkpoints make the model: the newest ``number`` at evaluations, the best one the last of them.

    Evaluations, and not checkpoints, since when these are written depends on the hardware and on interruptions.

    Args:
        every: steps from one evaluation to the next. last: the step that ends the run, which is evaluated too.
        best: the step that validation chose; None: the last one.

    >>> averaged([2, 3, 4, 6, 8, 9], 3, every=2, last=9, best=8)
    [4, 6, 8]
    """
    end = last if best is None else best
    return [step for step in steps if step <= end and (step % every == 0 or step == last)][-number:] if number else []


def average_weights(run: Run, steps: Sequence[int], model: Any) -> None:
    """Set the model to the mean of the checkpoints' weights (Vaswani et al. 2017, section 6.1), added up in double precision."""
    import torch

    parameters = [p for p in unwrap_parallel(model).parameters() if p.requires_grad]
    sums = [torch.zeros_like(p, dtype=torch.double) for p in parameters]
    for step in steps:
        load_weights(run, step, model)
        for total, parameter in zip(sums, parameters, strict=True):
            total += parameter.detach()
    with torch.no_grad():
        for total, parameter in zip(sums, parameters, strict=True):
            parameter.copy_(total / len(steps))


def _storable(value: Any) -> Any:
    """A tensor for a file; small ones are copied, since parameters may share them (the code tables of 8-bit moments)."""
    import torch

    if not isinstance(value, torch.Tensor):
        return torch.tensor(value)
    return value.detach().clone() if value.numel() <= 256 else value.detach().contiguous()


def _optimizer_state(optimizer: Any) -> Any:
    return getattr(optimizer, "optimizer", optimizer).state


def _tensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Any] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise _damaged(path, error) from None
    return tensors


def _keys(path: Path) -> list[str]:
    """The names in a safetensors file, whose size must be what its header says; nothing is read into memory."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return list(file.keys())
    except (OSError, SafetensorError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> ModelError:
    return ModelError(
        f"this checkpoint cannot be read: {error}",
        place=str(path),
        remedy="remove its folder; --resume goes on from the one before",
    )
