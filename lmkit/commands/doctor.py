"""``lmkit doctor``: versions, devices and offline state."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lmkit import console
from lmkit.data.splits import cache_folder
from lmkit.models.source import is_offline
from lmkit.run import versions


@dataclass(frozen=True)
class Gpu:
    """A graphics card."""

    name: str
    memory_bytes: int


@dataclass(frozen=True)
class DoctorReport:
    """Everything of this machine that decides how lmkit runs on it."""

    versions: Mapping[str, str]
    cores: int
    torch_threads: int
    cpu_capability: str
    gpus: list[Gpu]
    native_bf16: bool
    precision_auto: str
    kernels: Mapping[str, str]
    offline: bool
    cache: str
    free_disk_bytes: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def to_text(self) -> str:
        rows = []
        for name, value in self.to_json().items():
            if isinstance(value, dict):
                value = ", ".join(f"{key} {entry}" for key, entry in value.items())
            rows.append([name, value])
        return console.table(["what", "found"], rows)


def doctor() -> DoctorReport:
    """Examine this machine."""
    import torch

    from lmkit.recipe.schema import Hardware
    from lmkit.train.device import available_cores, choose_precision, native_bf16

    cache = cache_folder()
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    gpus = []
    for number in range(torch.cuda.device_count()):
        memory = torch.cuda.get_device_properties(number).total_memory
        gpus.append(Gpu(torch.cuda.get_device_name(number), memory))
    installed = versions()
    kernels = ("flash-attn", "liger-kernel")
    return DoctorReport(
        versions=installed,
        cores=available_cores(),
        torch_threads=torch.get_num_threads(),
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        gpus=gpus,
        native_bf16=native_bf16(),
        precision_auto=choose_precision(Hardware()),
        kernels={name: installed.get(name, "not installed") for name in kernels},
        offline=is_offline(),
        cache=str(cache),
        free_disk_bytes=shutil.disk_usage(existing).free,
    )
