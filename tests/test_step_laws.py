"""Laws that hold for every step, on alignments and logits drawn by hypothesis."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from unite_ext import VocabAlignment, reference, unite_step
from unite_ext.testing import (
    LOGIT_KINDS,
    alignment_from_classes,
    assert_same_step,
    make_logits,
    synthetic_alignment,
)
from unite_ext.vocab.alignment import EOS_CLASS, ID_MASK

SIZES = ((9,), (40, 60), (60, 40, 7), (33, 65, 130, 31))


@st.composite
def cases(draw, min_members=1, combines=("mean", "product")):
    sizes = draw(st.sampled_from([s for s in SIZES if len(s) >= min_members]))
    alignment = synthetic_alignment(sizes, draw(st.integers(0, 3)))
    logits = make_logits(
        alignment,
        draw(st.integers(1, 4)),
        kind=draw(st.sampled_from(LOGIT_KINDS)),
        dtype=draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16])),
        seed=draw(st.integers(0, 10**6)),
        padding=draw(st.integers(0, 3)),
    )
    primary = draw(st.integers(0, len(sizes) - 1))
    combine = draw(st.sampled_from(combines))
    if combine == "mean":
        weights = st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=len(sizes), max_size=len(sizes)).filter(any)
    else:
        weights = st.lists(st.sampled_from([-1.0, -0.25, 0.0, 0.5, 2.0]), min_size=len(sizes), max_size=len(sizes))
        weights = weights.map(lambda given: [abs(w) + 0.5 if m == primary else w for m, w in enumerate(given)])
    options = {
        "k": draw(st.integers(1, 80)),
        "primary": primary,
        "combine": combine,
        "weights": draw(weights),
        "score": draw(st.sampled_from(["logits", "probs"])),
        "duplicates": draw(st.sampled_from(["repeat", "drop"])),
    }
    return alignment, logits, options


@settings(max_examples=150, deadline=None)
@given(cases())
def test_kernel_equals_reference(case):
    alignment, logits, options = case
    assert_same_step(unite_step(logits, alignment, **options), reference.unite_step(logits, alignment, **options))


def crowded(sizes: tuple[int, ...], texts: int, seed: int) -> VocabAlignment:
    """Members whose ids share so few texts, so that many ids are added up."""
    rng = np.random.default_rng(seed)
    classes = [rng.permutation(np.arange(size) % texts) for size in sizes]
    class_ids = np.stack([[np.flatnonzero(of == c)[0] for c in range(texts)] for of in classes], axis=1)
    return alignment_from_classes(classes, class_ids)


@settings(max_examples=150, deadline=None)
@given(cases(), st.data())
def test_the_kernel_rounds_as_the_reference(case, data):
    """Whatever the size of logits and the number of ids of one text: no order of a sum shows."""
    alignment, logits, options = case
    if data.draw(st.booleans()):
        alignment = crowded(tuple(alignment.vocab_sizes), data.draw(st.integers(2, 7)), data.draw(st.integers(0, 3)))
    size = data.draw(st.sampled_from([1.0, 30.0, 300.0, 2500.0]))
    raised = data.draw(st.sampled_from([0.0, 0.05, 0.4]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    logits = [
        (x.float().nan_to_num(0.0, 9.0, -torch.inf) + size * (torch.rand(x.shape, generator=generator) < raised)).to(x)
        for x in logits
    ]
    known = [c[: x.shape[1]] >= 0 for x, c in zip(logits, alignment.classes)]
    assume(all((x[:, : len(c)][:, c] > -torch.inf).any(dim=1).all() for x, c in zip(logits, known)))
    step, want = (way(logits, alignment, **options) for way in (unite_step, reference.unite_step))
    assert_same_step(step, want)
    # An ulp for what lies halfway between two float32. A sum over the vocabulary the kernel makes in float32.
    apart = 2.0**-24 if options["score"] == "logits" else 5e-7
    torch.testing.assert_close(step.member_probs, want.member_probs, rtol=0, atol=apart)
    torch.testing.assert_close(step.union_probs, want.union_probs, rtol=0, atol=2 * apart)
    if options["combine"] == "mean":
        exact = reference.unite_step([x.double() for x in logits], alignment, **options)
        torch.testing.assert_close(step.member_probs, exact.member_probs, rtol=0, atol=2e-7 + apart)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 4), st.integers(2, 60), st.booleans(), st.sampled_from(["logits", "probs"]), st.data())
def test_constructed_ties_are_exact(members, texts, swapped, score, data):
    """Two texts with equal votes of every member, or with the votes of two members swapped: equal, the first wins."""
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    classes = [rng.permutation(texts) for _ in range(members)]
    alignment = alignment_from_classes(classes, np.stack([np.argsort(of) for of in classes], axis=1))
    a, b = rng.choice(texts, 2, replace=False)
    of_class = rng.normal(size=(members, texts)) * data.draw(st.sampled_from([0.1, 3.0, 100.0]))
    of_class[:, b] = of_class[:, a] = of_class.max() + rng.random(members)
    weights = rng.integers(1, 5, members).astype(float)
    if swapped and members > 1 and score == "logits":  # two vocabularies' sums are rounded each in its own order
        of_class[0, b] = of_class[0, a] = of_class[0].max()
        of_class[0, a] += 0.7
        of_class[1] = of_class[0]
        of_class[1, [a, b]] = of_class[0, [b, a]]
        weights[:2] = 1.0
        weights[2:] = 0.0
    logits = [torch.tensor(own[None, of], dtype=torch.float32) for own, of in zip(of_class, classes)]
    options = {"k": texts, "weights": weights.tolist(), "score": score}
    for combine in ("mean", "product"):
        for step in (way(logits, alignment, **options, combine=combine) for way in (unite_step, reference.unite_step)):
            found = [classes[0][i] for i in step.union_ids[0, : int(step.union_size[0]), 0]]
            slots = sorted((found.index(a), found.index(b)))
            assert step.union_probs[0, slots[0]] == step.union_probs[0, slots[1]]
            assert int(step.winner[0]) == slots[0]


def classes_of(alignment: VocabAlignment, ids: list[int]) -> set[int]:
    """The classes for which a slot may hold `ids`: one member's token of it, and the others' tokens or sub-tokens."""

    def stands_for(m: int, c: int) -> bool:
        tagged = int(alignment.class_ids[c, m])
        return alignment.class_of(m, ids[m]) == c or ids[m] == (tagged & ID_MASK if tagged >= 0 else -1)

    said = {alignment.class_of(m, i) for m, i in enumerate(ids) if i >= 0}
    fits = {c for c in said if all(stands_for(m, c) for m in range(len(ids)))}
    assert fits, f"a slot of ids {ids} belongs to no class"
    return fits


@settings(max_examples=100, deadline=None)
@given(cases())
def test_the_union_is_a_set_and_probabilities_sum_to_one(case):
    alignment, logits, options = case
    step = unite_step(logits, alignment, **options)
    primary = options["primary"]
    for row in range(len(step.winner)):
        size = int(step.union_size[row])
        assert (step.union_ids[row, size:] == -1).all()
        assert (step.union_probs[row, size:] == 0).all()
        torch.testing.assert_close(step.union_probs[row].sum(), torch.tensor(1.0), rtol=0, atol=1e-5)
        torch.testing.assert_close(step.member_probs[row].sum(0), torch.ones(len(logits)), rtol=0, atol=1e-5)
        classes = [
            fits.pop() for ids in step.union_ids[row, :size].tolist() if len(fits := classes_of(alignment, ids)) == 1
        ]
        assert len(classes) == len(set(classes))
        assert step.winner[row] < size
        winner = step.union_ids[row, step.winner[row], primary]
        assert winner >= 0 or EOS_CLASS in {
            alignment.class_of(m, int(i)) for m, i in enumerate(step.next_ids[row]) if i >= 0
        }
        assert torch.equal(step.next_ids[row], step.union_ids[row, step.winner[row]])


@settings(max_examples=60, deadline=None)
@given(cases(min_members=3), st.randoms(use_true_random=False))
def test_permuting_the_others_permutes_the_outputs(case, random):
    """The order of non-primary members changes the order of slots only."""
    alignment, logits, options = case
    primary = options["primary"]
    others = [m for m in range(len(logits)) if m != primary]
    random.shuffle(others)
    order = [primary, *others]
    permuted = VocabAlignment(
        [alignment.vocabularies[m] for m in order],
        [alignment.classes[m].numpy() for m in order],
        alignment.class_ids[:, order].numpy().copy(),
    )
    a = unite_step(logits, alignment, **options)
    b = unite_step(
        [logits[m] for m in order], permuted,
        **options | {"primary": 0, "weights": [options["weights"][m] for m in order]},
    )  # fmt: skip
    assert torch.equal(a.union_size, b.union_size)
    for row in range(len(a.winner)):
        size = int(a.union_size[row])
        # Two slots may have the same ids: a text that is several of them, and one that begins with it.
        slots_a, slots_b = (
            sorted(zip(map(tuple, ids.tolist()), probs.tolist()))
            for ids, probs in (
                (a.union_ids[row, :size, order], a.union_probs[row, :size]),
                (b.union_ids[row, :size], b.union_probs[row, :size]),
            )
        )
        assert [ids for ids, _ in slots_a] == [ids for ids, _ in slots_b]
        if options["duplicates"] == "repeat":  # dropping prefers the first of equals, so order matters there
            for (_, p), (_, q) in zip(slots_a, slots_b):
                assert abs(p - q) < 1e-5


@settings(max_examples=60, deadline=None)
@given(cases())
def test_rows_are_independent(case):
    alignment, logits, options = case
    together = unite_step(logits, alignment, **options)
    for row in range(len(together.winner)):
        alone = unite_step([x[row : row + 1] for x in logits], alignment, **options)
        for a, b in zip(together, alone):
            assert torch.equal(a[row], b[0])


@settings(max_examples=40, deadline=None)
@given(cases(), st.data())
def test_include_adds_its_class_and_nothing_else(case, data):
    alignment, logits, options = case
    primary = options["primary"]
    eligible = (alignment.classes[primary] >= 0).nonzero()[:, 0].tolist()
    include = data.draw(st.sampled_from(eligible))
    batch = logits[0].shape[0]
    plain = unite_step(logits, alignment, **options)
    step = unite_step(logits, alignment, include=torch.full((batch,), include), **options)
    for row in range(batch):
        size = int(plain.union_size[row])
        assert torch.equal(step.union_ids[row, :size], plain.union_ids[row, :size])
        wanted = alignment.class_of(primary, include)
        slots = step.union_ids[row, : int(step.union_size[row])]
        assert wanted in {alignment.class_of(primary, int(i)) for i in slots[:, primary] if i >= 0}
        assert int(step.union_size[row]) - size in (0, 1)


@settings(max_examples=40, deadline=None)
@given(st.integers(9, 80), st.integers(0, 3), st.integers(0, 10**6))
def test_alone_with_all_its_ids_a_member_gives_every_text_the_sum_over_its_ids(size, alignment_seed, seed):
    alignment = synthetic_alignment((size,), alignment_seed)
    (logits,) = make_logits(alignment, 2, seed=seed)
    step = unite_step([logits], alignment, k=size)
    classes = alignment.classes[0].long()
    eligible = logits[:, :size].masked_fill(classes < 0, -torch.inf).softmax(dim=1)
    of_class = torch.zeros(2, alignment.num_classes).index_add(1, classes.clamp(min=0), eligible)
    for row in range(2):
        ids = step.union_ids[row, : int(step.union_size[row]), 0]
        assert len({int(c) for c in classes[ids]}) == len(ids) == len(set(classes[classes >= 0].tolist()))
        torch.testing.assert_close(step.union_probs[row, : len(ids)], of_class[row, classes[ids]], rtol=0, atol=2e-6)
