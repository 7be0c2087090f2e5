"""Checkpoints: everything a run needs to go on, whole or absent, in safetensors and JSON alone, with their checksums.

Where processes have parts of the weights, each writes its rows into a file of its own. What is read is a range of rows of
a tensor, whatever files it lies in, so a checkpoint serves any number of processes, sharded or not. torch's own sharded
format is not used: it keeps its table of contents as a pickle.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lmkit import console
from lmkit.errors import ModelError, is_full
from lmkit.run import Run, atomic_directory, sync

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from lmkit.train.parallelism.base import Parallelism

WEIGHTS, MOMENTS, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
SUMS = "SHA256SUMS"  # in the form that ``sha256sum --check`` reads
Tensors = dict[str, Any]
T = TypeVar("T")


def part_of(name: str, rank: int, ranks: int) -> str:
    """Return the name of the file of one of several processes.

    >>> part_of("model.safetensors", 0, 2)
    'model-00001-of-00002.safetensors'
    """
    stem, _, ending = name.rpartition(".")
    return f"{stem}-{rank + 1:05d}-of-{ranks:05d}.{ending}"


def name_of(step: int) -> str:
    return f"step-{step:08d}"


def checkpoint_steps(run: Run) -> list[int]:
    """Return the steps of the checkpoints that are there, oldest first."""
    if not run.checkpoints.is_dir():
        return []
    names = [re.fullmatch(r"step-(\d{8,})", path.name) for path in run.checkpoints.iterdir()]
    return sorted(int(name[1]) for name in names if name)


def newest_whole(run: Run) -> int | None:
    """Return the step of the newest checkpoint whose files are intact; warn of damaged ones after it and leave them."""
    for step in reversed(checkpoint_steps(run)):
        try:
            verify(run, step)
        except ModelError as error:
            console.warn(f"{error.place}: {error.problem}; taking the checkpoint before")
            continue
        return step
    return None


def verify(run: Run, step: int, kinds: Collection[str] = (WEIGHTS, MOMENTS, STATE)) -> None:
    """Compare files of a checkpoint with the SHA-256 that was written beside them.

    Raises:
        ModelError: one is missing, truncated or changed.
    """
    folder = run.checkpoints / name_of(step)
    sums = _sums(folder)
    for name in [name for kind in kinds for name in _files(sums, kind)]:
        try:
            digest = _sha256(folder / name)
        except OSError as error:
            raise _damaged(folder / name, error) from None
        if digest != sums.get(name):
            raise _damaged(folder / name, "its content is not what was written (SHA-256)")


def _sums(folder: Path) -> dict[str, str]:
    """Read the SHA-256 of each file, as it was written."""
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
        return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    except (OSError, ValueError) as error:
        raise _damaged(folder / SUMS, error) from None


def _files(names: Collection[str], kind: str) -> list[str]:
    """Return the files that hold the tensors of a kind: one, or the parts of several processes in order."""
    stem, _, ending = kind.rpartition(".")
    matches = [re.fullmatch(rf"{stem}-\d{{5}}-of-(\d{{5}})\.{ending}", name) for name in names]
    ranks = max((int(match[1]) for match in matches if match), default=0)
    return [part_of(kind, rank, ranks) for rank in range(ranks)] or [kind]


def snapshot(
    model: Any, optimizer: Any, parallelism: Parallelism, *, copy: bool
) -> tuple[Tensors, Tensors]:
    """Return the trained weights and the optimizer state by name: the part that this process writes.

    Args:
        copy: copy the tensors to the CPU, so that training can go on while they are written.
    """
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    state = _optimizer_state(optimizer)
    moments = {
        f"{key}/{name}": value
        for name, p in model.named_parameters()
        for key, value in state.get(p, {}).items()
    }
    return (
        _on_cpu(weights, parallelism, copy=copy),
        _on_cpu(moments, parallelism, copy=copy),
    )


def _on_cpu(tensors: Tensors, parallelism: Parallelism, *, copy: bool) -> Tensors:
    import torch

    local: Tensors = {}
    for name, value in tensors.items():
        if not parallelism.keeps(value):
            continue
        if not isinstance(value, torch.Tensor):
            local[name] = torch.tensor(value)  # bitsandbytes counts steps in Python's numbers
            continue
        rows = parallelism.local(value.detach())
        stored = rows.cpu().contiguous()
        is_same = stored.data_ptr() == rows.data_ptr()
        # several parameters share small ones: the code tables of 8-bit moments
        is_copied = is_same and (copy or stored.numel() <= 256)
        local[name] = stored.clone() if is_copied else stored
    return local


def write_checkpoint(
    run: Run, step: int, weights: Tensors, moments: Tensors, state: dict[str, Any]
) -> Path:
    """Write weights, optimizer state and ``state`` aside with their checksums, then rename into place.

    The random state needs no saving: it is keyed on the step.
    """
    target = run.checkpoints / name_of(step)
    with atomic_directory(target) as folder:
        sums = [_save(weights, folder / WEIGHTS), _save(moments, folder / MOMENTS)]
        _write_state(folder, {"step": step, **state}, sums)
    return target


def write_parts(
    run: Run,
    step: int,
    weights: Tensors,
    moments: Tensors,
    state: dict[str, Any],
    group: ProcessGroup,
) -> Path:
    """Write a checkpoint by all processes together, each with its rows; where one fails, all do.

    Args:
        group: of all processes, which nothing else uses meanwhile.

    Raises:
        OSError: with ``ENOSPC`` where any process found the disk full.
    """
    target = run.checkpoints / name_of(step)
    is_first = group.rank() == 0
    with ExitStack() as stack:
        start = partial(stack.enter_context, atomic_directory(target))
        folder = _together(group, start if is_first else _nothing)[0]
        assert folder is not None
        sums = _together(group, partial(_write_part, folder, weights, moments, group))
        lines = [line for part in sums for line in part]
        finish = partial(_finish, stack, folder, {"step": step, **state}, lines)
        _together(group, finish if is_first else _nothing)
    return target


def _write_part(folder: Path, weights: Tensors, moments: Tensors, group: ProcessGroup) -> list[str]:
    """Write this process's rows; return their checksums."""
    lines = []
    for kind, tensors in ((WEIGHTS, weights), (MOMENTS, moments)):
        path = folder / part_of(kind, group.rank(), group.size())
        lines.append(_save(tensors, path))
        sync(path)  # the first process may be on another machine
    return lines


