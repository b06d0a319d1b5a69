"""Scores of a model elsewhere, made of what it lists: the order of equals, ids that cannot be proposed, asking on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from unite_ext import StepOptions
from unite_ext.exchange import key_ids, key_values
from unite_ext.members.remote import Backend, Listing, Question, RemoteContext
from unite_ext.testing import alignment_from_classes

PROBS = {4: 0.4, 0: 0.3, 2: 0.1, 1: 0.1, 3: 0.1}  # best first; of equals the higher id first


class Listed(Backend):
    """Lists the ids of `PROBS`; keeps what it was asked for."""

    usual = 2

    def __init__(self) -> None:
        self.counts: list[int] = []
        self.wanted: list[list[int]] = []

    def best(self, ids: Sequence[int], count: int) -> Listing:
        self.counts.append(count)
        found = list(PROBS.items())[:count]
        return Listing({i: math.log(p) for i, p in found}, whole=count >= len(PROBS))

    def chosen(self, ids: Sequence[int], wanted: Sequence[int], listed: Mapping[int, float]) -> dict[int, float]:
        self.wanted.append(list(wanted))
        return {i: math.log(PROBS[i]) for i in wanted}


@pytest.fixture
def backend():
    return Listed()


@pytest.fixture
def context(backend):
    with ThreadPoolExecutor(2) as pool:
        made = RemoteContext(SimpleNamespace(check_step=lambda options: None), backend, pool)
        made.join(0, [9, 9])
        made._largest_k = 1  # as of steps that asked for less
        yield made


@pytest.fixture
def alignment():
    """Id 4, the likeliest, cannot be proposed."""
    return alignment_from_classes([np.array([0, 1, 2, 3, -1])], np.array([[0], [1], [2], [3]]))


def test_of_equals_the_lower_id_comes_first():
    listed = {i: math.log(p) for i, p in PROBS.items()}
    assert [i for _, i in Question(0, (), listed).eligible(lambda i: i != 4)] == [0, 1, 2, 3]


def test_more_is_asked_for_until_k_can_be_proposed(context, backend, alignment):
    keys, log_sums = context.evaluate([0]).top_k(alignment, 0, StepOptions(k=3))
    assert key_ids(keys).tolist() == [[0, 1, 2]]
    assert key_values(keys).tolist() == [pytest.approx([math.log(0.3), math.log(0.1), math.log(0.1)])]
    assert log_sums.tolist() == [0.0]
    assert backend.counts == [2, 3, 12]  # in advance; for the step; as of three one cannot be proposed


def test_probabilities_leave_out_what_cannot_be_proposed(context, alignment):
    """score="probs" divides by what the eligible ids have together, 0.6: its logarithm, less that of the best."""
    _, log_sums = context.evaluate([0]).top_k(alignment, 0, StepOptions(k=3, score="probs"))
    assert log_sums.tolist() == [pytest.approx(math.log(0.6) - math.log(0.3), abs=1e-6)]


def test_nothing_is_asked_twice(context, backend, alignment):
    scores = context.evaluate([0])
    scores.top_k(alignment, 0, StepOptions(k=1))
    before = len(backend.counts)
    assert scores.gather(torch.tensor([[0, 3, -1]])).exp().tolist() == [pytest.approx([0.3, 0.1, 0])]
    again = context.evaluate([0])  # a step that is taken once more
    assert again.gather(torch.tensor([[3, 0]])).exp().tolist() == [pytest.approx([0.1, 0.3])]
    assert len(backend.counts) == before
    assert len(backend.wanted) <= 1
