"""Which rows make each step: every example of every epoch once, wherever it is computed."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable
from itertools import chain, combinations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lmkit.data.plan import PASS, Plan, deal, fill, micro_batches, rows_to_share

LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=40)


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 3))
def test_every_example_of_every_epoch_contributes_once(
    num_examples: int, batch_size: int, epoch: int
) -> None:
    plan = Plan(num_examples, batch_size, seed=13)
    first = epoch * plan.steps_per_epoch
    steps = [plan.examples(step).tolist() for step in range(first, first + plan.steps_per_epoch)]
    assert sorted(chain.from_iterable(steps)) == list(range(num_examples))
    assert all(len(step) == batch_size for step in steps[:-1])


def test_the_last_step_of_an_epoch_takes_what_is_left() -> None:
    plan = Plan(num_examples=10, batch_size=4, seed=13)
    assert plan.steps_per_epoch == 3
    assert [len(plan.examples(step)) for step in range(6)] == [4, 4, 2, 4, 4, 2]
    assert [plan.position(step) for step in (0, 2, 3, 7)] == [(0, 0), (0, 2), (1, 0), (2, 1)]


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    plan = Plan(num_examples=20, batch_size=4, seed=13)
    assert (
        plan.examples(7).tolist()
        == Plan(num_examples=20, batch_size=4, seed=13).examples(7).tolist()
    )
    assert plan.order(0).tolist() == Plan(num_examples=20, batch_size=5, seed=13).order(0).tolist()
    assert plan.order(0).tolist() != plan.order(1).tolist()
    assert plan.order(0).tolist() != Plan(num_examples=20, batch_size=4, seed=14).order(0).tolist()
    assert plan.examples(7, plan.order(1)).tolist() == plan.examples(7).tolist()


@given(LENGTHS, st.integers(1, 5), st.integers(0, 3))
def test_steps_of_alike_length_hold_every_example_once(
    lengths: list[int], batch_size: int, epoch: int
) -> None:
    sides = np.array([lengths, lengths[::-1]]).T
    plan = Plan(len(lengths), batch_size, seed=13, lengths=sides)
    assert sorted(plan.order(epoch).tolist()) == list(range(len(lengths)))
    assert (
        plan.order(epoch).tolist()
        == Plan(len(lengths), batch_size, seed=13, lengths=sides).order(epoch).tolist()
    )


def test_a_step_of_alike_length_takes_its_neighbours_by_length_and_steps_come_in_random_order() -> (
    None
):
    lengths = np.arange(100)[::-1].copy()
    plan = Plan(100, 10, seed=13, lengths=lengths[:, None])
    steps = [sorted(lengths[plan.examples(step)].tolist()) for step in range(10)]
    assert sorted(steps) == [list(range(start, start + 10)) for start in range(0, 100, 10)]
    assert steps != sorted(steps)
    assert steps != [sorted(lengths[plan.examples(step)].tolist()) for step in range(10, 20)]


def test_a_step_of_alike_length_is_alike_on_both_sides() -> None:
    sides = np.array(
        [(source, target) for source in (1, 9) for target in (1, 9)] * 4
    )  # of one sum: (1, 9) and (9, 1)
    plan = Plan(16, 4, seed=13, lengths=sides)
    assert all(len(np.unique(sides[plan.examples(step)], axis=0)) == 1 for step in range(4))


@given(LENGTHS, st.integers(1, 5))
def test_dealing_gives_each_example_to_one_rank(lengths: list[int], ranks: int) -> None:
    parts = deal(np.arange(len(lengths)), np.array(lengths), ranks)
    assert len(parts) == ranks
    assert sorted(chain.from_iterable(part.tolist() for part in parts)) == list(range(len(lengths)))
    loads = [sum(lengths[i] for i in part) for part in parts]
    assert max(loads) - min(loads) <= max(lengths)


@given(LENGTHS, st.integers(1, 200))
def test_micro_batches_hold_each_example_once_within_the_budget(
    lengths: list[int], budget: int
) -> None:
    parts = [
        part.tolist() for part in micro_batches(np.arange(len(lengths)), np.array(lengths), budget)
    ]
    assert sorted(chain.from_iterable(parts)) == list(range(len(lengths)))
    for part in parts:
        assert len(part) == 1 or len(part) * max(lengths[i] for i in part) <= budget


def test_micro_batches_put_alike_lengths_together() -> None:
    parts = micro_batches(np.arange(6), np.array([9, 1, 8, 2, 9, 1]), 27)
    assert [part.tolist() for part in parts] == [[1, 5, 3], [2, 0, 4]]


@given(LENGTHS)
def test_filling_loses_no_piece_doubles_none_and_keeps_to_the_size(lengths: list[int]) -> None:
    groups = fill(lengths, 50)
    assert sorted(chain.from_iterable(groups)) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in group) <= 50 for group in groups)
    assert list(groups) == list(fill(lengths, 50))


@given(LENGTHS)
def test_filling_is_first_fit_by_the_least_room(lengths: list[int]) -> None:
    groups: list[list[int]] = []
    piles: list[list[int]] = [[] for _ in range(51)]
    for piece in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        room = next((room for room in range(lengths[piece], 51) if piles[room]), None)
        if room is None:
            groups.append([])
        group = len(groups) - 1 if room is None else piles[room].pop()
        groups[group].append(piece)
        piles[(50 if room is None else room) - lengths[piece]].append(group)
    assert list(fill(lengths, 50)) == sorted(sorted(group) for group in groups)


def test_groups_take_a_few_numbers_a_piece() -> None:
    lengths = np.random.default_rng(0).integers(1, 65, 20_000)
    tracemalloc.start()
    groups = fill(lengths, 128)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(groups) > 1
    assert peak <= 64 * len(lengths)


def test_filling_with_short_pieces_leaves_little_room() -> None:
    lengths = np.random.default_rng(0).integers(1, 65, 1000)
    assert lengths.sum() / (128 * len(fill(lengths, 128))) > 0.98


def test_every_token_has_one_place_and_padding_none() -> None:
    places = rows_to_share([60, 2, 3, 61, 1])
    assert places is not None
    width = 61
    wanted = [text * width + i for text, n in enumerate([60, 2, 3, 61, 1]) for i in range(n)]
    assert sorted(places[places >= 0].tolist()) == wanted


def test_a_batch_with_next_to_no_padding_stays_as_it_is() -> None:
    assert rows_to_share([64, 64, 63]) is None


def test_where_padding_is_computed_the_cut_costs_least() -> None:
    """Tried against all cuts of the sorted examples."""
    lengths, budget = np.array([3, 30, 5, 4, 31, 12, 3, 14]), 120

    def cost(parts: Iterable[np.ndarray]) -> float:
        return sum(len(part) * int(lengths[part].max()) + budget * PASS for part in parts)

    order, cuts = np.argsort(lengths, kind="stable"), range(1, len(lengths))
    ways = [
        np.split(order, chosen)
        for number in range(len(lengths))
        for chosen in combinations(cuts, number)
    ]
    fitting = [
        way for way in ways if all(len(part) * lengths[part].max() <= budget for part in way)
    ]
    found = micro_batches(np.arange(len(lengths)), lengths, budget, padded=True)
    assert sorted(np.concatenate(found).tolist()) == list(range(len(lengths)))
    assert cost(found) == min(map(cost, fitting))
    assert cost(found) < cost(micro_batches(np.arange(len(lengths)), lengths, budget))


@given(st.lists(st.integers(0, 50), max_size=60), st.integers(1, 400))
def test_where_padding_is_computed_the_cut_is_that_of_the_plain_loop(
    lengths: list[int], budget: int
) -> None:
    """Of cuts that cost the same, the one whose last micro-batch begins first."""
    sizes = sorted(lengths)
    costs, before = [0.0], [0]
    for end, size in enumerate(sizes, 1):
        starts = range(max(0, end - max(1, budget // max(size, 1))), end)
        cost, start = min((costs[start] + (end - start) * size, start) for start in starts)
        costs.append(cost + budget * PASS)
        before.append(start)
    wanted: list[list[int]] = []
    end = len(sizes)
    while end > 0:
        wanted.append(sizes[before[end] : end])
        end = before[end]
    found = micro_batches(
        np.arange(len(lengths)), np.array(lengths, dtype=np.int64), budget, padded=True
    )
    assert [[lengths[i] for i in part] for part in found] == wanted[::-1]


def test_an_example_longer_than_the_budget_is_a_micro_batch_also_where_padding_is_computed() -> (
    None
):
    parts = micro_batches(np.arange(3), np.array([50, 2, 60]), 10, padded=True)
    assert [part.tolist() for part in parts] == [[1], [0], [2]]
    assert micro_batches(np.arange(0), np.array([], dtype=np.int64), 10, padded=True) == []
