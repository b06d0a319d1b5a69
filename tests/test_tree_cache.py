"""Many places of a text in one pass give the logits that each gives alone, and the ids on the taken path are kept."""

from __future__ import annotations

import random
from contextlib import contextmanager

import pytest
import torch
import toy_tokenizers
from test_kv_cache import alone
from toy_models import KINDS, toy_model

from unite_ext.members import kv_cache, tree_cache
from unite_ext.members.attention import GROUPED, use_grouped_attention
from unite_ext.members.base import JoinedScores
from unite_ext.members.cache_probe import probe_reuse, probe_trees
from unite_ext.members.context import LogitScores, TransformersContext
from unite_ext.members.kv_cache import RaggedCache
from unite_ext.members.token_tree import RowTree, is_chain, tree_mask
from unite_ext.members.tree_cache import TreeCache, layer_windows


@pytest.fixture(scope="module")
def models():
    tokenizer = toy_tokenizers.byte_level()
    return {kind: toy_model(kind, tokenizer, seed=5) for kind in KINDS}


def assert_close(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-4 * float(expected.std()) + 1e-5)


@contextmanager
def fed_ids(model):
    """What a model is fed, pass by pass."""
    fed: list = []
    handle = model.register_forward_pre_hook(
        lambda _, __, keywords: fed.append(keywords["input_ids"].tolist()), with_kwargs=True
    )
    try:
        yield fed
    finally:
        handle.remove()


def test_a_tree_holds_every_path_once():
    tree = RowTree()
    ends = [tree.add(3, path, 1) for path in ([7, 8, 9], [7, 8], [7, 5], [6])]
    assert [node.token for node in tree.fresh] == [7, 8, 9, 5, 6]
    assert [node.depth for node in tree.fresh] == [3, 4, 5, 4, 3]
    assert ends == [tree.fresh[n] for n in (2, 1, 3, 4)]
    assert [node.parent in tree.fresh and tree.fresh.index(node.parent) for node in tree.fresh] == [
        False, 0, 1, 0, False
    ]  # fmt: skip
    assert not is_chain(tree.fresh, 3)
    assert is_chain(tree.fresh[:3], 3)
    assert not is_chain(tree.fresh[:3], 4)


def test_a_cached_place_is_fed_again_and_the_branch_stays():
    tree = RowTree()
    for column, node in enumerate([tree.add(2, [7], 1), tree.add(2, [7, 8], 1)], 10):
        node.column = column
    tree.fed()
    again = tree.add(2, [7], 2)
    assert tree.add(2, [7], 2) is again
    assert [(node.token, node.depth, node.column) for node in tree.fresh] == [(7, 2, -1)]
    assert sorted(tree.columns()) == [10, 11]
    tree.prune(2)  # nobody has gone through the 8
    assert tree.columns() == [10]


def test_ids_become_a_branch_and_a_branch_becomes_ids():
    """Ids 1 2 3 4 in columns 0 to 3, with branches after the 2 and the 4, become 1 2 9, and change back."""
    tree = RowTree()
    for column, (depth, ids) in enumerate([(2, [9]), (4, [5]), (4, [5, 6])], 4):
        tree.add(depth, ids, 1).column = column
    tree.fed()
    tree.give(2, [3, 4], [2, 3])
    assert sorted(tree.columns()) == [2, 3, 4, 5, 6]
    assert tree.take(2, [9, 8]) == [4]
    assert tree.take(3, [8]) == []
    tree.give(2, [9], [4])
    assert tree.take(2, [3, 4, 5, 7]) == [2, 3, 5]
    assert sorted(tree.columns()) == [4, 6]
    assert tree.has_after(4)
    assert not tree.has_after(5)


def test_what_follows_an_id_that_was_fed_again_stays():
    """The row's own id 3 in column 2, and once more in column 5 with a 4 behind it, become one branch."""
    tree = RowTree()
    for column, ids in ((5, [3]), (6, [3, 4])):
        tree.add(2, ids, 1).column = column
    tree.fed()
    tree.give(2, [3], [2])
    assert sorted(tree.columns()) == [2, 6]
    assert tree.take(2, [3, 4]) == [2, 6]