def _finish(stack: ExitStack, folder: Path, state: dict[str, Any], sums: list[str]) -> None:
    _write_state(folder, state, sums)
    stack.close()  # which renames the folder


def _nothing() -> None:
    return None


def _save(tensors: Tensors, path: Path) -> str:
    """Write tensors; return the line of their checksum."""
    from safetensors.torch import save_file

    save_file(tensors, path)
    return _sum_of(path)


def _write_state(folder: Path, state: dict[str, Any], sums: list[str]) -> None:
    """Write the state, and last the checksums of everything."""
    path = folder / STATE
    path.write_text(json.dumps(state), encoding="utf-8")
    (folder / SUMS).write_text("".join([*sums, _sum_of(path)]), encoding="utf-8")


def _sum_of(path: Path) -> str:
    return f"{_sha256(path)}  {path.name}\n"


def _together(group: ProcessGroup, work: Callable[[], T]) -> list[T]:
    """Return the results of each process's work; where one fails, all raise: the others ENOSPC for a full disk, else EIO."""
    import torch

    result, problem = None, None
    try:
        result = work()
    except Exception as error:
        problem = error
    outcomes: list[Any] = [None] * group.size()
    message = None if problem is None else (is_full(problem), str(problem))
    torch.distributed.all_gather_object(outcomes, (result, message), group=group)
    if problem is not None:
        raise problem
    for _, message in outcomes:
        if message is not None:
            raise OSError(errno.ENOSPC if message[0] else errno.EIO, message[1])
    return [result for result, _ in outcomes]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_weights(run: Run, step: int, model: Any, parallelism: Parallelism) -> None:
    """Verify a checkpoint's weights and copy them into the model, in place."""
    verify(run, step, (WEIGHTS,))
    _copy_weights(run, step, model, parallelism)


def _copy_weights(run: Run, step: int, model: Any, parallelism: Parallelism) -> None:
    import torch

    stored = Stored(run.checkpoints / name_of(step), WEIGHTS)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if stored.shapes != {name: list(p.shape) for name, p in parameters.items()}:
        raise _of_another_model(stored)
    with torch.no_grad():
        for name, parameter in parameters.items():
            rows = stored.read(name, parallelism.rows_of(parameter))
            parallelism.local(parameter).copy_(rows)


def _of_another_model(stored: Stored) -> ModelError:
    return ModelError(
        "the checkpoint is of another model",
        place=str(stored.place),
        remedy="the recipe's model changed; start anew with --overwrite",
    )


class Stored:
    """Tensors of a kind in a checkpoint, in the one file or the processes' parts that hold them.

    Attributes:
        place: the file, or the first of them.
        shapes: of the whole tensors, by name.

    Raises:
        ModelError: a file cannot be read.
    """

    def __init__(self, folder: Path, kind: str):
        from safetensors import SafetensorError, safe_open

        self.shapes: dict[str, list[int]] = {}
        self._files: dict[
            str, list[tuple[Any, int]]
        ] = {}  # tensor -> the files with some of its rows, and how many
        paths = [folder / name for name in _files(_sums(folder), kind)]
        self.place = paths[0]
        for path in paths:
            try:
                file: Any = safe_open(path, framework="pt")
                for name in file.keys():  # noqa: SIM118  # it is no mapping
                    shape = list(file.get_slice(name).get_shape())
                    self._files.setdefault(name, []).append((file, shape[0] if shape else 0))
                    if name in self.shapes:
                        self.shapes[name][0] += shape[0]
                    else:
                        self.shapes[name] = shape
            except (OSError, SafetensorError) as error:
                raise _damaged(path, error) from None

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Any:
        """Read a tensor, or a half-open range of its rows, on the CPU."""
        import torch

        files = self._files[name]
        if rows is None:
            return (
                torch.cat([file.get_tensor(name) for file, _ in files])
                if len(files) > 1
                else files[0][0].get_tensor(name)
            )
        return self._read_rows(name, rows)

    def _read_rows(self, name: str, rows: tuple[int, int]) -> Any:
        import torch

        parts: list[Any] = []
        start = 0
        for file, count in self._files[name]:
            first, last = max(rows[0] - start, 0), min(rows[1] - start, count)
            if first < last or not parts:  # of no rows the shape is wanted, too
                parts.append(file.get_slice(name)[first : max(first, last)])
            start += count
        return torch.cat(parts)


