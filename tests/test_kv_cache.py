"""Rows that drop and append ids give the logits that each gives alone, whatever the cache does with its columns."""

from __future__ import annotations

import random

import pytest
import torch
import toy_tokenizers
import transformers
from toy_models import KINDS, toy_model

from unite_ext import UniteEnsemble
from unite_ext.members import kv_cache
from unite_ext.members.cache_probe import probe_reuse, uses_window
from unite_ext.members.kv_cache import RaggedCache
from unite_ext.members.static_cache import StaticRaggedCache

WINDOWED = ("mistral-window", "gemma2")
needs_static_caches = pytest.mark.skipif(
    tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 4), reason="its static caches cannot be cut back"
)


@pytest.fixture(scope="module")
def models():
    tokenizer = toy_tokenizers.byte_level()
    return {kind: toy_model(kind, tokenizer, seed=5) for kind in KINDS}


def alone(model, ids: list[int]) -> torch.Tensor:
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]


def exercise(cache: RaggedCache, model, *, rows: int, steps: int, seed: int) -> None:
    """Random drops and appends; every row is compared with running it alone, and some rows stop early."""
    rng = random.Random(seed)
    expected = [[rng.randrange(1, 200) for _ in range(rng.randint(1, 20))] for _ in range(rows)]
    for r, ids in enumerate(expected):
        cache.edit(r, 0, list(ids))
    for step in range(steps):
        with torch.no_grad():
            got = cache.next_logits()
            assert got.shape[0] == len(expected)
            for r, ids in enumerate(expected):
                assert cache.ids[r] == ids
                torch.testing.assert_close(got[r], alone(model, ids), rtol=0, atol=2e-4 * float(got[r].std()) + 1e-5)
        if step == steps // 2 and len(expected) > 1:
            going = sorted(rng.sample(range(len(expected)), len(expected) - 1))
            cache.select(going)
            expected = [expected[r] for r in going]
        for r, ids in enumerate(expected):
            drop = rng.choice([0, 0, 1, 2, 5, len(ids) - 1]) if len(ids) > 1 else 0
            drop = min(drop, len(ids) - 1)
            append = [rng.randrange(1, 200) for _ in range(rng.choice([0, 1, 1, 1, 2, 6, 15]))]
            cache.edit(r, drop, append)
            expected[r] = ids[: len(ids) - drop] + append


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_any_edits_equal_recomputation(models, kind, rows):
    model = models[kind]
    reuse = probe_reuse(model)
    assert reuse == ("compact" if kind in WINDOWED else "holes")
    exercise(RaggedCache(model, rows, reuse=reuse), model, rows=rows, steps=25, seed=rows)


def growing(model) -> RaggedCache:
    return RaggedCache(model, 0, reuse=probe_reuse(model))


def fixed(model) -> RaggedCache:
    return StaticRaggedCache(model, 0, reuse=probe_reuse(model), forward=model.forward, max_rows=MOST)


MOST = 8


@pytest.mark.parametrize("kind", ["llama", "mistral-window"])
@pytest.mark.parametrize("make", [growing, pytest.param(fixed, marks=needs_static_caches)])
def test_rows_that_come_and_go_are_exact(models, kind, make):
    """Newcomers have read less than the others, more, or nothing yet; gaps are filled or closed."""
    model, rng = models[kind], random.Random(3)
    batch = make(model)
    expected: list[list[int]] = []
    seen = set()
    for _ in range(40):
        if (rng.random() < 0.5 or not expected) and len(expected) < MOST - 1:
            count, length = rng.randint(1, 2), rng.choice([3, 12, 40])
            arriving = RaggedCache(model, count, reuse=batch.reuse)
            new = [[rng.randrange(1, 200) for _ in range(length)] for _ in range(count)]
            for r, ids in enumerate(new):
                arriving.edit(r, 0, list(ids))
            if reads := rng.random() < 0.7:
                arriving.next_logits()
            seen.add((reads, arriving.width > batch.width, bool(expected)))
            batch.absorb(arriving)
            expected += new
        elif len(expected) > 1:
            going = rng.sample(range(len(expected)), rng.randint(1, len(expected) - 1))
            if rng.random() < 0.7:  # the last ones fill the gaps
                later = sorted(r for r in going if r >= len(going))
                going = [r if r in going else later.pop() for r in range(len(going))]
            batch.select(going)
            expected = [expected[r] for r in going]
        for r, ids in enumerate(expected):
            append = [rng.randrange(1, 200) for _ in range(rng.choice([1, 1, 2]))]
            drop = min(rng.choice([0, 0, 2]), len(ids) - 1)
            batch.edit(r, drop, append)
            expected[r] = ids[: len(ids) - drop] + append
        got = batch.next_logits()
        assert got.shape[0] == len(expected)
        for r, ids in enumerate(expected):
            assert batch.ids[r] == ids
            torch.testing.assert_close(got[r], alone(model, ids), rtol=0, atol=2e-4 * float(got[r].std()) + 1e-5)
    assert seen >= {(True, True, True), (True, False, True), (False, False, True)}


