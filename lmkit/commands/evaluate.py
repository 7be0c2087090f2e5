"""``lmkit eval``: a run, a model directory or a hub id, on a split -> metrics with intervals and predictions."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lmkit.errors import LmkitError
from lmkit.recipe import Recipe
from lmkit.subject import find_subject

if TYPE_CHECKING:
    from lmkit.records import Metrics


def evaluate(
    source: str | Path | Mapping[str, object] | Recipe,
    overrides: Sequence[str] = (),
    *,
    output: str | None = None,
    limited: Collection[str] = (),
) -> Metrics | None:
    """Evaluate on ``data.test``, or where there is none on ``data.validation``, and say which.

    Args:
        source: a run, a model directory, a hub id; or a recipe, whose run is evaluated where it exists
            and whose ``model.base`` as it stands otherwise.
        limited: the metrics that ``--fail-under`` names.

    Returns:
        The content of metrics.json; None on all ranks but the first.
    """
    from lmkit.flow.evaluation import evaluate_subject

    return evaluate_subject(find_subject(source, overrides, output=output), limited=limited)


def thresholds(given: Sequence[str], *, strict: bool = False) -> dict[str, float]:
    """Read the ``METRIC=NUMBER`` arguments of ``--fail-under``.

    Raises:
        LmkitError: one is not of that form; or there is none to be strict about.
    """
    if strict and not given:
        raise LmkitError(
            "--strict has no effect without --fail-under",
            remedy="for example --fail-under f1=0.42 --strict",
        )
    limits = {}
    for entry in given:
        name, _, number = entry.partition("=")
        try:
            limits[name] = float(number)
        except ValueError:
            raise LmkitError(
                f"{entry!r} is not METRIC=NUMBER",
                place="--fail-under",
                remedy="for example --fail-under f1=0.42",
            ) from None
    return limits


def failures(metrics: Metrics, limits: Mapping[str, float], *, strict: bool) -> list[str]:
    """Say what keeps an evaluation from passing; nothing where it passes.

    Args:
        limits: what a metric has to reach; a loss, or any other of which less is better, must not exceed it.
        strict: the worse end of the interval has to.

    Raises:
        LmkitError: no such metric, or no interval to be strict about.
    """
    from lmkit.flow.evaluation import check_limited
    from lmkit.tasks.direction import lower_is_better

    reasons = []
    check_limited(limits, {"loss", *metrics.metrics})
    for name, limit in limits.items():
        interval = metrics.interval(name).to_json()
        is_loss = lower_is_better(name)
        bound = "high" if is_loss else "low"
        value = interval[bound] if strict else interval["value"]
        if value is None and strict and interval["value"] is not None:
            raise LmkitError(
                f"{name} has no interval",
                place="--strict",
                remedy="leave it out, or eval.resamples=1000",
            )
        if value is None or (value > limit if is_loss else value < limit):
            end = f" ({'upper' if is_loss else 'lower'} end of the interval)" if strict else ""
            shown = "undefined" if value is None else f"{value:.4f}"
            reasons.append(f"{name} is {shown}{end}, {'over' if is_loss else 'under'} {limit:g}")
    return reasons
