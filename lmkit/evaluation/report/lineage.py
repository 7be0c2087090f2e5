"""The runs that a run comes from, as far as they are still there."""

from __future__ import annotations

from dataclasses import dataclass

from lmkit.records import Interval, Manifest, Metrics
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


def manifest_of(run: Run | None) -> Manifest | None:
    """Return manifest.json of a run; None where there is none or it cannot be read."""
    try:
        return Manifest.from_json(run.manifest) if run is not None else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def parents(run: Run | None) -> list[Parent]:
    """Return the parent of a run, its parent, and so on."""
    ancestors: list[Parent] = []
    seen = set()
    manifest = manifest_of(run)
    while manifest is not None and manifest.parent and len(ancestors) < MOST:
        if manifest.parent in seen:
            break
        seen.add(manifest.parent)
        parent = Run(manifest.parent)
        manifest = manifest_of(parent)
        task = manifest.task if manifest is not None else "gone"
        ancestors.append(Parent(parent.path.name, task, _metrics(parent)))
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
