"""Metrics that a recipe brings along: modules of the ``evaluate`` library, by local path, hub id, or shipped with lmkit."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lmkit import console
from lmkit.errors import RecipeError, nearest
from lmkit.metrics.intervals import percentiles
from lmkit.metrics.statistics import FloatArray, Statistics
from lmkit.records import Interval

SHIPPED = Path(__file__).with_name("modules")
MOST_RESAMPLES, MOST_SECONDS = 200, 60  # every resample calls the module anew
MOST_EXAMPLES = 5000  # that are compared: each has a column of its own


@dataclass(frozen=True)
class Module:
    """Where a number comes from: a module of the evaluate library, and the key of what it returns."""

    module: str
    key: str


def find_module(name: str, *, trust_remote_code: bool) -> str:
    """Return what ``evaluate.load`` takes: one of lmkit's own, a file or folder, or a hub id. Nothing is loaded.

    Raises:
        RecipeError: nothing local is there, and code from the hub is not trusted.
    """
    if (SHIPPED / name).is_dir():
        return str(SHIPPED / name)
    path = Path(name).expanduser()
    script = path if path.suffix == ".py" else path / f"{path.name}.py"
    if script.is_file():
        return str(script)
    if path.is_dir():
        raise RecipeError(
            f"no {script.name} in this folder",
            place=f"eval.metrics: {name}",
            remedy="a module's file is named like its folder",
        )
    if path.suffix == ".py" or name.count("/") > 1 or name.startswith((".", "~")):
        raise RecipeError(
            "no such file or folder",
            place=f"eval.metrics: {name}",
            remedy="give the path of a module of the evaluate library",
        )
    if not trust_remote_code:
        shipped = sorted(path.name for path in SHIPPED.glob("lmkit_*"))
        close = nearest(name, shipped)
        raise RecipeError(
            "no such module here; on the hub it would be code to run"
            + (f"; did you mean {close}?" if close else ""),
            place=f"eval.metrics: {name}",
            remedy=f"name a local one, one of lmkit's ({', '.join(shipped)}), or allow the hub's with model.trust_remote_code=true",
        )
    return name


@dataclass(frozen=True)
class Examples:
    """What modules measure.

    Args:
        predictions, references: ``(examples,)``.
        labels: a module that wants numbers gets the places of labels in this list.
        trust_remote_code: modules may come from the hub.
    """

    predictions: Sequence[Any]
    references: Sequence[Any]
    labels: Sequence[str] = ()
    trust_remote_code: bool = False


@dataclass(frozen=True)
class _Loaded:
    """A module with the examples as it wants them: predictions and references."""

    name: str
    place: str
    module: Any
    inputs: tuple[list[Any], list[Any]]

    def compute(self, rows: Sequence[int] | None = None) -> dict[str, float]:
        """Return the scalars among what the module returns, of all examples or of some rows."""
        inputs: Sequence[list[Any]] = self.inputs
        if rows is not None:
            inputs = [[column[row] for row in rows] for column in self.inputs]
        try:
            returned = self.module.compute(predictions=inputs[0], references=inputs[1])
        except Exception as error:
            raise RecipeError(
                f"refuses these predictions: {_said(error)}", place=f"eval.metrics: {self.name}"
            ) from error
        numbers = (int, float, np.number)
        return {
            key: float(value)
            for key, value in returned.items()
            if isinstance(value, numbers) and not isinstance(value, bool)
        }


def custom_metrics(
    names: Sequence[str],
    examples: Examples,
    *,
    taken: Sequence[str] = (),
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 13,
) -> dict[str, tuple[Interval, Module]]:
    """Return the numbers that modules of the evaluate library give, by their keys (``module.key`` where a key is taken).

    Intervals come from at most ``MOST_RESAMPLES`` percentile-bootstrap resamples of the examples; there are none for a
    module that would need more than ``MOST_SECONDS`` for them, and that is said.

    Raises:
        RecipeError: a module cannot be loaded, or refuses these predictions.
    """
    metrics: dict[str, tuple[Interval, Module]] = {}
    for name in names:
        loaded = _load(name, examples)
        started = time.perf_counter()
        values = loaded.compute()
        seconds = time.perf_counter() - started
        resampled = _resample(loaded, values, min(resamples, MOST_RESAMPLES), seed, seconds)
        place = Path(loaded.place)
        module = str(place.resolve()) if place.exists() else name
        for key, value in values.items():
            bounds = percentiles(resampled[key], confidence) if key in resampled else (None, None)
            is_taken = key in metrics or key in taken
            shown = f"{Path(name).stem}.{key}" if is_taken else key
            metrics[shown] = Interval(value, *bounds), Module(module, key)
    return metrics


def custom_statistics(metric: str, chosen: Module, examples: Examples) -> Statistics:
    """Return a module's number as statistics: an example's are how often it was drawn, and every resample calls the module.

    Raises:
        RecipeError: the module is not there, refuses these predictions, or there are more than ``MOST_EXAMPLES``.
    """
    count = len(examples.predictions)
    if count > MOST_EXAMPLES:
        raise RecipeError(
            f"{count} examples, and a module's numbers are compared on {MOST_EXAMPLES} at most",
            place=f"--metric {metric}",
            remedy="compare one of lmkit's own metrics",
        )
    loaded = _load(chosen.module, examples)

    def metrics(sums: FloatArray) -> dict[str, FloatArray]:
        values = []
        for times in sums.reshape(-1, count):
            drawn = np.repeat(np.arange(count), times.astype(int)).tolist()
            values.append(loaded.compute(drawn).get(chosen.key))
        return {metric: np.array(values, np.float64).reshape(sums.shape[:-1])}

    return Statistics(np.eye(count), metrics)


def _load(name: str, examples: Examples) -> _Loaded:
    import evaluate

    place = find_module(name, trust_remote_code=examples.trust_remote_code)
    try:
        module = evaluate.load(place, module_type="metric", keep_in_memory=True)
    except Exception as error:  # whatever a module of the user's does
        raise RecipeError(
            f"cannot be loaded: {_said(error)}", place=f"eval.metrics: {name}"
        ) from error
    inputs = (
        _fit(examples.predictions, module, "predictions", examples.labels),
        _fit(examples.references, module, "references", examples.labels),
    )
    return _Loaded(name, place, module, inputs)


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:400] or type(error).__name__


def _resample(
    loaded: _Loaded, values: Mapping[str, float], resamples: int, seed: int, seconds: float
) -> dict[str, FloatArray]:
    """Return each value in each resample; nothing where that takes too long.

    Args:
        seconds: that the module took for all examples.
    """
    examples = len(loaded.inputs[0])
    if not resamples or examples < 2:
        return {}
    if seconds * resamples > MOST_SECONDS:
        console.say(f"eval.metrics: {loaded.name} takes {seconds:.1f} s, so it has no intervals")
        return {}
    generator = np.random.Generator(np.random.Philox(seed))
    resampled = []
    for _ in range(resamples):
        drawn = generator.integers(examples, size=examples).tolist()
        resampled.append(loaded.compute(drawn))
    return {key: np.array([of_one.get(key, math.nan) for of_one in resampled]) for key in values}


def _fit(values: Sequence[Any], module: Any, key: str, labels: Sequence[str]) -> list[Any]:
    """Return predictions or references as the module declares them: labels as numbers, a reference as a list of one."""
    features = module.features[0] if isinstance(module.features, list) else module.features
    feature, sample = features.get(key), next(iter(values), None)
    if not isinstance(sample, str) or feature is None:
        return list(values)
    dtype = str(getattr(feature, "dtype", None) or "")
    if dtype.startswith(("int", "float")):
        numbers = {label: number for number, label in enumerate(labels)}
        return [numbers[value] for value in values]
    if not dtype:  # a list of references
        return [[value] for value in values]
    return list(values)
