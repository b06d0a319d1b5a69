"""The meaning of exact boundaries: worked examples by hand, and the laws of probability on random tables."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unite_ext.reference_exact import END_OF_TEXT, ExactMember, continuations, generate, next_symbols, walk


def table_member(rows: dict[bytes, dict[bytes, float]]) -> ExactMember:
    """A member whose next token depends on the text before it only; the empty token is EOS."""
    tokens = sorted({token for row in rows.values() for token in row} | {b""})
    ids = {token: i for i, token in enumerate(tokens)}

    def next_probs(path):
        row = rows[b"".join(tokens[i] for i in path)]
        probs = [0.0] * len(tokens)
        for token, p in row.items():
            probs[ids[token]] = p
        return probs

    return ExactMember(tokens, [ids[b""]], next_probs)


FOUR = table_member(
    {
        b"": {b"\n": 1.0},
        b"\n": {b"    ": 0.9, b"   ": 0.1},
        b"\n   ": {b"x": 0.2, b"\n": 0.8},
        b"\n    ": {b"x": 1.0},
        b"\n    x": {b"": 1.0},
        b"\n   x": {b"": 1.0},
        b"\n   \n": {b"": 1.0},
    }
)
"""Writes four spaces in one token; after three, which it never writes, it would end the line."""
THREE_AND_ONE = table_member(
    {
        b"": {b"\n": 1.0},
        b"\n": {b"   ": 1.0},
        b"\n   ": {b" x": 1.0},
        b"\n    x": {b"": 1.0},
    }
)
"""Writes three spaces, and the fourth with the word that follows."""


def test_a_token_that_ends_inside_anothers_breaks_no_text():
    """Both write a line end, four spaces, and x: together they do the same, whoever leads."""
    for members in ([FOUR, THREE_AND_ONE], [THREE_AND_ONE, FOUR]):
        assert generate(members, max_bytes=20) == b"\n    x"


def test_the_vote_inside_a_token_is_that_of_the_token():
    # After "\n   " the first has been writing "    " with 0.9, and "   " with 0.1, after which x or a line end.
    found = continuations(FOUR, b"\n   ")
    assert found == {b" ": pytest.approx(0.9), b"x": pytest.approx(0.02), b"\n": pytest.approx(0.08)}
    symbols, ended = next_symbols(found, b"")
    assert ended == 0.0
    assert symbols == {0x20: pytest.approx(0.9), 0x78: pytest.approx(0.02), 0x0A: pytest.approx(0.08)}


def test_a_walk_stops_where_a_token_has_ended():
    # At the end of "\n" both agree on three spaces; the second's token ends there.
    assert [symbol for symbol, _ in walk([FOUR, THREE_AND_ONE], b"\n")] == [0x20] * 3
    [first] = walk([FOUR, THREE_AND_ONE], b"\n   ")[:1]
    assert first == (0x20, pytest.approx((0.9 + 1.0) / 2))


def test_several_tokenizations_are_summed():
    split = table_member(
        {
            b"": {b"a": 0.5, b"ab": 0.3, b"b": 0.2},
            b"a": {b"b": 0.6, b"": 0.4},
            b"ab": {b"": 1.0},
            b"b": {b"": 1.0},
        }
    )  # fmt: skip
    # "ab" is "ab" with 0.3, or "a" and "b" with 0.3.
    assert continuations(split, b"ab") == {None: pytest.approx(0.6)}
    [(a, first), (b, second), (end, third)] = [
        walk([split], text, max_ended=0.0)[0] for text in (b"", b"a", b"ab")
    ]  # fmt: skip
    assert (a, b, end) == (ord("a"), ord("b"), END_OF_TEXT)
    assert (first, second, third) == pytest.approx((0.8, 0.6 / 0.8, 1.0))


def test_weights_and_ties():
    left, right = (table_member({b"": {b"l": p, b"r": 1 - p}, b"l": {b"": 1}, b"r": {b"": 1}}) for p in (0.75, 0.25))
    assert walk([left, right], b"", primary=0)[0] == (ord("l"), 0.5)
    assert walk([left, right], b"", primary=1)[0] == (ord("r"), 0.5)
    assert walk([left, right], b"", weights=[1, 3])[0] == (ord("r"), pytest.approx(0.25 * 0.25 + 0.75 * 0.75))


def test_a_forced_byte_that_only_ended_tokens_allow_is_asked_about():
    """`e` ends with half a percent, less than may be left out; but a space follows nothing else."""
    member = table_member({b"": {b"e": 0.005, b"en": 0.985, b"x": 0.01}, b"e": {b" ": 1.0}, b"en": {b"": 1.0}})
    assert walk([member], b"", forced=list(b"en")) == [(ord("e"), pytest.approx(0.99)), (ord("n"), 1.0)]
    assert walk([member], b"", forced=list(b"e ")) == [(ord("e"), pytest.approx(0.99))]
    [(_, space)] = walk([member], b"e", forced=list(b" "))
    assert space == pytest.approx(0.005 / 0.99)


TOKENS = [b"", b"a", b"b", b"ab", b"ba", b"aab"]


def random_member(seed: int) -> ExactMember:
    """A member over six tokens whose probabilities depend on the whole path."""

    def next_probs(path):
        values = [random.Random(f"{seed} {path} {i}").random() ** 3 for i in range(len(TOKENS))]
        return [value / sum(values) for value in values]

    return ExactMember(TOKENS, [0], next_probs)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), text=st.text("ab", max_size=5))
def test_next_symbols_are_ratios_of_the_probabilities_of_texts(seed, text):
    member = random_member(seed)
    data = text.encode()
    found = continuations(member, data)
    symbols, ended = next_symbols(found, b"")
    assert ended == 0.0
    assert sum(symbols.values()) == pytest.approx(1.0)
    whole = sum(found.values())
    for symbol, p in symbols.items():
        if symbol != END_OF_TEXT:
            assert p == pytest.approx(sum(continuations(member, data + bytes([symbol])).values()) / whole)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6), text=st.text("ab", min_size=1, max_size=5))
def test_the_probability_of_a_text_does_not_depend_on_the_walks(seed, text):
    """Asked anew at every byte, or only where a token has ended: the product is the probability of the text."""
    member, data = random_member(seed), text.encode()
    for max_ended in (0.0, -1.0):
        at, product = 0, 1.0
        while at < len(data):
            steps = walk([member], data[:at], forced=list(data[at:]), max_ended=max_ended)
            for _, p in steps:
                product *= p
            at += len(steps)
        assert product == pytest.approx(sum(continuations(member, data).values()))