def test_masks_by_hand():
    """Two cached ids with a hole between them, then a fork; the other row only fills up, and has a cached branch."""
    fork, other = RowTree(), RowTree()
    other.add(0, [6], 1).column = 1
    other.fed()
    for tree, paths in ((fork, [(2, [7, 8]), (2, [7, 5])]), (other, [(0, [6, 4])])):
        for depth, ids in paths:
            tree.add(depth, ids, 2)
        for column, node in enumerate(tree.fresh, 6 - len(tree.fresh)):
            node.column = column
    fresh = [fork.fresh, other.fresh]
    allowed = tree_mask(fresh, [[0, 2], [0]], 3, 3, None).astype(int).tolist()
    assert allowed[0] == [[1, 0, 1, 1, 0, 0], [1, 0, 1, 1, 1, 0], [1, 0, 1, 1, 0, 1]]
    assert allowed[1] == [[0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, 1]]
    # A window of two positions, itself included: ids 0 and 1 stand in columns 0 and 2, the nodes at 2 and 3.
    narrow = tree_mask(fresh, [[0, 2], [0]], 3, 3, 2).astype(int).tolist()
    assert narrow[0] == [[0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 0], [0, 0, 0, 1, 0, 1]]
    assert narrow[1] == [[0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, 1]]


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_any_places_give_the_logits_of_each_alone(models, kind, rows):
    """Between edits, holes and rows that stop; windows are masked by position."""
    model = models[kind]
    reuse = probe_reuse(model)
    assert probe_trees(model, reuse)
    rng = random.Random(rows)
    cache = TreeCache(model, rows, reuse=reuse)
    expected = [[rng.randrange(1, 200) for _ in range(rng.randint(2, 18))] for _ in range(rows)]
    for r, ids in enumerate(expected):
        cache.edit(r, 0, ids)
    asked: list = []  # some of the last places, which need not be where they were any more, are held
    for step in range(14):
        places = []
        for r, ids in enumerate(expected):
            for _ in range(rng.choice([0, 1, 4])):
                drop = rng.choice([0, 0, 1, 2, 5])
                drop = min(drop, len(ids) - 1)
                places.append((r, drop, [rng.randrange(1, 4) for _ in range(rng.randint(0, 5))]))
        if places and step % 4 != 3:
            held = rng.sample(asked, min(len(asked), 3)) if step % 2 else []
            got = cache.place_logits(places, held)
            asked = places
            for (r, drop, append), row in zip(places, got):
                assert_close(row, alone(model, expected[r][: len(expected[r]) - drop] + append))
            r, drop, append = rng.choice(places)  # one row goes on along one of its paths
            cache.edit(r, drop, append)
            expected[r] = expected[r][: len(expected[r]) - drop] + append
        else:
            for r, row in enumerate(cache.next_logits()):
                assert_close(row, alone(model, expected[r]))
        assert cache.ids == expected
        for r, ids in enumerate(expected):
            if rng.random() < 0.3:
                drop, append = min(rng.choice([0, 1, 3]), len(ids) - 1), [rng.randrange(1, 200)]
                cache.edit(r, drop, append)
                expected[r] = ids[: len(ids) - drop] + append
        if step == 7 and len(expected) > 1:
            cache.select([2, 0])
            expected = [expected[2], expected[0]]
        asked = [(r, drop, append) for r, drop, append in asked if r < len(expected) and drop < len(expected[r])]


def test_the_path_that_was_taken_is_not_fed_again(models):
    cache = TreeCache(models["llama"], 1, reuse="holes")
    cache.edit(0, 0, [1, 2, 3, 4])
    cache.place_logits([(0, 0, [5]), (0, 0, [5, 6, 7]), (0, 0, [9])])
    cache.edit(0, 0, [5, 6, 8])
    assert cache.computed(0) == 6
    with fed_ids(models["llama"]) as fed:
        got = cache.next_logits()
    assert fed == [[[8]]]
    assert not cache.trees[0]
    assert_close(got[0], alone(models["llama"], [1, 2, 3, 4, 5, 6, 8]))


