"""Layers that grow in place hold what concatenating ones hold, and let go of room that is of no more use."""

from __future__ import annotations

import copy
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.cache_utils import DynamicLayer

from unite_ext.members.growing_cache import COLUMNS, GrowingLayer
from unite_ext.members.kv_cache import new_cache

ROWS, HEADS, DIM = 2, 3, 4
CHANGES = {
    "trim": lambda t: t[..., : max(1, t.shape[2] - 3), :],
    "select": lambda t: t.index_select(0, torch.tensor([1, 0])),
    "gather": lambda t: t[:, :, t.shape[2] // 3 :].clone(),
    "tail": lambda t: t[:, :, t.shape[2] // 2 :],
    "clone": lambda t: t.clone(),
}


def states(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, ROWS, HEADS, count, DIM, generator=torch.Generator().manual_seed(seed)).unbind()


@settings(deadline=None)
@given(steps=st.lists(st.integers(1, 90) | st.sampled_from(sorted(CHANGES)), max_size=12))
def test_any_history_is_that_of_a_concatenating_layer(steps):
    plain, ours = DynamicLayer(), GrowingLayer()
    held: list[tuple[torch.Tensor, torch.Tensor]] = []
    for n, step in enumerate(steps):
        if isinstance(step, int):
            keys, values = states(step, n)
            found = ours.update(keys, values)
            for a, b in zip(found, plain.update(keys, values)):
                assert torch.equal(a, b)
        elif plain.get_seq_length():
            for layer in (plain, ours):
                layer.keys, layer.values = CHANGES[step](layer.keys), CHANGES[step](layer.values)
        assert ours.get_seq_length() == plain.get_seq_length()
        if plain.get_seq_length():
            assert torch.equal(ours.keys, plain.keys)
            assert torch.equal(ours.values, plain.values)
            if step == "clone":  # what has been copied is nobody else's
                held.append((ours.keys, ours.keys.clone()))
    for now, then in held:
        assert torch.equal(now, then)


@pytest.mark.parametrize(
    "part",
    [lambda t: t[:1], lambda t: t[:, :2], lambda t: t[..., :2], lambda t: t[:, :, ::2]],
    ids=["rows", "heads", "numbers", "columns"],
)
def test_other_views_of_the_same_memory_are_not_its_beginning(part):
    """They begin at the same place, and what is appended must not be written beside them."""
    plain, ours = DynamicLayer(), GrowingLayer()
    for layer in (plain, ours):
        layer.update(*states(10, 0))
        layer.update(*states(1, 1))
        before = layer.keys.clone()
        view = layer.keys
        layer.keys, layer.values = part(layer.keys), part(layer.values)
        new = states(1, 2) if layer.keys.shape[2] < 11 else tuple(part(t) for t in states(1, 2))
        layer.update(*new)
        assert torch.equal(view, before)
    assert torch.equal(ours.keys, plain.keys)
    assert torch.equal(ours.values, plain.values)


def test_memory_is_let_go_of_with_what_it_held():
    layer = GrowingLayer()
    layer.update(*states(10, 0))
    layer.update(*states(1, 1))
    memory = weakref.ref(layer.keys.untyped_storage())
    layer.keys = layer.values = None
    assert memory() is None


def test_most_passes_copy_nothing():
    layer = GrowingLayer()
    layer.update(*states(10, 0))
    places = []
    for n in range(3 * COLUMNS):
        keys, _ = layer.update(*states(1, n))
        places.append(keys.data_ptr())
        if n % 5 == 0:  # what is trimmed is written over
            layer.keys, layer.values = layer.keys[:, :, :-1], layer.values[:, :, :-1]
    assert len(set(places)) <= 4


@pytest.mark.parametrize("name", ["select", "gather", "tail"])
def test_room_is_let_go_with_what_it_belonged_to(name):
    """A cache that has been moved must not be held twice."""
    layer = GrowingLayer()
    for n in range(2):
        layer.update(*states(10, n))
    storage = layer.keys.untyped_storage()
    assert storage.nbytes() >= ROWS * HEADS * COLUMNS * DIM * 4
    layer.keys, layer.values = CHANGES[name](layer.keys).clone(), CHANGES[name](layer.values).clone()
    assert not layer._memory
    assert layer.keys.untyped_storage().data_ptr() != storage.data_ptr()


def test_copies_are_apart():
    layer = GrowingLayer()
    for n in range(2):
        layer.update(*states(10, n))
    other = copy.deepcopy(layer)
    before = other.keys.clone()
    layer.update(*states(5, 7))
    other.update(*states(5, 8))
    assert torch.equal(other.keys[:, :, :20], before)
    assert not torch.equal(other.keys, layer.keys)


def test_members_use_them():
    cache = new_cache()
    cache.update(*states(3, 0), 0)
    cache.update(*states(3, 0), 1)
    assert [type(layer) for layer in cache.layers] == [GrowingLayer, GrowingLayer]
