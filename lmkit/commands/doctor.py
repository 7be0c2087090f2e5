"""``lmkit doctor``: versions, devices and offline state."""

from __future__ import annotations

import shutil
from typing import Any

from lmkit import console
from lmkit.data.splits import cache_folder
from lmkit.models.source import is_offline
from lmkit.run import versions


def doctor() -> dict[str, Any]:
    """What this machine has that decides how lmkit runs on it."""
    import torch

    from lmkit.recipe.schema import Hardware
    from lmkit.train.device import available_cores, choose_precision, native_bf16

    cache = cache_folder()
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    gpus = [
        {
            "name": torch.cuda.get_device_name(i),
            "memory_bytes": torch.cuda.get_device_properties(i).total_memory,
        }
        for i in range(torch.cuda.device_count())
    ]
    found = versions()
    return {
        "versions": found,
        "cores": available_cores(),
        "torch_threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpus": gpus,
        "native_bf16": native_bf16(),
        "precision_auto": choose_precision(Hardware()),
        "kernels": {
            name: found.get(name, "not installed") for name in ("flash-attn", "liger-kernel")
        },
        "offline": is_offline(),
        "cache": str(cache),
        "free_disk_bytes": shutil.disk_usage(existing).free,
    }


def report_table(report: dict[str, Any]) -> str:
    """Show the report for people."""
    rows = [
        [key, ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value]
        for key, value in report.items()
    ]
    return console.table(["what", "found"], rows)