def test_what_a_place_drops_stays_cached(models):
    """Places leave the cached ids at any depth; the row goes on where it was, and none of its ids is fed again."""
    model = models["mistral-window"]
    cache = TreeCache(model, 1, reuse=probe_reuse(model))
    ids = [1, 2, 3, 4, 5, 6, 7, 8]
    cache.edit(0, 0, ids)
    cache.next_logits()
    with fed_ids(model) as fed:
        places = [(0, 3, [9]), (0, 3, [9, 10]), (0, 6, [11]), (0, 5, []), (0, 0, [12])]
        got = cache.place_logits(places)
        cache.edit(0, 0, [12, 13])
        assert cache.computed(0) == len(ids) + 1
        after = cache.next_logits()[0]
    assert fed == [[[9, 10, 11, 3, 12]], [[13]]]
    for (_, drop, append), row in zip(places, got):
        assert_close(row, alone(model, ids[: len(ids) - drop] + append))
    assert_close(after, alone(model, [*ids, 12, 13]))


@pytest.mark.parametrize("kind", ["llama", "mistral-window"])
def test_held_branches_are_not_fed_again(models, kind):
    """Two ways of reading a text side by side: each is fed its new id, whichever the row stands on, holes or not."""
    model = models[kind]
    cache = TreeCache(model, 1, reuse=probe_reuse(model))
    ids = [1, 2, 3, 4]
    cache.edit(0, 0, ids)
    one, other = [5, 6], [7, 8, 9]
    cache.place_logits([(0, 0, [40, 41]), (0, 0, one), (0, 0, other)])  # 40 and 41 will leave holes
    found = []
    with fed_ids(model) as fed:
        for step in range(4):
            one.append(20 + step)
            [got] = cache.place_logits([(0, 0, one)], held=[(0, 0, other)])
            found.append((got, ids + one))
        other.append(10)
        [got] = cache.place_logits([(0, 0, other)], held=[(0, 0, one)])
        found.append((got, ids + other))
        cache.edit(0, 0, one)
        one.append(30)
        [got] = cache.place_logits([(0, 0, [30])], held=[(0, len(one) - 1, other)])
        found.append((got, ids + one))
        cache.edit(0, len(one) - 1, other)  # the row stands on the other one now, and keeps what it has left
        cache.compact()
        other.append(11)
        got, own = cache.place_logits([(0, 0, [11]), (0, len(other) - 1, [*one, 31])])
        found += [(got, ids + other), (own, [*ids, *one, 31])]
    assert fed == [[[20]], [[21]], [[22]], [[23]], [[10]], [[30]], [[11, 31]]]
    for got, path in found:
        assert_close(got, alone(model, path))


def test_rows_that_are_not_asked_keep_their_branches(models):
    """And feed nothing: what fills them up is left out."""
    model = models["llama"]
    cache = TreeCache(model, 2, reuse="holes")
    cache.edit(0, 0, [1, 2, 3])
    cache.edit(1, 0, [4, 5])
    cache.next_logits()
    cache.place_logits([(0, 0, [6, 7]), (1, 0, [8])])
    cache.place_logits([(1, 0, [8, 9])])
    cache.place_logits([(1, 0, [8, 9, 2])], held=[(1, 0, [8, 9])])
    again, other = cache.place_logits([(0, 0, []), (1, 0, [8, 9, 1])], held=[(0, 0, [6, 7])])
    with fed_ids(model) as fed:
        [got] = cache.place_logits([(0, 0, [6, 7, 10])])
    assert fed == [[[10], [0]]]
    assert_close(got, alone(model, [1, 2, 3, 6, 7, 10]))
    assert_close(again, alone(model, [1, 2, 3]))
    assert_close(other, alone(model, [4, 5, 8, 9, 1]))