@pytest.mark.parametrize("reuse", ["compact", "recompute"])
def test_every_way_of_reuse_is_exact(models, reuse):
    exercise(RaggedCache(models["llama"], 3, reuse=reuse), models["llama"], rows=3, steps=12, seed=1)


def test_holes_are_removed_when_they_are_many(models, monkeypatch):
    monkeypatch.setattr(kv_cache, "MIN_HOLES", 3)
    cache = RaggedCache(models["qwen2"], 4, reuse="holes")
    moved = []
    compact = cache.compact
    monkeypatch.setattr(cache, "compact", lambda: (moved.append(1), compact())[1])
    exercise(cache, models["qwen2"], rows=4, steps=30, seed=2)
    assert moved


def test_holes_in_a_windowed_model_would_be_wrong(models):
    """Why such models compact: the window counts columns."""
    assert uses_window(models["mistral-window"].config)
    with pytest.raises(AssertionError, match="not close"):
        exercise(
            RaggedCache(models["mistral-window"], 4, reuse="holes"), models["mistral-window"], rows=4, steps=25, seed=4
        )


def test_gathering_costs_no_more_than_reading_holes(models, monkeypatch):
    """The cache is compacted in the first pass after reading holes has cost as much as moving columns."""
    monkeypatch.setattr(kv_cache, "MIN_HOLES", 0)
    cache = RaggedCache(models["llama"], 2, reuse="holes")
    has_to_move, read, gathered = cache.has_to_move, [0], 0

    def checked() -> bool:
        nonlocal gathered
        read.append(cache.width - max(map(len, cache.columns)))
        decision = has_to_move()
        assert decision == (sum(read) > kv_cache.MOVE_COST * cache.width)
        if decision:
            read.clear()
            gathered += 1
        return decision

    monkeypatch.setattr(cache, "has_to_move", checked)
    for row in range(2):
        cache.edit(row, 0, [1, 2, 3])
    for step in range(120):
        cache.next_logits()
        cache.edit(step % 2, 0, [5, 6])  # the other row feeds an old id again, whose first column becomes a hole
        cache.edit(1 - step % 2, 0, [7])
    assert gathered >= 3
    assert cache.width < 1.2 * max(map(len, cache.ids))


@needs_static_caches
@pytest.mark.parametrize("kind", ["llama", "mistral-window", "gpt-neox"])
@pytest.mark.parametrize("rows", [1, 4])
def test_static_cache_is_exact(models, kind, rows):
    model = models[kind]
    cache = StaticRaggedCache(model, rows, reuse=probe_reuse(model), forward=model.forward)
    exercise(cache, model, rows=rows, steps=25, seed=rows)


@needs_static_caches
def test_static_cache_grows(models, monkeypatch):
    monkeypatch.setattr("unite_ext.members.static_cache.MIN_CAPACITY", 4)
    cache = StaticRaggedCache(models["llama"], 3, reuse="holes", forward=models["llama"].forward, expected_length=4)
    exercise(cache, models["llama"], rows=3, steps=30, seed=7)
    assert cache._capacity > 8


@needs_static_caches
def test_static_cache_shows_the_compiler_few_shapes(models):
    shapes = set()

    def forward(**arguments):
        shapes.add((tuple(arguments["input_ids"].shape), tuple(arguments["attention_mask"].shape)))
        return models["llama"].forward(**arguments)

    cache = StaticRaggedCache(models["llama"], 4, reuse="holes", forward=forward, expected_length=1000)
    exercise(cache, models["llama"], rows=4, steps=40, seed=3)
    assert {ids for ids, _ in shapes} <= {(4, 1), (4, 2), (4, 4), (4, 8)}
    assert len({mask for _, mask in shapes}) == 1


@needs_static_caches
def test_compiled_ensemble_gives_the_same_text():
    tokenizers = [toy_tokenizers.byte_level(), toy_tokenizers.sentencepiece()]
    models = [toy_model("llama", tokenizers[0], seed=3), toy_model("mistral", tokenizers[1], seed=4)]
    prompts = ["James met", "2024", "A"]
    expected = UniteEnsemble(models, tokenizers).generate(prompts, max_new_tokens=24)
    compiled = UniteEnsemble(models, tokenizers, compile=True)
    assert compiled.generate(prompts, max_new_tokens=24) == expected


def test_probe_refuses_a_model_whose_rows_meet(models):
    class Wrong(torch.nn.Module):
        """Left padding changes its logits."""

        config, dtype, device = models["llama"].config, torch.float32, torch.device("cpu")
        get_input_embeddings = models["llama"].get_input_embeddings

        def forward(self, input_ids, **_):
            logits = (
                torch.nn.functional.one_hot(input_ids.sum(0, keepdim=True) % 50, 50)
                .float()
                .expand(len(input_ids), -1, -1)
            )
            return type("Output", (), {"logits": logits})()

    with pytest.raises(
        ValueError, match=r"odd \(Wrong\) gives other logits in a batch of different lengths than alone"
    ):
        probe_reuse(Wrong(), name="odd")


def test_a_row_without_ids_is_refused(models):
    with pytest.raises(ValueError, match="row 0 has no ids"):
        RaggedCache(models["llama"], 1, reuse="holes").next_logits()
