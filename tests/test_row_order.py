"""Rows of requests that join and leave: who moves, and that an engine asks in the order that its contexts have."""

from __future__ import annotations

import random

import pytest
import toy_tokenizers
from toy_models import toy_model

from unite_ext import GenerationOptions, UniteEnsemble
from unite_ext.members.context import LogitScores
from unite_ext.members.row_order import RowOrder


def test_the_last_one_fills_a_gap():
    order = RowOrder()
    order.add([5, 3, 8, 1])
    order.add([3, 9])
    assert list(order) == [5, 3, 8, 1, 9]
    order.remove(3)
    assert list(order) == [5, 9, 8, 1]
    order.remove(7)  # was never here
    order.remove(1)
    assert list(order) == [5, 9, 8]
    order.remove(5)
    order.add([5])
    assert list(order) == [8, 9, 5]
    assert len(order) == 3


def test_any_history_keeps_everybody_once_and_moves_one_at_a_time():
    rng, order, here = random.Random(0), RowOrder(), set()
    for n in range(2000):
        before = list(order)
        if rng.random() < 0.5 or not here:
            order.add([n])
            here.add(n)
            assert list(order) == [*before, n]
        else:
            key = rng.choice(sorted(here))
            order.remove(key)
            here.discard(key)
            now = list(order)
            assert sum(a != b for a, b in zip(before, now)) == (before[-1] != key)
        assert set(order) == here
        assert len(order) == len(here)


@pytest.fixture(scope="module")
def ensemble():
    tokenizers = [toy_tokenizers.byte_level(), toy_tokenizers.sentencepiece()]
    return UniteEnsemble([toy_model(k, t) for k, t in zip(("llama", "mistral"), tokenizers)], tokenizers)


def test_scores_come_in_the_order_in_which_they_are_asked(ensemble, monkeypatch):
    """However requests come and go, no step has to put the logits of all rows into another order."""
    put_in_order = []
    select = LogitScores.select
    monkeypatch.setattr(LogitScores, "select", lambda self, rows: put_in_order.append(rows) or select(self, rows))
    plan = ensemble.plan({})
    engine = ensemble.new_engine(plan, max_requests=5)
    rng = random.Random(1)
    prompts = [f"James met {'a cat ' * rng.randint(0, 6)}{n}" for n in range(24)]
    requests = [
        engine.submit(p, plan.token_method, GenerationOptions(max_new_tokens=rng.randint(1, 9))) for p in prompts
    ]
    running, moved = [], 0
    while engine.has_work:
        engine.step()
        if rng.random() < 0.2:
            engine.cancel(rng.choice(requests))
        before, running = running, list(engine._rows)
        moved += [key for key in before if key in running] != [key for key in running if key in before]
    assert moved, "nobody has filled a gap"
    assert put_in_order == []
    for prompt, request in zip(prompts, requests):
        if request.finish_reason:
            [alone] = ensemble.generate([prompt], max_new_tokens=request.options.max_new_tokens)
            assert request.decoded() == alone