@pytest.mark.parametrize("kind", ["llama", "mistral-window"])
def test_rows_that_are_not_asked_may_be_anything(models, kind):
    """Not yet in the cache, in it with ids that are not, or with branches beside: each is right when it is asked."""
    model = models[kind]
    cache = TreeCache(model, 4, reuse=probe_reuse(model))
    texts = [[1, 2, 3, 4, 5, 6, 7, 8, 9], [4, 5], [6], [7, 8, 9, 10]]
    for r, ids in enumerate(texts):
        cache.edit(r, 0, ids)
    [got] = cache.place_logits([(0, 0, [20])])  # the others have nothing in the cache
    assert_close(got, alone(model, [*texts[0], 20]))
    for n in range(12):
        r, drop = n % 4, n % 3 if n % 4 != 2 else 0
        drop = min(drop, len(texts[r]) - 1)
        kept = texts[r][: len(texts[r]) - drop]
        own, other = cache.place_logits([(r, drop, [11 + n]), (r, 0, [30 + n, 31])])
        assert_close(own, alone(model, [*kept, 11 + n]))
        assert_close(other, alone(model, [*texts[r], 30 + n, 31]))
        cache.edit(r, drop, [11 + n, 12 + n])
        texts[r] = [*kept, 11 + n, 12 + n]
    for got, ids in zip(cache.next_logits(), texts):
        assert_close(got, alone(model, ids))


def test_only_held_branches_stay(models):
    cache = TreeCache(models["llama"], 1, reuse="holes")
    cache.edit(0, 0, [1, 2, 3, 4])
    cache.place_logits([(0, 0, [5, 6]), (0, 0, [7, 8]), (0, 0, [7, 9])])
    cache.place_logits([(0, 0, [5, 6, 1])], held=[(0, 0, [7, 9])])
    assert len(cache.trees[0].columns()) == 3 + 2
    cache.place_logits([(0, 0, [2])])
    assert len(cache.trees[0].columns()) == 1
    cache.next_logits()
    assert not cache.trees[0].columns()


def test_one_place_that_drops_takes_nothing_from_the_cache(models):
    model = models["llama"]
    cache = TreeCache(model, 1, reuse="holes")
    cache.edit(0, 0, [1, 2, 3, 4, 5, 6])
    cache.next_logits()
    [got] = cache.place_logits([(0, 4, [9, 10])])
    assert_close(got, alone(model, [1, 2, 9, 10]))
    cache.edit(0, 0, [7])
    assert cache.computed(0) == 6
    assert_close(cache.next_logits()[0], alone(model, [1, 2, 3, 4, 5, 6, 7]))


def test_the_head_runs_where_somebody_asked(models):
    model = models["llama"]
    cache = TreeCache(model, 1, reuse="holes")
    cache.edit(0, 0, [1, 2, 3])
    cache.next_logits()
    seen = []
    handle = model.lm_head.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[1]))
    try:
        got = cache.place_logits([(0, 0, [4, 5, 6, 7, 8]), (0, 0, [9])])
    finally:
        handle.remove()
    assert seen == [2]
    assert_close(got[0], alone(model, [1, 2, 3, 4, 5, 6, 7, 8]))
    assert_close(got[1], alone(model, [1, 2, 3, 9]))


def test_branches_that_were_not_taken_do_not_pile_up(models, monkeypatch):
    monkeypatch.setattr(kv_cache, "MIN_HOLES", 3)
    cache = TreeCache(models["llama"], 1, reuse="holes")
    cache.edit(0, 0, [1, 2, 3])
    for step in range(40):
        places = [(0, 0, [4 + step, 5]), (0, 0, [6, 7, 8, 9])]
        for (_, _, append), got in zip(places, cache.place_logits(places)):
            assert_close(got, alone(models["llama"], cache.ids[0] + append))
        cache.edit(0, 0, [6, 7])  # the other branch stands before it in the cache
    assert cache.width < 1.4 * len(cache.ids[0])


def test_a_chain_needs_no_mask_of_its_own(models, monkeypatch):
    """Places that are prefixes of each other, in rows of different lengths too."""
    monkeypatch.setattr(tree_cache, "tree_mask", lambda *_: pytest.fail("a mask was made"))
    cache = TreeCache(models["qwen2"], 2, reuse="holes")
    ids = [[1, 2, 3, 4, 5, 6], [7, 8, 9]]
    for r in range(2):
        cache.edit(r, 0, ids[r])
    cache.next_logits()
    places = [(0, 0, []), (0, 0, [5]), (0, 0, [5, 6]), (1, 0, [4])]
    for (r, _, append), got in zip(places, cache.place_logits(places)):
        assert_close(got, alone(models["qwen2"], ids[r] + append))


