"""The ways in which a member may have read a text whose end lies inside a token: covers.

A *cover* of a text is a path of the member's tokens that spells the text up to some place, after which the next token
reaches beyond the end. Its weight is the probability of the path; what it says of the next bytes is the probability of
every token that begins with the bytes between and goes on. Together the covers give the member's distribution over the
bytes that follow the text, over all its tokenizations (Vieira et al., "From Language Models over Tokens to Language
Models over Characters", arXiv 2412.03719; Hayase et al., "Sampling from Your Language Model One Byte at a Time", arXiv
2506.14123).

A cover costs a position in a forward pass, and most have no weight. Those whose share is certainly small wait, in case
the text takes a turn that makes them count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..vocab.byte_order import ByteOrder
from ..vocab.text_sync import TextSync


@dataclass(frozen=True)
class WalkLimits:
    """What may be left out of the exact rule, to ask the members less often."""

    min_share: float = 1e-3
    """The least share of a member's probability for which a position is run."""
    max_ended: float = 0.01
    """The share of a member's probability whose tokens may have ended before a walk stops."""
    kept_share: float = 1e-7
    """The least share for which a cover is remembered."""
    max_covers: int = 32
    """How many covers are remembered, known ones and others, those of the greatest weight."""
    max_bytes: int = 256
    """How far a walk goes at most."""


CoverTuple = tuple[NDArray[np.float64], int, int, int, int, float, float]


@dataclass(eq=False)
class Cover:
    """One way of reading the text. `sums` is None until the model has been asked what follows the path."""

    path: tuple[int, ...]
    """The member's ids after its prompt."""
    end: int
    """How many bytes of the text they spell."""
    weight: float
    """Probability of the path, relative to the text's."""
    sums: NDArray[np.float64] | None = None
    """Prefix sums of the next token's probabilities, beginning with that of token `first`."""
    first: int = 0
    begin: int = 0
    stop: int = 0
    """The tokens from `begin` up to `stop` go on from where the text ends."""
    depth: int = 0
    """How many bytes these have in common with the text after `end`."""
    mass: float = 1.0
    """Their probability together, and EOS's; 1 while it is not known."""
    eos: float = 0.0

    @property
    def share(self) -> float:
        """Probability of the text read in this way, at most where the mass is not known."""
        return self.weight * self.mass

    def as_tuple(self) -> CoverTuple:
        """What the walk takes."""
        assert self.sums is not None
        return self.sums, self.first, self.begin, self.stop, self.depth, self.weight, self.eos


class MemberCovers:
    """The covers of one request's text in one member.

    Parameters
    ----------
    order : ByteOrder
        Of the member's vocabulary.
    limits : WalkLimits
    lead : bytes
        What stands before the text for this member, and is no part of it: a space in the start state. Its covers are
        those of the lead and the text, so that a first token may end inside or behind it.
    """

    def __init__(self, order: ByteOrder, limits: WalkLimits, lead: bytes = b"") -> None:
        self.order = order
        self.limits = limits
        self.lead = lead
        self.known: list[Cover] = []
        self.waiting: list[Cover] = [Cover((), 0, 1.0)]

    @property
    def path(self) -> tuple[int, ...]:
        """The ids of the heaviest cover; of equals the one that is known."""
        return max([*self.known, *self.waiting], key=lambda cover: cover.share).path

    def restart(self, path: Sequence[int], end: int) -> None:
        """Forget all covers but this path, for a text that the member cannot have written."""
        self.known, self.waiting = [], [Cover(tuple(path), len(self.lead) + end, 1.0)]

    def due(self, text_length: int, min_share: float) -> list[Cover]:
        """The covers that may have this share and are not known: the model has to be asked about these.

        What is certain is the measure: the known covers, and those that end with the text, which say everything.
        """
        total = sum(cover.share for cover in self.known)
        total += sum(cover.share for cover in self.waiting if cover.end == len(self.lead) + text_length)
        return [cover for cover in self.waiting if cover.share >= min_share * total]

    def settle(self, cover: Cover, sums: NDArray[np.float64], eos: float, text: bytes) -> None:
        """Take in what the model says after a cover's path, whose end lies before or at the end of the text."""
        self.waiting.remove(cover)
        text = self.lead + text
        tail = text[cover.end :]
        for length in range(1, len(tail) + 1):
            token, after, _ = self.order.tokens.find(tail[:length])
            weight = cover.weight * float(sums[after] - sums[token])
            if weight > 0:
                self.waiting.append(Cover((*cover.path, int(self.order.ids[token])), cover.end + length, weight))
        _, begin, stop = self.order.tokens.find(tail)
        cover.sums, cover.first, cover.begin, cover.stop, cover.depth = sums, 0, begin, stop, len(tail)
        cover.eos = 0.0 if tail and len(text) > len(self.lead) else eos
        cover.mass = float(sums[stop] - sums[begin]) + cover.eos
        if cover.mass > 0:
            self.known.append(cover)

    def advance(
        self,
        ranges: Sequence[tuple[int, int, int, float]],
        ends: Sequence[tuple[int, int, int, float]],
        text_length: int,
    ) -> None:
        """Follow a walk, and leave out what has lost all weight.

        Parameters
        ----------
        ranges : sequence of (begin, stop, depth, mass)
            Where each known cover now stands.
        ends : sequence of (cover, length, token, weight)
            The known covers that one more token ends `length` bytes after the old end of the text.
        text_length : int
            Of the text before the walk.
        """
        ended = [
            Cover((*self.known[c].path, int(self.order.ids[token])), len(self.lead) + text_length + length, weight)
            for c, length, token, weight in ends
        ]
        for cover, (begin, stop, depth, mass) in zip(self.known, ranges):
            assert cover.sums is not None
            cover.sums = cover.sums[begin - cover.first : stop - cover.first + 1].copy()  # a row is large
            cover.first, cover.begin, cover.stop, cover.depth, cover.mass = begin, begin, stop, depth, mass
            cover.eos = 0.0
        self.waiting += ended
        self.prune()

    def prune(self) -> None:
        """Keep what may count, and scale the weights so that the heaviest is 1."""
        heaviest = max((cover.share for cover in [*self.known, *self.waiting]), default=0.0)
        if heaviest > 0:
            least = self.limits.kept_share * heaviest
            self.known, self.waiting = (
                sorted((c for c in own if c.share >= least), key=lambda c: -c.share)[: self.limits.max_covers]
                for own in (self.known, self.waiting)
            )
            for cover in [*self.known, *self.waiting]:
                cover.weight /= heaviest
        else:
            self.known, self.waiting = [], []


@dataclass(eq=False)
class ExactState:
    """What a request's steps with exact boundaries know of it."""

    members: list[MemberCovers]
    sync: TextSync
    """The primary's ids of the text."""
    weights: list[float]
    forced: list[int] | None = None
    """The symbols of the targets, which are taken whatever the members say."""
    min_share: float = 0.0
    """`WalkLimits.min_share`, or less while an unlikely target is looked at."""
    log_probs: list[float] = field(default_factory=list)
    """Of the forced symbols so far."""
    greedy: list[bool] = field(default_factory=list)

    def path(self, member: int) -> list[int]:
        """What a member should have read of the text: the ids of its heaviest cover."""
        return list(self.members[member].path)
