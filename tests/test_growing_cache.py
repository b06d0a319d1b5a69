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


def kept(rows: list[int], data: st.DataObject) -> list[int]:
    """Some of these rows: in their order, with later ones in the gaps of others, or in any order."""
    count = data.draw(st.integers(1, len(rows)), "rows that stay")
    way = data.draw(st.sampled_from(["filled", "in order", "any"]), "way")
    chosen = data.draw(st.permutations(rows), "order")[:count]
    if way == "any":
        return chosen
    if way == "in order":
        return sorted(chosen)
    later = sorted(r for r in chosen if r >= count)
    return [r if r in chosen else later.pop() for r in range(count)]


@settings(deadline=None)
@given(steps=st.lists(st.sampled_from(["pass", "leave", "join", "trim"]), max_size=14), data=st.data())
def test_rows_come_and_go_as_in_copies(steps, data):
    layer = GrowingLayer()
    keys, values = states(9, 0)
    layer.update(keys, values)
    for n, step in enumerate(steps, 1):
        rows, _, width, _ = keys.shape
        if step == "pass":
            new = torch.randn(2, rows, HEADS, data.draw(st.integers(1, 70)), DIM).unbind()
            layer.update(*new)
            keys, values = torch.cat([keys, new[0]], dim=2), torch.cat([values, new[1]], dim=2)
        elif step == "leave":
            chosen = kept(list(range(rows)), data)
            layer.keep_rows(chosen)
            keys, values = keys[chosen], values[chosen]
        elif step == "join":
            count, columns = data.draw(st.integers(1, 3)), data.draw(st.integers(0, width))
            new = torch.randn(2, count, HEADS, columns, DIM).unbind() if columns else (None, None)
            layer.add_rows(count, *new)
            parts = []
            for old, own in zip((keys, values), new):
                added = torch.zeros(count, HEADS, width, DIM)
                if own is not None:
                    added[:, :, width - columns :] = own
                parts.append(torch.cat([old, added]))
            keys, values = parts
        else:
            keys, values = keys[:, :, : max(1, width - 3)], values[:, :, : max(1, width - 3)]
            layer.keys, layer.values = (t[:, :, : keys.shape[2]] for t in (layer.keys, layer.values))
        assert torch.equal(layer.keys, keys), n
        assert torch.equal(layer.values, values), n


def many_rows(rows: int = 8) -> GrowingLayer:
    layer = GrowingLayer()
    for count in (10, 1):
        layer.update(*torch.randn(2, rows, HEADS, count, DIM).unbind())
    return layer


def test_where_one_left_another_joins_in_the_same_memory():
    layer = many_rows()
    place, others = layer.keys.data_ptr(), layer.keys[[0, 1, 3, 4, 5, 6]].clone()
    layer.keep_rows([0, 1, 7, 3, 4, 5, 6])
    layer.add_rows(1, *torch.randn(2, 1, HEADS, 6, DIM).unbind())
    layer.update(*torch.randn(2, 8, HEADS, 1, DIM).unbind())
    assert layer.keys.data_ptr() == place
    assert torch.equal(layer.keys[[0, 1, 3, 4, 5, 6], :, :11], others)
    assert (layer.keys[7, :, :5] == 0).all()


def test_a_layer_that_holds_nothing_stays_empty():
    """Such as one that reads what another has written."""
    layer = GrowingLayer()
    layer.keep_rows([0])
    layer.add_rows(1, *torch.randn(2, 1, HEADS, 3, DIM).unbind())
    assert layer.get_seq_length() == 0


def test_memory_of_many_rows_is_let_go_when_few_are_left():
    layer = many_rows()
    memory = weakref.ref(layer.keys.untyped_storage())
    layer.keep_rows([0, 1, 2, 3])
    assert memory() is not None
    layer.keep_rows([0, 1, 2])
    assert memory() is None
    assert layer.keys.untyped_storage().nbytes() == layer.keys.numel() * layer.keys.element_size()


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
