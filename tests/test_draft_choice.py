"""What "auto" drafts, on a simulated clock: close to the best fixed kind of draft, and never far below none."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unite_ext import GenerationOptions
from unite_ext.decoding.certainty import Certainty
from unite_ext.decoding.draft_choice import (
    AUTO,
    LENGTHS,
    LOOK_AGAIN,
    OWN,
    OWN_LENGTH,
    PLAIN,
    SOON,
    DraftChooser,
    DraftCosts,
    Kind,
    Running,
)
from unite_ext.decoding.request import NGRAM, Request
from unite_ext.methods.unite import Unite

OFFERED = 6  # tokens that n-grams offer, when they offer any
SURE = 0.85  # of every token alike: a drafter that does not know where it is wrong


@dataclass(frozen=True)
class World:
    """What rounds truly take and give; a plain round of two members takes 1 s."""

    share: float = 0.5
    """The primary's part of a plain round."""
    place: float = 0.1
    """What a further place adds to a pass, as a share of it."""
    acceptance: float = 0.9
    repeats: float = 0.0
    """How often n-grams offer something."""
    repeat_acceptance: float = 0.5
    noise: float = 0.0
    """Rounds take up to so much more, as a share."""

    def seconds(self, kind: Kind) -> float:
        if kind == PLAIN or not kind.length:
            return 1.0
        if kind.drafter == NGRAM:
            return 1 + self.place * kind.length
        return self.share * (kind.length + 1) + (1 - self.share) * (1 + self.place * kind.length)

    def tokens(self, kind: Kind, rng: random.Random) -> int:
        if kind == PLAIN:
            return 1
        share = self.repeat_acceptance if kind.drafter == NGRAM else self.acceptance
        taken = 0
        while taken < kind.length and rng.random() < share:
            taken += 1
        return taken + 1


def request(drafter: int | str = AUTO) -> Request:
    return Request(0, 0, [[1]], GenerationOptions(), Unite.__new__(Unite), [None], starts=(False,), drafter=drafter)


def speed(world: World, fixed: Kind | None, length: int, costs: DraftCosts | None = None, batch: int = 1) -> float:
    """Tokens per second of a text of so many tokens, with what is chosen, or with one fixed kind."""
    rng = random.Random(0)
    chooser = DraftChooser(costs or DraftCosts(2, 0), 0)
    requests = [request() for _ in range(batch)]
    seconds = tokens = 0.0
    while tokens < length * batch:
        offers = OFFERED if rng.random() < world.repeats else 0
        offered = [[1] * offers] * batch
        tried = [[1] * OFFERED] * batch if fixed else chooser.worthwhile(requests, offered)
        kind = chooser.choose(requests, tried) if fixed is None else fixed
        if kind.drafter == NGRAM:
            kind = Kind(NGRAM, max(map(len, tried))) if offers else PLAIN
        own = kind == OWN
        if own:
            drafted = 0
            while drafted < OWN_LENGTH and all(chooser.goes_on(batch, [[SURE] * (drafted + 1)] * batch)):
                drafted += 1
            kind = Kind(0, drafted)
        taken = [world.tokens(kind, rng) for _ in requests]
        passed = world.seconds(kind) * (1 + world.noise * rng.random())
        seconds, tokens = seconds + passed, tokens + sum(taken)
        drafting = world.share * (kind.length + 1) * passed / world.seconds(kind) if kind.drafter == 0 else 0.0
        if own:
            for n in taken:
                right = n - 1 if n <= kind.length else n - (rng.random() >= world.acceptance)
                chooser.learn([(1, SURE)] * (int(kind.length) + 1), ([1] * right + [0])[: int(kind.length) + 1])
            chooser.end_own([int(kind.length)] * batch, sum(taken), passed, drafting)
        else:
            if kind.drafter == NGRAM:
                for one, n in zip(requests, taken):
                    chooser.compare(one, NGRAM, [1] * int(kind.length), [1] * (n - 1) + [0])
            chooser.end(requests, kind, sum(taken), passed, drafting)
        if kind.drafter != NGRAM and offers:
            follows = 1 if rng.random() < world.repeat_acceptance else 0
            for one in requests:
                chooser.compare(one, NGRAM, [1] * offers, [follows])
    return tokens / seconds


