"""The runs that a run comes from, as far as they are still there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lmkit.run import Run

MOST = 10


@dataclass(frozen=True)
class Parent:
    """An ancestor: its folder's name, its task, and the content of metrics.json by split."""

    name: str
    task: str
    metrics: dict[str, dict[str, Any]]


def manifest_of(run: Run | None) -> dict[str, Any]:
    """manifest.json of a run; empty where there is none or it cannot be read."""
    try:
        return run.manifest if run is not None else {}
    except (OSError, ValueError):
        return {}


def parents(run: Run | None) -> list[Parent]:
    """The parent of a run, its parent, and so on."""
    found: list[Parent] = []
    seen = set()
    while (place := manifest_of(run).get("parent")) and place not in seen and len(found) < MOST:
        seen.add(place)
        run = Run(place)
        manifest = manifest_of(run)
        found.append(Parent(run.path.name, str(manifest.get("task", "gone")), _metrics(run)))
    return found


def _metrics(run: Run) -> dict[str, dict[str, Any]]:
    found = {}
    for split in ("test", "validation"):
        try:
            found[split] = run.metrics(split)
        except (OSError, ValueError):
            continue
    return {
        split: metrics
        for split, metrics in found.items()
        if isinstance(metrics.get("metrics"), dict) and metrics["metrics"]
    }
