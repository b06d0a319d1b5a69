"""How a member may have read a text: covers by hand, over three tokens."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from unite_ext._host import END_OF_TEXT, SortedTokens
from unite_ext.decoding.covers import Cover, ExactState, MemberCovers, WalkLimits

A, AB, B = 10, 11, 12


@dataclass
class Order:
    """`ByteOrder` of the tokens a, ab and b."""

    tokens: SortedTokens = field(default_factory=lambda: SortedTokens([b"a", b"ab", b"b"]))
    ids: np.ndarray = field(default_factory=lambda: np.array([A, AB, B]))

    def __len__(self) -> int:
        return 3


def settled(covers: MemberCovers, cover: Cover, a: float, ab: float, b: float, text: bytes) -> Cover:
    """Say what the model thinks after a cover's path: of the three tokens, and of the end."""
    covers.rows[cover.path] = np.cumsum([0.0, a, ab, b]), 1.0 - a - ab - b
    covers.settle(cover, bytearray(text))
    return cover


def shares(covers: MemberCovers) -> dict[tuple[int, ...], float]:
    return {tuple(c.path.ids()): c.weight for c in [*covers.known, *covers.waiting]}


def test_a_text_is_covered_by_tokens_inside_and_beyond_it():
    covers = MemberCovers(Order(), WalkLimits(merged_share=0.0))
    [root] = covers.due(2, 1e-3)
    settled(covers, root, 0.3, 0.6, 0.05, b"ab")
    assert shares(covers) == pytest.approx({(A,): 0.3, (AB,): 0.6})  # nothing goes on behind ab
    first = next(c for c in covers.waiting if c.path.ids() == [A])
    settled(covers, first, 0.0, 0.0, 0.5, b"ab")
    assert shares(covers) == pytest.approx({(AB,): 0.6, (A, B): 0.15})
    assert covers.ended_share(2) == 1.0
    assert covers.heaviest.ids() == [AB]


@pytest.mark.parametrize("known", [False, True])
def test_a_much_lighter_cover_lends_its_weight_to_the_one_with_its_end(known):
    covers = MemberCovers(Order(), WalkLimits(merged_share=0.03))
    [root] = covers.due(2, 1e-3)
    settled(covers, root, 0.3, 0.6, 0.05, b"ab")
    first, whole = covers.waiting
    if known:
        settled(covers, whole, 0.3, 0.3, 0.3, b"ab")
    settled(covers, first, 0.0, 0.0, 0.05, b"ab")  # 0.015 of 0.6
    assert shares(covers) == pytest.approx({(AB,): 0.615})


@pytest.mark.parametrize(
    ("lead", "text", "counts", "ended"), [(b"", b"", True, 0), (b"", b"a", False, 3 / 7), (b"a", b"", True, 1 / 3)]
)
def test_the_text_ends_only_where_a_token_does(lead, text, counts, ended):
    """A lead is no part of the text: a member that has written nothing may end it inside the lead."""
    covers = MemberCovers(Order(), WalkLimits(), lead)
    cover = settled(covers, covers.waiting[0], 0.3, 0.4, 0.1, text)
    assert cover.eos == pytest.approx(0.2 if counts else 0.0)
    assert cover.mass == pytest.approx({b"": 0.8, b"a": 0.4}[lead + text] + cover.eos)
    assert covers.ended_share(len(text)) == pytest.approx(ended)


def test_unlikely_ways_are_asked_about_when_they_count():
    covers = MemberCovers(Order(), WalkLimits(merged_share=0.0))
    settled(covers, covers.waiting[0], 0.999, 0.0005, 0.0005, b"a")
    [end] = covers.waiting
    settled(covers, end, 0.2, 0.3, 0.5, b"a")
    assert covers.due(1, 1e-3) == []
    before = [(c.begin, c.stop, c.depth, c.mass) for c in covers.known]
    covers.advance(before, [(1, 1, 2, 1e-4), (1, 1, 0, 0.5)], 1, [0.9])
    assert [c.path.ids() for c in covers.due(2, 1e-3)] == [[A, A]]
    assert [c.path.ids() for c in covers.due(2, 1e-5)] == [[A, A], [A, B]]


