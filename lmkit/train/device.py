"""What the run is computed on: processes, precision, micro-batch size."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from lmkit import console
from lmkit.errors import RecipeError
from lmkit.recipe.schema import Hardware
from lmkit.startup import importing

if TYPE_CHECKING:
    from accelerate import Accelerator


def native_bf16() -> bool:
    """Return whether this chip multiplies bf16 matrices natively: GPUs from Ampere on, CPUs with AMX or AVX512-BF16."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_capability()[0] >= 8
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def choose_precision(hardware: Hardware) -> str:
    """Return ``fp32``, ``bf16`` or ``fp16``; ``auto`` is decided by the chip.

    Raises:
        RecipeError: fp16 on a CPU, where it is neither fast nor safe.
    """
    import torch

    if hardware.precision == "fp16" and not torch.cuda.is_available():
        raise RecipeError(
            "fp16 needs a GPU", place="hardware.precision", remedy="auto, bf16 or fp32"
        )
    if hardware.precision == "auto":
        return "bf16" if native_bf16() else "fp32"
    return hardware.precision


def available_cores() -> int:
    """Count the cores that this process may use: fewer than it may run on where a control group limits its time (containers)."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    quota = cpu_quota()
    return cores if quota is None else max(1, min(cores, int(quota)))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Return the cores' worth of time that the control groups of this process, and those above them, leave it; None: no limit.

    Version 2 says ``cpu.max``, version 1 ``cpu.cfs_quota_us`` and ``cpu.cfs_period_us``.
    """
    limits = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        for level in (PurePosixPath(group), *PurePosixPath(group).parents):
            folder = mount / level.relative_to("/")
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            quota, period = _text(folder / "cpu.max").split() or (
                _text(folder / name).strip() for name in names
            )
            if quota.isdigit() and int(period) > 0:  # not "max", not -1
                limits.append(int(quota) / int(period))
    return min(limits, default=None)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def share_of_cores(processes: int | None = None) -> int:
    """Return the cores for each of so many processes on this machine; None: as many as a launcher started here."""
    return max(1, available_cores() // (processes or int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def _limit_threads() -> None:
    """No more threads than there are cores for: torch counts those of the machine, and threads that wait for each other
    stand still together when a container's time is used up. OMP_NUM_THREADS is the user's, or the launcher's, word.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return
    import torch

    threads = share_of_cores()
    if threads < torch.get_num_threads():
        torch.set_num_threads(threads)


@contextmanager
def left_as_it_is() -> Iterator[None]:
    """Give the process its environment, threads and random numbers back, unless it is the command's own.

    Accelerate and ``build_accelerator`` set the first two for what is computed by this process; some models draw
    weights before theirs are loaded.
    """
    if console.owns_process():
        yield
        return
    import torch

    environment, threads, drawn = dict(os.environ), torch.get_num_threads(), torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_rng_state(drawn)
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)


def build_accelerator(
    hardware: Hardware, *, trackers: list[str] | None = None, folder: str | None = None
) -> Accelerator:
    """Build Accelerate's object with this precision, for the processes that were started.

    Raises:
        RecipeError: not as many processes run as ``hardware.processes`` asks for, or a tracker is not installed.
    """
    with importing():
        import torch
        import transformers.modeling_utils  # noqa: F401  # of all models
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

    _refuse_foreign_sharding()
    if not torch.cuda.is_available():
        os.environ.setdefault(
            "ACCELERATE_USE_CPU", "true"
        )  # Apple's chips have no float64, which sums are kept in
    precision = choose_precision(hardware)
    mixed = "no" if precision == "fp32" else precision
    if AcceleratorState._shared_state.get("_mixed_precision", mixed) != mixed:
        AcceleratorState._reset_state()  # an earlier run of this Python process had another one
    try:
        with _without_accelerates_sharding():
            accelerator = Accelerator(
                mixed_precision=mixed, log_with=trackers or None, project_dir=folder
            )
    except ValueError as error:
        raise _not_started(error, trackers) from None
    _limit_threads()  # after Accelerate, which has a number of its own
    if accelerator.device.type == "cpu" and console.owns_process():
        from lmkit.models.memory import keep_freed_memory

        keep_freed_memory()
    if hardware.processes not in ("auto", accelerator.num_processes):
        raise _another_number(accelerator.num_processes, hardware)
    return accelerator


def _not_started(error: ValueError, trackers: list[str] | None) -> RecipeError:
    return RecipeError(
        str(error).split("\n")[0],
        place="logging.to" if trackers else "hardware",
        remedy="install the tracker, or leave it out",
    )


def _another_number(processes: int, hardware: Hardware) -> RecipeError:
    return RecipeError(
        f"{processes} processes run, not {hardware.processes}",
        place="hardware.processes",
        remedy="start lmkit without a launcher and it starts them itself, or give the launcher the same number",
    )


_ON = ("1", "true", "yes", "y", "t", "on")
# ways to spread a model that lmkit does not have, and the variables that ask for them
_FOREIGN = {
    "DeepSpeed": "ACCELERATE_USE_DEEPSPEED",
    "Megatron-LM": "ACCELERATE_USE_MEGATRON_LM",
    "tensor parallelism": "ACCELERATE_USE_PARALLELISM_CONFIG",
}


def _asks_for(variable: str) -> bool:
    """Return whether an Accelerate configuration asks for something: it reaches the processes as environment variables."""
    return os.environ.get(variable, "false").lower() in _ON


def asks_to_shard() -> bool:
    """Return whether the Accelerate configuration asks for FSDP."""
    return _asks_for("ACCELERATE_USE_FSDP")


def _refuse_foreign_sharding() -> None:
    """Refuse settings of an Accelerate configuration that lmkit does not do: training would go on without them."""
    for name, variable in _FOREIGN.items():
        if _asks_for(variable):
            raise _foreign(name)
    if asks_to_shard():
        _check_fsdp()


def _foreign(name: str) -> RecipeError:
    return RecipeError(
        f"the Accelerate configuration asks for {name}, and lmkit shards by FSDP2 alone",
        place="accelerate launch",
        remedy="recipes/accelerate/fsdp.yaml, or distributed_type: MULTI_GPU; docs/scale.md says what each costs",
    )


def _check_fsdp() -> None:
    """Refuse FSDP 1, and what lmkit does not do of FSDP2."""
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise RecipeError("FSDP 1 is not supported", place="fsdp_config.fsdp_version", remedy="2")
    for key, remedy in (
        (
            "offload_params",
            "false; train.optimizer, lora and hardware.gradient_checkpointing save memory too",
        ),
        (
            "activation_checkpointing",
            "false, and hardware.gradient_checkpointing: true in the recipe",
        ),
    ):
        if _asks_for(f"FSDP_{key.upper()}"):
            raise RecipeError(
                "lmkit does not do this", place=f"fsdp_config.fsdp_{key}", remedy=remedy
            )


@contextmanager
def _without_accelerates_sharding() -> Iterator[None]:
    """Keep Accelerate from preparing models for its own FSDP; see lmkit/train/parallelism/fsdp.py."""
    asked = os.environ.pop("ACCELERATE_USE_FSDP", None)
    try:
        yield
    finally:
        if asked is not None:
            os.environ["ACCELERATE_USE_FSDP"] = asked
            # else transformers would leave the weights to the first process
            os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"


def device_name(device: Any) -> str:
    """Return the GPU's name, or the kind of another device."""
    import torch

    name: str = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return name


def wait_for_device(device: Any) -> None:
    """Return when the device has computed everything that it was given."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize()


def micro_batch_tokens(hardware: Hardware, device: Any) -> int:
    """Return the tokens of one forward pass on one device, before any are tried; it does not change what is learned."""
    if hardware.micro_batch_tokens != "auto":
        return hardware.micro_batch_tokens
    return 16384 if device.type == "cuda" else 4096


def peak_memory_bytes() -> int:
    """Return the peak of this process so far: on the GPU where there is one, else resident memory."""
    import resource
    import sys

    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )
