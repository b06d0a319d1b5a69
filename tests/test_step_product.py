"""combine="product": worked examples by hand, and the laws of a log-linear pool."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from test_step_laws import cases
from test_step_meaning import World, byte_level, probs, sentencepiece, softmax

from unite_ext import StepOptions, UniteEnsemble, reference, step_parts, unite_step
from unite_ext.demo import COMPARABLE, model_folder
from unite_ext.testing import (
    assert_bitwise_equal,
    assert_same_step,
    make_logits,
    step_in_parts,
    synthetic_alignment,
)


def test_a_pool_of_two():
    """p ∝ 0.5^½·0.8^½, 0.5^½·0.2^½ = √0.40, √0.10 = 2 : 1."""
    world = World(byte_level("yes", " no"), sentencepiece("yes", "▁no"))
    step = world.step(
        {"yes": math.log(0.5), " no": math.log(0.5)}, {"yes": math.log(0.8), "▁no": math.log(0.2)}, k=2,
        combine="product",
    )  # fmt: skip
    assert world.slots(step) == [world.ids("yes", "yes"), world.ids(" no", "▁no")]
    assert probs(step) == pytest.approx([2 / 3, 1 / 3], abs=1e-6)
    assert probs(step, 1) == pytest.approx([0.8, 0.2], abs=1e-6)


def test_contrastive_decoding():
    """Weights 1 + β and −β, β = ½ (O'Brien and Lewis, arXiv 2309.09117): the table of docs/methods.md."""
    world = World(byte_level(" Paris", " the", " London"), sentencepiece("▁Paris", "▁the", "▁London"))
    expert = {" the": math.log(0.5), " Paris": math.log(0.4), " London": math.log(0.1)}
    amateur = {"▁the": math.log(0.6), "▁Paris": math.log(0.1), "▁London": math.log(0.3)}
    step = world.step(expert, amateur, k=3, combine="product", weights=[1.5, -0.5])
    raw = [0.5**1.5 / 0.6**0.5, 0.4**1.5 / 0.1**0.5, 0.1**1.5 / 0.3**0.5]
    assert world.slots(step)[0] == world.ids(" the", "▁the")
    assert probs(step) == pytest.approx([r / sum(raw) for r in raw], abs=1e-6)
    assert [round(p, 3) for p in probs(step)] == [0.347, 0.609, 0.044]
    assert step.next_ids[0].tolist() == list(world.ids(" Paris", "▁Paris")), "the mean takes ' the'"


def test_proxy_tuning():
    """Weights 1, 1, −1 (Liu et al., arXiv 2401.08565): a large model, a small tuned one, the small one untuned."""
    world = World(byte_level(" 4", " four"), sentencepiece("▁4", "▁four"), sentencepiece("▁4", "▁four"))
    step = world.step(
        {" four": math.log(0.7), " 4": math.log(0.3)},
        {"▁four": math.log(0.2), "▁4": math.log(0.8)},
        {"▁four": math.log(0.5), "▁4": math.log(0.5)},
        k=2, combine="product", weights=[1, 1, -1],
    )  # fmt: skip
    assert world.slots(step)[0] == world.ids(" four", "▁four", "▁four")
    assert probs(step) == pytest.approx([0.28 / 0.76, 0.48 / 0.76], abs=1e-6)  # 0.7·0.2/0.5 to 0.3·0.8/0.5
    assert step.winner.tolist() == [1]


def test_classifier_free_guidance():
    """Weights γ and 1 − γ, γ = 2 (Sanchez et al., arXiv 2306.17806): one model with and without its instruction."""
    model = byte_level(" oui", " yes")
    world = World(model, model)
    step = world.step(
        {" oui": math.log(0.45), " yes": math.log(0.55)}, {" oui": math.log(0.1), " yes": math.log(0.9)}, k=2,
        combine="product", weights=[2, -1],
    )  # fmt: skip
    raw = {" yes": 0.55**2 / 0.9, " oui": 0.45**2 / 0.1}
    assert probs(step) == pytest.approx([r / sum(raw.values()) for r in raw.values()], abs=1e-6)
    assert step.next_ids[0].tolist() == list(world.ids(" oui", " oui"))


@pytest.mark.parametrize("weight", [0.0, -0.5])
def test_members_without_a_positive_weight_do_not_propose(weight):
    world = World(byte_level("yes", "no"), byte_level("yes", "no", "odd"))
    given = ({"yes": 1.0, "no": 0.5}, {"odd": 9.0, "yes": 0.0, "no": 1.0})
    step = world.step(*given, k=2, combine="product", weights=[1, weight])
    assert world.slots(step) == [world.ids("yes", "yes"), world.ids("no", "no")]
    assert probs(step, 1) == pytest.approx(softmax(0.0, 1.0), abs=1e-6), "it scores what the others propose"
    assert probs(step) == pytest.approx(softmax(1.0, 0.5 + weight), abs=1e-6)
    assert int(world.step(*given, k=2).union_size[0]) == 3


def test_what_a_member_cannot_spell_takes_its_smallest_score():
    """Not −inf, which with a negative weight would win whatever the others say."""
    world = World(byte_level("x", "y", eos=("<eos>",)), byte_level("x", "y", eos=()), eos_token_ids=[256 + 0, None])
    eos = world.alignment.eos_ids[0]
    assert world.alignment.eos_ids[1] == -1
    for weight in (1.0, -1.0):
        step = world.step({"x": 2.0, "y": 1.0, eos: 0.0}, {"x": 1.0, "y": 3.0}, k=3, combine="product",
                          weights=[1, weight])  # fmt: skip
        assert world.slots(step)[2] == (eos, -1)
        assert probs(step, 1) == pytest.approx(softmax(1.0, 3.0, 1.0), abs=1e-6)
        assert probs(step) == pytest.approx(softmax(2 + weight, 1 + 3 * weight, 0 + weight), abs=1e-6)


def test_a_member_without_any_opinion_is_neutral():
    """A scoring member whose logits of all slots are −inf changes nothing; one without any logit fails the row."""
    world = World(byte_level("x", "y"), byte_level("x", "y", "z"))
    step = world.step({"x": 2.0, "y": 1.0}, {"z": 5.0}, k=2, combine="product", weights=[1, -2])
    assert probs(step) == pytest.approx(softmax(2.0, 1.0), abs=1e-6)
    assert probs(step, 1) == [0.5, 0.5]
    with pytest.raises(ValueError, match=r"logits\[1\] has no eligible logit above -inf in row 0"):
        world.step({"x": 2.0, "y": 1.0}, {}, k=2, combine="product", weights=[1, -2])


def test_a_dropped_slot_takes_the_smallest_score():
    world = World(byte_level("James", "Jam", " the"), byte_level("Jam", " the"))
    step = world.step({"James": 3.0, " the": 2.0, "Jam": 0.5}, {"Jam": 4.0, " the": 1.0}, k=3, duplicates="drop",
                      combine="product")  # fmt: skip
    assert probs(step, 1) == pytest.approx(softmax(1.0, 1.0, 4.0), abs=1e-6)


def test_extreme_logits_stay_finite():
    largest = 1e38
    world = World(byte_level("x", "y"), byte_level("x", "y"))
    step = world.step({"x": largest, "y": -largest}, {"x": -largest, "y": largest}, k=2, combine="product",
                      weights=[1e6, -1e6])  # fmt: skip
    assert probs(step) == [1.0, 0.0]


PRODUCTS = cases(combines=("product",))


@settings(max_examples=100, deadline=None)
@given(PRODUCTS)
def test_it_is_the_log_linear_pool_of_the_members(case):
    """Where every slot has a probability in every member: p ∝ Π member_probs^α."""
    alignment, logits, options = case
    step = unite_step(logits, alignment, **options)
    for row in range(len(step.winner)):
        size = int(step.union_size[row])
        each = step.member_probs[row, :size].double()
        if (each < 1e-30).any():
            continue
        pool = (each.log() * torch.tensor(options["weights"], dtype=torch.float64)).sum(dim=1).log_softmax(dim=0)
        # Scores are taken relative to a member's largest logit and rounded to float32 there; weights enlarge that.
        told = [reference.clean(t[row]).double() for t in logits]
        scales = [t.masked_fill(t == -torch.inf, 0.0).abs().max() for t in told]
        rounding = sum(abs(w) * float(1 + scale) for w, scale in zip(options["weights"], scales, strict=True))
        margin = 1e-3 + 2.0**-22 * rounding
        found = step.union_probs[row, :size].double()
        assert (found >= (pool - margin).exp() - 1e-5).all()
        assert (found <= (pool + margin).exp() + 1e-5).all()
    assert step.union_probs.isfinite().all()
    torch.testing.assert_close(step.union_probs.sum(dim=1), torch.ones(len(step.winner)), rtol=0, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(PRODUCTS)
def test_a_member_with_weight_0_changes_only_its_own_column(case):
    alignment, logits, options = case
    others = [m for m in range(len(logits)) if m != options["primary"]]
    if not others:
        return
    silent = others[0]
    options["weights"][silent] = 0.0
    first = unite_step(logits, alignment, **options)
    logits[silent] = make_logits(alignment, len(first.winner), seed=5)[silent]
    second = unite_step(logits, alignment, **options)
    for name in ("union_size", "winner", "union_probs"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name


@settings(max_examples=60, deadline=None)
@given(cases())
def test_alone_mean_and_product_agree(case):
    _, logits, options = case
    for m in range(len(logits)):
        alone = synthetic_alignment((40 + m,), m)
        own = make_logits(alone, 2, seed=m)
        rules = {name: options[name] for name in ("k", "score", "duplicates")}
        mean = unite_step(own, alone, **rules)
        product = unite_step(own, alone, **rules, combine="product")
        assert torch.equal(mean.union_ids, product.union_ids)
        assert torch.equal(mean.winner, product.winner)
        torch.testing.assert_close(mean.union_probs, product.union_probs, rtol=0, atol=2e-6)


def test_in_parts_and_in_float64():
    alignment = synthetic_alignment((300, 200, 90))
    logits = make_logits(alignment, 4)
    options = {"k": 7, "primary": 1, "weights": [-0.5, 2.0, 0.0], "combine": "product"}
    step = unite_step(logits, alignment, **options)
    assert_bitwise_equal(step_in_parts(step_parts, logits, alignment, **options), step)
    exact = reference.unite_step([x.double() for x in logits], alignment, **options)
    torch.testing.assert_close(step.union_probs, exact.union_probs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"combine": "sum"}, "combine must be one of 'mean', 'product', got 'sum'"),
        ({"weights": [1, -1]}, "weights must not be negative with combine='mean'"),
        ({"weights": [-1, 1], "combine": "product"}, "weights must be above 0 for the primary, member 0"),
        ({"weights": [1, 2e6], "combine": "product"}, "weights must be from -1,000,000 to 1,000,000"),
        ({"weights": [1, math.nan], "combine": "product"}, "weights must be finite"),
        ({"weights": [1], "combine": "product"}, "weights must have one entry per member, 2, got 1"),
    ],
)
def test_wrong_weights(given, message):
    alignment = synthetic_alignment((30, 20))
    with pytest.raises(ValueError, match=message):
        unite_step(make_logits(alignment, 1), alignment, **given)
    with pytest.raises(ValueError, match=message):
        StepOptions(**given).check(2)


@pytest.fixture(scope="module")
def ensemble():
    return UniteEnsemble.from_pretrained([str(model_folder(name)) for name in COMPARABLE[:2]])


def test_an_ensemble_multiplies(ensemble):
    prompt = "Mia has 12 shells. She finds 5 more. How many shells does she have?\n"
    alone = ensemble.alone(0).generate(prompt, max_new_tokens=16)
    options = {"combine": "product", "max_new_tokens": 16}
    assert ensemble.generate(prompt, weights=[1, 0], **options) == alone, "a member of weight 0 has no say"
    trace = ensemble.trace(prompt, weights=[1.5, -0.5], **options)
    assert trace.steps
    texts, _, records = reference.generate(
        [m.model for m in ensemble.members], ensemble.alignment, [m.encode_prompt(prompt) for m in ensemble.members],
        max_new_tokens=16, combine="product", weights=[1.5, -0.5],
    )  # fmt: skip
    output = ensemble.generate([prompt], weights=[1.5, -0.5], return_dict=True, **options)
    assert output.texts == [texts.decode()]
    for step, record in zip(records, output.records[0]):
        assert step.union_probs[0, : len(record.union_probs)].tolist() == pytest.approx(record.union_probs, abs=1e-4)


@pytest.mark.parametrize("method", ["gac", "packllm", "mined", "voting"])
def test_other_methods_refuse_it(ensemble, method):
    with pytest.raises(ValueError, match=f"combine must be 'mean' with method '{method}', got 'product'"):
        ensemble.generate("x", method=method, combine="product", max_new_tokens=1)


@pytest.mark.parametrize("sizes", [(40, 60), (60, 40, 7)], ids=str)
def test_an_included_class_may_be_a_silent_members_own_proposal(sizes):
    """A member that does not propose opens no slot; one that is appended still takes its ids by rank, and their sum."""
    alignment = synthetic_alignment(sizes)
    eos = int((alignment.classes[0] == 0).nonzero()[0])
    include = torch.full((64,), eos)
    logits = make_logits(alignment, 64)
    for m, own in enumerate(logits[1:], 1):
        own[:, (alignment.classes[m] == 0).nonzero().flatten()] += 4.0
    options = {"k": 3, "weights": [1.5] + [-1.0] * (len(sizes) - 1), "combine": "product", "include": include}
    assert_same_step(unite_step(logits, alignment, **options), reference.unite_step(logits, alignment, **options))
