"""Checkpoints: everything a run needs to go on, whole or absent, in safetensors and JSON alone, with their checksums."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from lmkit import console
from lmkit.errors import ModelError
from lmkit.run import Run, atomic_directory

WEIGHTS, MOMENTS, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
SUMS = "SHA256SUMS"  # in the form that ``sha256sum --check`` reads
Tensors = dict[str, Any]


def name_of(step: int) -> str:
    return f"step-{step:08d}"


def checkpoint_steps(run: Run) -> list[int]:
    """Steps of the checkpoints that are there, oldest first."""
    if not run.checkpoints.is_dir():
        return []
    names = [re.fullmatch(r"step-(\d{8})", path.name) for path in run.checkpoints.iterdir()]
    return sorted(int(name[1]) for name in names if name)


def newest_whole(run: Run) -> int | None:
    """The step of the newest checkpoint whose files are what was written; damaged ones after it are named, and stay there."""
    for step in reversed(checkpoint_steps(run)):
        try:
            verify(run, step)
        except ModelError as error:
            console.warn(f"{error.place}: {error.problem}; taking the checkpoint before")
            continue
        return step
    return None


def verify(run: Run, step: int, names: Collection[str] = (WEIGHTS, MOMENTS, STATE)) -> None:
    """Compare files of a checkpoint with the SHA-256 that was written beside them.

    Raises:
        ModelError: one is missing, truncated or changed.
    """
    folder = run.checkpoints / name_of(step)
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
        sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    except (OSError, ValueError) as error:
        raise _damaged(folder / SUMS, error) from None
    for name in names:
        try:
            found = _sha256(folder / name)
        except OSError as error:
            raise _damaged(folder / name, error) from None
        if found != sums.get(name):
            raise _damaged(folder / name, "its content is not what was written (SHA-256)")


def snapshot(model: Any, optimizer: Any, *, copy: bool) -> tuple[Tensors, Tensors]:
    """Trained weights and optimizer state by name; ``copy``: in memory of their own on the CPU, which training leaves alone."""
    import torch

    def kept(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return torch.tensor(value)  # bitsandbytes counts steps in Python's numbers
        found = value.detach().cpu().contiguous()
        is_shared = found.data_ptr() == value.data_ptr()  # small ones by several parameters: the code tables of 8-bit moments
        return found.clone() if is_shared and (copy or found.numel() <= 256) else found

    weights = {name: kept(p) for name, p in model.named_parameters() if p.requires_grad}
    state = _optimizer_state(optimizer)
    moments = {f"{key}/{name}": kept(value) for name, p in model.named_parameters() for key, value in state.get(p, {}).items()}
    return weights, moments


def write_checkpoint(run: Run, step: int, weights: Tensors, moments: Tensors, state: dict[str, Any]) -> Path:
    """Write weights, optimizer state and ``state`` aside with their checksums, then rename into place.

    The random state needs no saving: it is keyed on the step.
    """
    from safetensors.torch import save_file

    target = run.checkpoints / name_of(step)
    with atomic_directory(target) as folder:
        save_file(weights, folder / WEIGHTS)
        save_file(moments, folder / MOMENTS)
        (folder / STATE).write_text(json.dumps({"step": step, **state}), encoding="utf-8")
        sums = [f"{_sha256(folder / name)}  {name}\n" for name in (WEIGHTS, MOMENTS, STATE)]
        (folder / SUMS).write_text("".join(sums), encoding="utf-8")
    return target


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_weights(run: Run, step: int, model: Any) -> None:
    """Verify a checkpoint's weights and copy them into the model, in place."""
    verify(run, step, (WEIGHTS,))
    _copy_weights(run, step, model)


def _copy_weights(run: Run, step: int, model: Any) -> None:
    import torch

    path = run.checkpoints / name_of(step) / WEIGHTS
    stored = _tensors(path)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
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
    path = run.checkpoints / name_of(step) / STATE
    try:
        saved: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from None
    return saved


def load_checkpoint(run: Run, step: int, model: Any, optimizer: Any) -> dict[str, Any]:
    """Restore weights and optimizer of a checkpoint that ``newest_whole`` verified; returns the state saved with them."""
    import torch

    _copy_weights(run, step, model)
    folder = run.checkpoints / name_of(step)
    parameters = dict(model.named_parameters())
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


def drop_unfinished(run: Run) -> None:
    """Remove what a process that was killed left half-written."""
    for path in run.checkpoints.glob(".step-*"):
        shutil.rmtree(path)


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

    parameters = [p for p in model.parameters() if p.requires_grad]
    sums = [torch.zeros_like(p, dtype=torch.double) for p in parameters]
    for step in steps:
        load_weights(run, step, model)
        for total, parameter in zip(sums, parameters, strict=True):
            total += parameter.detach()
    with torch.no_grad():
        for total, parameter in zip(sums, parameters, strict=True):
            parameter.copy_(total / len(steps))


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


def _damaged(path: Path, error: Exception | str) -> ModelError:
    return ModelError(
        f"this checkpoint cannot be read: {error}",
        place=str(path),
        remedy="remove its folder; --resume goes on from the one before",
    )