FIXED = [PLAIN, *(Kind(0, n) for n in LENGTHS), Kind(NGRAM, OFFERED)]
WORLDS = {
    "places free, much taken": World(share=0.1, place=0.0, acceptance=0.95),
    "three members, much taken": World(share=0.33, place=0.08, acceptance=0.95),
    "two members": World(share=0.5, place=0.1, acceptance=0.94),
    "two members, little taken": World(share=0.5, place=0.1, acceptance=0.6),
    "drafts are hopeless": World(share=0.5, place=0.4, acceptance=0.1),
    "the primary is the slow one": World(share=0.9, place=0.3, acceptance=0.9),
    "places cost whole passes": World(share=0.3, place=1.0, acceptance=0.95),
    "n-grams are good": World(share=0.5, place=0.2, acceptance=0.9, repeats=0.6, repeat_acceptance=0.8),
    "n-grams are bad": World(share=0.5, place=0.3, acceptance=0.3, repeats=0.9, repeat_acceptance=0.05),
    "noise": World(share=0.45, place=0.15, acceptance=0.9, noise=1.0),
}


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("name", WORLDS)
def test_close_to_the_best_fixed_kind(name, batch):
    world = WORLDS[name]
    best = max(speed(world, kind, 1000, batch=batch) for kind in FIXED)
    plain, chosen = speed(world, PLAIN, 1000, batch=batch), speed(world, None, 1000, batch=batch)
    assert chosen >= 0.97 * plain
    assert chosen >= 0.93 * best


def fractions(largest: float) -> st.SearchStrategy[float]:
    return st.floats(0, largest)