@pytest.mark.parametrize("kind", KINDS)
def test_chains_of_different_lengths_in_rows_of_the_same(models, kind):
    """With no hole before, so that the shorter one's padding is the first."""
    cache = TreeCache(models[kind], 2, reuse=probe_reuse(models[kind]))
    ids = [[1, 2, 3], [7, 8, 9]]
    for r in range(2):
        cache.edit(r, 0, ids[r])
    cache.next_logits()
    places = [(0, 0, [5]), (0, 0, [5, 6]), (1, 0, [4])]
    for (r, _, append), got in zip(places, cache.place_logits(places)):
        assert_close(got, alone(models[kind], ids[r] + append))
    for r, append in ((0, [5, 6]), (1, [4])):
        cache.edit(r, 0, append)
        ids[r] += append
    for r, got in enumerate(cache.next_logits()):
        assert_close(got, alone(models[kind], ids[r]))


@pytest.mark.parametrize("implementation", ["eager", "sdpa", GROUPED])
def test_both_kinds_of_mask(implementation):
    original = "eager" if implementation == "eager" else "sdpa"
    model = toy_model("mistral-window", toy_tokenizers.byte_level(), seed=5, attn_implementation=original)
    if implementation == GROUPED:
        use_grouped_attention(model)
    assert model.config._attn_implementation == implementation
    assert probe_trees(model, probe_reuse(model))


def test_windows_of_layers():
    def config(**values):
        return type("Config", (), values)()

    assert layer_windows(config()) == {"full": None}
    assert layer_windows(config(sliding_window=4)) == {"sliding": 4}
    assert layer_windows(config(sliding_window=4, use_sliding_window=False)) == {"full": None}
    mixed = config(sliding_window=4, layer_types=["sliding_attention", "full_attention"])
    assert layer_windows(mixed) == {"sliding_attention": 4, "full_attention": None}


def test_a_model_whose_attention_takes_no_masks_has_one_place_per_pass(models):
    model = models["llama"]
    forward = model.forward

    def refuse(**arguments):
        if getattr(arguments.get("attention_mask"), "ndim", 2) == 4:
            raise ValueError("attention_mask must be 2-D")
        return forward(**arguments)

    model.forward = refuse
    try:
        assert not probe_trees(model, "holes")
        model.forward = lambda **arguments: forward(**{k: v for k, v in arguments.items() if k != "attention_mask"})
        assert not probe_trees(model, "holes")  # or swallows them
    finally:
        del model.forward
    assert not probe_trees(model, "recompute")


@pytest.mark.parametrize("trees", [False, True])
def test_contexts_give_places_either_way(models, trees):
    """One pass over a tree, and one place at a time, are the same; no request's ids change."""
    model = models["mistral"]
    kind = TreeCache if trees else RaggedCache
    context = TransformersContext(
        lambda: kind(model, 0, reuse="holes"), lambda: RaggedCache(model, 1, reuse="holes"), reads_apart=True
    )
    ids = {3: [1, 2, 3, 4], 8: [9, 8, 7]}
    for key, own in ids.items():
        context.join(key, own)
    context.prefill(100)
    context.evaluate([3, 8])
    places = [(8, 0, [5]), (3, 1, [5, 6]), (3, 0, []), (8, 2, []), (3, 0, [7])]
    scores = context.evaluate_places(places)
    assert isinstance(scores, LogitScores if trees else JoinedScores)
    for (key, drop, append), got in zip(places, scores.logits):
        assert_close(got, alone(model, ids[key][: len(ids[key]) - drop] + append))
    assert {key: context.ids(key) for key in ids} == ids
    picked = scores.select([3, 1])
    assert_close(picked.logits[1], alone(model, [1, 2, 3, 5, 6]))
    wanted = torch.tensor([[4, 9], [0, -1]], dtype=torch.int32)
    gathered = picked.gather(wanted)
    assert gathered[0].tolist() == picked.logits[0, [4, 9]].tolist()
    assert gathered[1].tolist() == [float(picked.logits[1, 0]), -float("inf")]
