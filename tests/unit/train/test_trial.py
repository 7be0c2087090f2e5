"""What is measured of a recipe's training loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lmkit.train.measurements import TrialFacts
from lmkit.train.trial import Trial

ROOM_FOR_ALL = 10**6


def trial_of(tiny: Any, recipe: Any) -> Trial:
    return Trial(recipe, tiny.splits(recipe), None)


def test_a_turn_counts_what_the_steps_read_and_goes_on_where_the_last_one_ended(tiny: Any) -> None:
    recipe = tiny.recipe("classification", train={"batch_size": 4})
    trial, encoded = trial_of(tiny, recipe), tiny.prepared(recipe).encoded["train"]
    epoch = [trial.turn(0, settle=0) for _ in range(3)]  # 10 rows: 4, 4 and 2
    assert [(turn.steps, turn.examples) for turn in epoch] == [(1, 4), (1, 4), (1, 2)]
    assert sum(turn.tokens for turn in epoch) == encoded.tokens
    assert all(
        turn.slots >= turn.tokens and 0 < turn.waited_seconds < turn.seconds for turn in epoch
    )
    assert trial.turn(0, settle=1).examples == 4  # one step of four was left out


def test_nothing_is_written(tiny: Any) -> None:
    recipe = tiny.recipe("mlm")
    trial_of(tiny, recipe).turn(0, settle=1)
    assert not Path(recipe.output).exists()


def test_other_micro_batches_are_those_that_would_be_cut_otherwise(tiny: Any) -> None:
    def facts(tokens: int) -> TrialFacts:
        return trial_of(tiny, tiny.recipe("mlm", hardware={"micro_batch_tokens": tokens})).facts()

    assert [tokens > 64 for tokens in facts(64).other_micro_batches] == [False, True]
    half_of_a_step = facts(ROOM_FOR_ALL).other_micro_batches
    assert [tokens < 4 * 32 for tokens in half_of_a_step] == [True]
    assert facts(1).examples_a_micro_batch == 1


def test_the_price_of_a_token_is_that_of_the_matrix_products(tiny: Any) -> None:
    """Counted by hand for bert-nano (2 layers, width 32, inner width 64), each text alone."""
    recipe = tiny.recipe("classification", hardware={"micro_batch_tokens": 64})
    encoded, labels = (
        tiny.prepared(recipe).encoded["train"],
        len(tiny.prepared(recipe).task.facts["labels"]),
    )
    width, inner, layers = 32, 64, 2
    forward = [
        layers
        * (length * 4 * width * width + 2 * length * length * width + 2 * length * width * inner)
        + width * width
        + width * labels
        for length in encoded.pieces.column("length")
    ]
    by_hand = (
        3 * 2 * sum(forward) / sum(encoded.pieces.column("length"))
    )  # backward twice the forward, 2 for a multiply-add
    assert trial_of(tiny, recipe).flops_per_token() == pytest.approx(by_hand, rel=1e-9)


def test_recomputing_does_not_raise_the_price(tiny: Any) -> None:
    prices = {
        trial_of(
            tiny, tiny.recipe("clm", hardware={"gradient_checkpointing": again})
        ).flops_per_token()
        for again in (False, True)
    }
    assert len(prices) == 1


def test_the_peak_is_that_of_a_product_of_matrices(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmkit.train.trial.SIDE", {"cpu": 64})
    assert trial_of(tiny, tiny.recipe("mlm")).matmul_peak(0) > 1e6
