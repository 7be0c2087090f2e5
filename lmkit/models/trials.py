"""Try something on the model at hand instead of believing its architecture: tolerance, errors, evaluation mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

TOLERANCE = 2e-5  # of the largest logit, in fp32: rounding makes 1e-6, a document that sees another at least 1e-4, even at random weights
TRIAL_ERRORS = (
    AssertionError,
    TypeError,
    ValueError,
    RuntimeError,
    IndexError,
    AttributeError,
    KeyError,
)  # of a model that is tried


@contextmanager
def in_evaluation(model: Any) -> Iterator[None]:
    """Without dropout while active."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