DRAWN = st.builds(
    World, share=st.floats(0.05, 0.95), place=fractions(1.0), acceptance=fractions(0.99),
    repeats=st.one_of(st.just(0.0), fractions(1.0)), repeat_acceptance=fractions(0.95), noise=fractions(0.3),
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(DRAWN, st.sampled_from([1, 4]))
def test_no_world_makes_it_much_slower_than_plain_decoding(world, batch):
    """Worlds that nothing was tuned for. What a draft gives is drawn: kinds that pay just so may be unlucky."""
    assert speed(world, None, 1000, batch=batch) >= 0.95 * speed(world, PLAIN, 1000, batch=batch)


@settings(max_examples=25, deadline=None)
@given(st.floats(0.05, 0.5), fractions(0.1), st.floats(0.9, 0.99), st.sampled_from([1, 4]))
def test_drafts_that_clearly_pay_are_found(share, place, acceptance, batch):
    world = World(share=share, place=place, acceptance=acceptance)
    best = max(speed(world, kind, 1000, batch=batch) for kind in FIXED)
    assert speed(world, None, 1000, batch=batch) >= 0.85 * best


@pytest.mark.parametrize("name", WORLDS)
def test_short_texts_lose_little_once_costs_are_known(name):
    world, costs = WORLDS[name], DraftCosts(2, 0)
    speed(world, None, 300, costs)
    assert speed(world, None, 60, costs) >= 0.97 * speed(world, PLAIN, 60)


def test_what_was_measured_with_one_batch_is_used_for_another():
    """With one request places were found to cost whole passes: eight requests do not try it again."""
    world, costs = WORLDS["places cost whole passes"], DraftCosts(2, 0)
    speed(world, None, 500, costs)
    chooser, requests = DraftChooser(costs, 0), [request() for _ in range(8)]
    for _ in range(2):
        assert chooser.choose(requests, [[]] * 8) == PLAIN
        chooser.end(requests, PLAIN, 8, 1.0, 0.0)
    assert chooser.choose(requests, [[]] * 8) == OWN
    sure = [[0.9999]] * 8
    assert not any(chooser.goes_on(8, sure))
    fresh = DraftChooser(DraftCosts(2, 0), 0)
    assert all(fresh.goes_on(8, sure))


def test_before_anything_is_measured_cores_are_taken_to_be_busy():
    """Many requests fill a pass already: what a further place of all of them adds comes near to a whole pass."""
    free, busy = DraftCosts(2, 0, 0.0), DraftCosts(2, 0, 0.3)
    for costs in (free, busy):
        for size in (1, 8):
            costs.add(size, PLAIN, 1.0, 0.0)
    kind = Kind(NGRAM, 4)
    assert [free.seconds(size, kind) for size in (1, 8)] == [1.0, 1.0]
    assert busy.seconds(1, kind) == pytest.approx(1 + 4 * 0.3)
    assert busy.seconds(8, kind) == pytest.approx(1 + 4 * 2.4 / 3.1)


def test_who_was_named_is_tried_whatever_the_estimates_say():
    """And not again, when it costs more than it gives."""
    chooser, own = DraftChooser(DraftCosts(2, 0, 5.0), 0), request(drafter=1)
    kinds = []
    for _ in range(20):
        kinds.append(chooser.choose([own], [[]]))
        chooser.end([own], kinds[-1], 1, 1.0 if kinds[-1] == PLAIN else 9.0, 0.0 if kinds[-1] == PLAIN else 1.0)
    assert [kind.drafter for kind in kinds] == [None, None, 1, *[None] * 17]


def test_a_named_member_drafts_or_nobody_does():
    costs = DraftCosts(3, 0)
    chooser, requests = DraftChooser(costs, 0), [request(drafter=2)]
    kinds = set()
    for _ in range(100):
        kind = chooser.choose(requests, [[1, 2, 3]])
        kinds.add(kind.drafter)
        seconds = 1.0 if kind == PLAIN else 0.1 * kind.length + 1 + 0.01 * kind.length
        chooser.end(requests, kind, kind.length + 1, seconds, 0.1 * kind.length)
    assert kinds == {None, 2}


def test_a_text_that_turns_predictable_is_drafted_again():
    """Where drafts were refused, one is tried again after a while, and then more of them."""
    chooser, requests = DraftChooser(DraftCosts(2, 0), 0), [request(drafter=1)]
    world, drafted = World(share=0.3, place=0.05), 0
    for round_ in range(3000):
        acceptance = 0.05 if round_ < 500 else 0.97
        kind = chooser.choose(requests, [[]])
        taken = World(acceptance=acceptance).tokens(kind, random.Random(round_))
        if kind != PLAIN:
            chooser.compare(requests[0], 1, [1] * kind.length, [1] * (taken - 1) + [0])
        seconds = world.seconds(kind)
        chooser.end(requests, kind, taken, seconds, world.share * (kind.length + 1) if kind != PLAIN else 0.0)
        drafted += kind != PLAIN and round_ >= 2000
    assert drafted > 500


def after_plain_rounds(chooser: DraftChooser, own: Request, rounds: int) -> Kind:
    for _ in range(rounds):
        chooser.end([own], PLAIN, 1, 1.0, 0.0)
    return chooser.choose([own], [[]])


def test_the_first_figure_is_replaced_and_outliers_move_little():
    mean = Running()
    for value, expected in ((10.0, 10.0), (2.0, 2.0), (100.0, 2.4), (0.0, 2.16)):
        mean.add(value)
        assert mean.value == pytest.approx(expected)


def test_after_a_loss_nothing_is_tried_before_it_is_a_hundredth_of_the_time():
    chooser, own = DraftChooser(DraftCosts(2, 0), 0), request(drafter=1)
    after_plain_rounds(chooser, own, 2)
    chooser.end([own], Kind(1, 8), 1, 10.0, 5.0)
    for _ in range(88):
        assert after_plain_rounds(chooser, own, 10) == PLAIN
    assert after_plain_rounds(chooser, own, 10) != PLAIN


def test_after_a_gain_another_draft_is_tried_soon():
    chooser, own = DraftChooser(DraftCosts(2, 0), 0), request(drafter=1)
    after_plain_rounds(chooser, own, 2)
    for _ in range(100):
        chooser.compare(own, 1, [1], [0])
    chooser.end([own], Kind(1, 2), 3, 1.2, 0.3)
    assert after_plain_rounds(chooser, own, SOON - 1) == PLAIN
    assert after_plain_rounds(chooser, own, 1) != PLAIN
    assert SOON < LOOK_AGAIN


def test_certainty_is_learned_class_by_class():
    """A drafter is taken at its word at first; then what it is sure of is taken, and what it doubts is not."""
    certainty = Certainty()
    assert certainty.chance([0.99]) > certainty.chance([0.75]) > certainty.chance([0.75, 0.75])
    assert certainty.chance([]) == 1.0
    for _ in range(200):
        certainty.learn([(7, 0.99), (8, 0.75), (9, 0.96)], [7, 5, 9])
    assert certainty.chance([0.992]) > 0.99
    assert certainty.chance([0.72]) < 0.02
    assert certainty.chance([0.96]) == Certainty().chance([0.96])  # behind a wrong one


def test_a_token_is_drafted_where_its_chance_outweighs_its_cost():
    """Two members of equal cost; a further place costs a tenth of the other's pass."""
    costs = DraftCosts(2, 0)
    for _ in range(2):
        costs.add(1, PLAIN, 1.0, 0.0)
        costs.add(4, PLAIN, 1.0, 0.0)
        costs.add_own(1, [2], 3, 1.5 + 0.5 * 1.2, 1.5)
        costs.add_own(4, [2] * 4, 12, 1.5 + 0.5 * 1.2, 1.5)
    price = costs.price(1)
    assert price == pytest.approx(3 / 2.1)
    assert costs.is_worth(1, [price * (0.5 + 0.5 * 0.1) + 0.01]) == [True]
    assert costs.is_worth(1, [price * (0.5 + 0.5 * 0.1) - 0.01]) == [False]
    # Together they pay for the pass; one that does not pay for its own place stays out of it.
    assert costs.is_worth(4, [0.99, 0.99, 0.99, 0.99]) == [True] * 4
    assert costs.is_worth(4, [1.0, 1.0, 1.0, 0.9]) == [True] * 4
    assert costs.is_worth(4, [1.0, 1.0, 1.0, 0.05]) == [False] * 4
    cheap = DraftCosts(2, 0)
    for _ in range(2):
        cheap.add(4, PLAIN, 1.0, 0.0)
        cheap.add_own(4, [2] * 4, 12, 0.6 + 0.8 * 1.2, 0.6)
    assert cheap.is_worth(4, [1.0, 1.0, 1.0, 0.05]) == [True, True, True, False]


def test_ngrams_are_cut_where_a_place_costs_more_than_it_may_give():
    chooser, own, other = DraftChooser(DraftCosts(2, 0), 0), request(), request()
    after_plain_rounds(chooser, own, 2)
    for _ in range(300):
        chooser.compare(own, NGRAM, [1], [1])
        chooser.compare(other, NGRAM, [1], [0])
    kept = chooser.worthwhile([own, other], [[1] * 8, [1] * 8])
    assert kept == [[1] * 8, []]
    chooser = DraftChooser(DraftCosts(2, 0, 0.5), 0)
    after_plain_rounds(chooser, own, 2)
    for _ in range(300):
        chooser.compare(own, NGRAM, [1], [int(random.Random(_).random() < 0.8)])
    [kept] = chooser.worthwhile([own], [[1] * 8])
    assert 1 <= len(kept) <= 5
    assert chooser.worthwhile([other], [[1, 2]]) == [[1, 2]]  # nothing would pay: all of it may be tried


def test_what_time_gives_otherwise_cuts_ngrams_shorter():
    lengths = []
    for tokens in (1, 4):
        costs = DraftCosts(2, 0)
        chooser, own = DraftChooser(costs, 0), request()
        after_plain_rounds(chooser, own, 2)
        costs.add_own(1, [0], tokens, 1.0, 0.5)
        for n in range(300):
            chooser.compare(own, NGRAM, [1], [int(random.Random(n).random() < 0.8)])
        lengths.append(len(chooser.worthwhile([own], [[1] * 8])[0]))
    assert lengths[0] > lengths[1] >= 1


def test_ngrams_nobody_has_seen_are_taken_to_be_wrong_mostly():
    chooser, own = DraftChooser(DraftCosts(2, 0), 0), request()
    after_plain_rounds(chooser, own, 2)
    assert chooser.worthwhile([own], [[1] * 8]) == [[1]]


def test_ngrams_that_cannot_pay_are_tried_again_after_a_while():
    costs = DraftCosts(2, 0)
    chooser, own = DraftChooser(costs, 0), request()
    after_plain_rounds(chooser, own, 2)
    for _ in range(300):
        chooser.compare(own, NGRAM, [1], [0])
    for _ in range(LOOK_AGAIN - 2):
        assert chooser.choose([own], [[1, 2]]) == OWN
        chooser.end_own([0], 1, 1.0, 0.5)
    assert chooser.choose([own], [[1, 2]]) == Kind(NGRAM, 2)
