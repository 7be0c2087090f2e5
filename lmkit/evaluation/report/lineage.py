"""The runs that a run comes from, as far as they are still there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lmkit.records import Interval, Metrics
from lmkit.run import Run
from lmkit.tasks.registry import headline

MOST = 10


@dataclass(frozen=True)
class Result:
    """The headline metric of a run on a split."""

    metric: str
    interval: Interval
    split: str


@dataclass(frozen=True)
class Parent:
    """An ancestor: its folder's name, its task, and its metrics by split."""

    name: str
    task: str
    metrics: dict[str, Metrics]

    @property
    def result(self) -> Result | None:
        """Return the headline metric on the test split, or else the validation split."""
        for split in ("test", "validation"):
            if split in self.metrics:
                metrics = self.metrics[split].metrics
                name = headline(self.task, metrics)
                return Result(name, metrics[name], split)
        return None


def manifest_of(run: Run | None) -> dict[str, Any]:
    """Return manifest.json of a run; empty where there is none or it cannot be read."""
    try:
        return run.manifest if run is not None else {}
    except (OSError, ValueError):
        return {}


def parents(run: Run | None) -> list[Parent]:
    """Return the parent of a run, its parent, and so on."""
    ancestors: list[Parent] = []
    seen = set()
    while (place := manifest_of(run).get("parent")) and place not in seen and len(ancestors) < MOST:
        seen.add(place)
        run = Run(place)
        manifest = manifest_of(run)
        ancestors.append(Parent(run.path.name, str(manifest.get("task", "gone")), _metrics(run)))
    return ancestors


def _metrics(run: Run) -> dict[str, Metrics]:
    measured = {}
    for split in ("test", "validation"):
        try:
            metrics = Metrics.from_json(run.metrics(split))
        except (OSError, ValueError, TypeError, KeyError):
            continue
        if metrics.metrics:
            measured[split] = metrics
    return measured