def load_state(run: Run, step: int) -> dict[str, Any]:
    """Read the state that was saved beside weights and moments.

    Raises:
        ModelError: it is missing or broken.
    """
    path = run.checkpoints / name_of(step) / STATE
    try:
        saved: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from None
    return saved


def load_checkpoint(
    run: Run, step: int, model: Any, optimizer: Any, parallelism: Parallelism
) -> None:
    """Restore weights and optimizer of a checkpoint that ``newest_whole`` verified."""
    import torch

    _copy_weights(run, step, model, parallelism)
    stored = Stored(run.checkpoints / name_of(step), MOMENTS)
    parameters = dict(model.named_parameters())
    state = _optimizer_state(optimizer)
    for key, shape in stored.shapes.items():
        kind, _, name = key.partition("/")
        parameter = parameters[name]
        rows = parallelism.rows_of(parameter) if shape == list(parameter.shape) else None
        value = stored.read(key, rows)
        if value.ndim == 0 and value.dtype == torch.int64:
            state[parameter][kind] = int(value)  # bitsandbytes counts steps in Python's numbers
            continue
        # AdamW keeps its step count on the CPU unless the kernel is fused on a GPU
        is_count = kind == "step" and parameter.device.type == "cpu"
        moved = value.clone() if is_count else value.to(parameter.device).clone()
        state[parameter][kind] = moved if rows is None else parallelism.like(moved, parameter)


def drop_old(run: Run, *, keep: int, best: int | None, also: Collection[int] = ()) -> None:
    """Remove all checkpoints but the last ``keep``, the best one, and those ``also`` needed."""
    steps = checkpoint_steps(run)
    for step in steps[: max(0, len(steps) - keep)]:
        if step != best and step not in also:
            shutil.rmtree(run.checkpoints / name_of(step))


def set_aside_after(run: Run, step: int) -> None:
    """Rename damaged checkpoints newer than ``step`` so that they are not picked up again."""
    for later in checkpoint_steps(run):
        if later > step:
            _set_aside(run.checkpoints / name_of(later))


def _set_aside(damaged: Path) -> None:
    aside = damaged.with_name(f"damaged-{damaged.name}")
    if aside.exists():
        shutil.rmtree(aside)
    damaged.rename(aside)
    console.warn(f"{damaged} is damaged, and now {aside.name}; nothing reads it, it may be removed")


def drop_unfinished(run: Run) -> None:
    """Remove what a process that was killed left half-written."""
    for path in [*run.checkpoints.glob(".step-*"), *run.path.glob(f".{run.model.name}.*")]:
        shutil.rmtree(path)


def averaged(
    steps: Sequence[int], number: int | None, *, every: int, last: int, best: int | None
) -> list[int]:
    """Choose the checkpoints that make the model: the newest ``number`` at evaluations, ending at the best one.

    Evaluations, and not checkpoints, since when these are written depends on the hardware and on interruptions.

    Args:
        every: steps from one evaluation to the next. last: the step that ends the run, which is evaluated too.
        best: the step that validation chose; None: the last one.

    >>> averaged([2, 3, 4, 6, 8, 9], 3, every=2, last=9, best=8)
    [4, 6, 8]
    """
    if not number:
        return []
    end = last if best is None else best
    evaluated = [step for step in steps if step % every == 0 or step == last]
    return [step for step in evaluated if step <= end][-number:]


def average_weights(run: Run, steps: Sequence[int], model: Any, parallelism: Parallelism) -> None:
    """Set the model to the mean of the checkpoints' weights (Vaswani et al. 2017, section 6.1), added up in double precision."""
    import torch

    parameters = [p for p in model.parameters() if p.requires_grad]
    sums = [torch.zeros_like(p, dtype=torch.double) for p in parameters]
    for step in steps:
        load_weights(run, step, model, parallelism)
        for total, parameter in zip(sums, parameters, strict=True):
            total += parameter.detach()
    with torch.no_grad():
        for total, parameter in zip(sums, parameters, strict=True):
            parameter.copy_(total / len(steps))


def _optimizer_state(optimizer: Any) -> Any:
    return getattr(optimizer, "optimizer", optimizer).state


def _damaged(path: Path, error: Exception | str) -> ModelError:
    return ModelError(
        f"this checkpoint cannot be read: {error}",
        place=str(path),
        remedy="remove its folder; --resume goes on from the one before",
    )
