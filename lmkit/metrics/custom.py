"""Metrics that a recipe brings along: modules of the ``evaluate`` library, by local path, hub id, or shipped with lmkit."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
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
    """What ``evaluate.load`` takes: one of lmkit's own, a file or folder, or a hub id. Nothing is loaded.

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
        shipped = sorted(each.name for each in SHIPPED.iterdir() if each.name.startswith("lmkit_"))
        close = nearest(name, shipped)
        raise RecipeError(
            "no such module here; on the hub it would be code to run"
            + (f"; did you mean {close}?" if close else ""),
            place=f"eval.metrics: {name}",
            remedy=f"name a local one, one of lmkit's ({', '.join(shipped)}), or allow the hub's with model.trust_remote_code=true",
        )
    return name


def custom_metrics(
    names: Sequence[str],
    predictions: Sequence[Any],
    references: Sequence[Any],
    *,
    labels: Sequence[str] = (),
    taken: Sequence[str] = (),
    trust_remote_code: bool = False,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 13,
) -> dict[str, tuple[Interval, Module]]:
    """The numbers that modules of the evaluate library give, by their keys (``module.key`` where a key is taken).

    Intervals come from at most ``MOST_RESAMPLES`` percentile-bootstrap resamples of the examples; there are none for a
    module that would need more than ``MOST_SECONDS`` for them, and that is said.

    Args:
        labels: a module that wants numbers gets the places of labels in this list.

    Raises:
        RecipeError: a module cannot be loaded, or refuses these predictions.
    """
    found: dict[str, tuple[Interval, Module]] = {}
    for name in names:
        place = find_module(name, trust_remote_code=trust_remote_code)
        module = _load(place, name)
        inputs = [
            _fitted(values, module, key, labels)
            for key, values in (("predictions", predictions), ("references", references))
        ]
        begun = time.perf_counter()
        values = _compute(module, inputs, name)
        resampled = _resampled(
            module,
            inputs,
            name,
            values,
            min(resamples, MOST_RESAMPLES),
            seed,
            time.perf_counter() - begun,
        )
        for key, value in values.items():
            bounds = percentiles(resampled[key], confidence) if key in resampled else (None, None)
            shown = key if key not in found and key not in taken else f"{Path(name).stem}.{key}"
            found[shown] = (
                Interval(value, *bounds),
                Module(str(Path(place).resolve()) if Path(place).exists() else name, key),
            )
    return found


def custom_statistics(
    metric: str,
    chosen: Module,
    predictions: Sequence[Any],
    references: Sequence[Any],
    *,
    labels: Sequence[str] = (),
    trust_remote_code: bool = False,
) -> Statistics:
    """A module's number as statistics: an example's are how often it was drawn, and the module is called for every resample.

    Raises:
        RecipeError: the module is not there, refuses these predictions, or there are more than ``MOST_EXAMPLES``.
    """
    examples = len(predictions)
    if examples > MOST_EXAMPLES:
        raise RecipeError(
            f"{examples} examples, and a module's numbers are compared on {MOST_EXAMPLES} at most",
            place=f"--metric {metric}",
            remedy="compare one of lmkit's own metrics",
        )
    module = _load(find_module(chosen.module, trust_remote_code=trust_remote_code), chosen.module)
    columns = [
        _fitted(values, module, key, labels)
        for key, values in (("predictions", predictions), ("references", references))
    ]

    def metrics(sums: FloatArray) -> dict[str, FloatArray]:
        values = []
        for times in sums.reshape(-1, examples):
            drawn = np.repeat(np.arange(examples), times.astype(int)).tolist()
            values.append(
                _compute(
                    module, [[column[i] for i in drawn] for column in columns], chosen.module
                ).get(chosen.key)
            )
        return {metric: np.array(values, np.float64).reshape(sums.shape[:-1])}

    return Statistics(np.eye(examples), metrics)


def _load(place: str, name: str) -> Any:
    import evaluate

    try:
        return evaluate.load(place, module_type="metric", keep_in_memory=True)
    except Exception as error:  # whatever a module of the user's does
        raise RecipeError(
            f"cannot be loaded: {_said(error)}", place=f"eval.metrics: {name}"
        ) from error


def _compute(module: Any, inputs: Sequence[list[Any]], name: str) -> dict[str, float]:
    """The scalars among what a module returns."""
    try:
        returned = module.compute(predictions=inputs[0], references=inputs[1])
    except Exception as error:
        raise RecipeError(
            f"refuses these predictions: {_said(error)}", place=f"eval.metrics: {name}"
        ) from error
    numbers = (int, float, np.number)
    return {
        key: float(value)
        for key, value in returned.items()
        if isinstance(value, numbers) and not isinstance(value, bool)
    }


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:400] or type(error).__name__


def _resampled(
    module: Any,
    inputs: list[list[Any]],
    name: str,
    values: dict[str, float],
    resamples: int,
    seed: int,
    seconds: float,
) -> dict[str, FloatArray]:
    examples = len(inputs[0])
    if not resamples or examples < 2:
        return {}
    if seconds * resamples > MOST_SECONDS:
        console.say(f"eval.metrics: {name} takes {seconds:.1f} s, so it has no intervals")
        return {}
    generator, found = np.random.Generator(np.random.Philox(seed)), []
    for _ in range(resamples):
        drawn = generator.integers(examples, size=examples).tolist()
        found.append(_compute(module, [[column[i] for i in drawn] for column in inputs], name))
    return {key: np.array([each.get(key, math.nan) for each in found]) for key in values}


def _fitted(values: Sequence[Any], module: Any, key: str, labels: Sequence[str]) -> list[Any]:
    """Predictions or references as the module declares them: labels as numbers, a reference as a list of one."""
    features = module.features[0] if isinstance(module.features, list) else module.features
    wanted, sample = features.get(key), next(iter(values), None)
    dtype = str(getattr(wanted, "dtype", None) or "")
    if isinstance(sample, str) and wanted is not None:
        if dtype.startswith(("int", "float")):
            numbers = {label: number for number, label in enumerate(labels)}
            return [numbers[value] for value in values]
        if not dtype:  # a list of references
            return [[value] for value in values]
    return list(values)
