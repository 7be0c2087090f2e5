"""Viterbi and forward-backward against pytorch-crf, autograd and every sequence there is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torchcrf import CRF

from lmkit.data.tags import Scheme, check_sequence
from lmkit.tasks.ner.decoding import Transitions, iob2_transitions, marginals, viterbi

BARE = ["O", "B", "I"]
LABELS = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]


def drawn(seed: int) -> tuple[np.ndarray, CRF, Transitions]:
    torch.manual_seed(seed)
    crf = CRF(5, batch_first=True).double()
    with torch.no_grad():
        for parameter in crf.parameters():
            parameter.normal_()
    learned = (
        p.detach().numpy() for p in (crf.start_transitions, crf.transitions, crf.end_transitions)
    )
    return torch.randn(1 + seed, 5, dtype=torch.double).numpy(), crf, Transitions(*learned)


@pytest.mark.parametrize("seed", range(8))
def test_viterbi_equals_the_library(seed: int) -> None:
    emissions, crf, transitions = drawn(seed)
    assert (
        viterbi(emissions, transitions)
        == crf.decode(torch.from_numpy(emissions)[None], torch.ones(1, 1 + seed, dtype=torch.bool))[
            0
        ]
    )


@pytest.mark.parametrize("seed", range(8))
def test_marginals_are_the_gradient_of_the_partition_function(seed: int) -> None:
    emissions, crf, transitions = drawn(seed)
    given = torch.from_numpy(emissions)[None].requires_grad_()
    tags = torch.zeros(1, len(emissions), dtype=torch.long)
    crf(
        given, tags, torch.ones_like(tags, dtype=torch.bool)
    ).backward()  # of the score of tag 0 everywhere, less the partition function
    assert given.grad is not None
    expected = torch.nn.functional.one_hot(tags[0], 5) - given.grad[0]
    np.testing.assert_allclose(marginals(emissions, transitions), expected.numpy(), atol=1e-12)


def test_parts_of_speech_may_follow_each_other_whatever_they_are_called() -> None:
    assert np.isfinite(iob2_transitions(["B", "I", "N", "O"]).between).all()
    assert np.isfinite(
        iob2_transitions(["O", "I-X"]).between
    ).all()  # a type without a beginning of its own


@pytest.mark.parametrize(("labels", "scheme"), [(LABELS, "iob2"), (BARE, "bare iob2")])
@pytest.mark.parametrize("seed", range(8))
def test_the_best_legal_sequence_is_found(seed: int, labels: list[str], scheme: Scheme) -> None:
    number = len(labels)
    emissions = np.random.default_rng(seed).normal(size=(4, number))
    sequences = itertools.product(range(number), repeat=4)
    allowed = [tags for tags in sequences if not check_sequence([labels[t] for t in tags], scheme)]
    best = max(allowed, key=lambda tags: sum(emissions[range(4), tags]))
    assert tuple(viterbi(emissions, iob2_transitions(labels))) == best