def test_what_waits_keeps_its_share_of_a_text_but_where_it_takes_a_turn():
    """B waits with a hundredth of the weight while two likely bytes come, one that nobody expects, and another."""
    covers = MemberCovers(Order(), WalkLimits())
    settled(covers, covers.waiting[0], 0.9, 0.05, 0.01, b"")
    standing = [(0, 2, 1, 0.9)]
    covers.advance(standing, [(0, 1, 2, 0.01)], 0, [0.9])
    [rest] = covers.waiting
    assert rest.path.ids() == [B]
    weight = rest.weight
    assert covers.likely_share(rest) == weight  # it ends with the text
    for length, prob in ((1, 0.5), (2, 0.04)):
        covers.advance(standing, [], length, [prob])
    assert covers.likely_share(rest) == pytest.approx(rest.weight * 0.5 * 0.04)
    assert covers.due(3, 1e-3) == []
    covers.advance([(0, 2, 1, 0.9 * 0.02)], [], 3, [0.02])  # nobody would have said this, but B may have
    assert covers.likely_share(rest) == pytest.approx(rest.weight * 0.5 * 0.04)
    assert covers.due(4, 1e-3) == [rest]
    assert covers.heaviest.ids() == []
    covers.advance([(0, 2, 1, 0.9 * 0.02 * 0.6)], [], 4, [0.6])
    assert covers.likely_share(rest) == pytest.approx(rest.weight * 0.5 * 0.04 * 0.6)


def test_what_waits_is_forgotten_far_behind():
    """Else its weight beside the text's grows without end, until it is infinite and the heaviest."""
    covers = MemberCovers(Order(), WalkLimits(merged_share=0.0))
    settled(covers, covers.waiting[0], 0.5, 0.1, 0.01, b"")
    covers.advance([(0, 0, 0, 0.0)], [(0, 1, 0, 0.5), (0, 1, 2, 1e-5)], 0, [0.5])
    for length in range(1, 2000):
        text = b"a" * length
        newest = max(covers.waiting, key=lambda cover: cover.end)
        assert covers.heaviest is newest.path
        assert newest.path.length == length
        assert len(covers.waiting) == 1 + (length - 1 <= WalkLimits().max_lag)
        settled(covers, newest, 0.5, 0.1, 0.01, text)
        covers.advance([(0, 0, 0, 0.0)], [(0, 1, 0, 0.5 * newest.weight)], length, [0.5])


@pytest.mark.parametrize("waits", [False, True])
def test_rows_that_lie_behind_are_let_go_of(waits):
    """But not of a cover that waits, which may count yet."""
    covers = MemberCovers(Order(), WalkLimits())
    row = np.cumsum([0.0, 0.3, 0.3, 0.3]), 0.1
    paths = covers.root.along([A, B, A], {A: b"a", B: b"b"})
    covers.rows = dict.fromkeys(paths, row)
    settled(covers, covers.waiting[0], 0.5, 0.3, 0.1, b"")
    covers.advance([(0, 3, 0, 0.9)], [(0, 1, 0, 0.5)] if waits else [], 0, [0.9, 0.9])
    assert set(covers.rows) == set(paths[0 if waits else 1 :])


@pytest.mark.parametrize(
    ("sure", "draft", "foreseen"),
    [(b"ab", b"abc", b"abc"), (b"ab", b"ab", b"ab"), (b"ab", b"a", b"ab"), (b"ab", b"axc", b"ab"), (b"", b"x", b"x")],
)
def test_a_draft_counts_where_it_says_more_than_is_sure_and_nothing_else(sure, draft, foreseen):
    state = ExactState([], None, [], sure=sure, draft=draft)
    assert state.foreseen == foreseen
    assert state.expected_bytes(1) == foreseen[:1]


def test_given_bytes_are_expected_up_to_an_end_of_the_text():
    state = ExactState([], None, [], forced=[97, 98, END_OF_TEXT, 99], sure=b"x")
    assert state.expected_bytes(8) == b"ab"
    assert state.expected_bytes(1) == b"a"
    state.log_probs = [-1.0, -1.0]
    assert state.expected_bytes(8) == b""


def test_what_a_member_gave_to_its_lead_is_not_known():
    covers = MemberCovers(Order(), WalkLimits(), b"a")
    covers.advance([], [], 0, [0.9])
    covers.advance([], [], 1, [0.5, 0.25])
    assert covers.byte_probs == [0.0, 0.9, 0.5, 0.25]
