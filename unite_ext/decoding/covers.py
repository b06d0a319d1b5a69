"""The ways in which a member may have read a text whose end lies inside a token: covers.

A *cover* of a text is a path of the member's tokens that spells the text up to some place, after which the next token
reaches beyond the end. Its weight is the probability of the path; what it says of the next bytes is the probability of
every token that begins with the bytes between and goes on. Together the covers give the member's distribution over the
bytes that follow the text, over all its tokenizations (Vieira et al., "From Language Models over Tokens to Language
Models over Characters", arXiv 2412.03719; Hayase et al., "Sampling from Your Language Model One Byte at a Time", arXiv
2506.14123).

A cover costs a position in a forward pass, and most have no weight. Those whose share is small wait, in case the text
takes a turn that makes them count. What a waiting cover says of the text behind it is not known. Of a likely byte it is
taken to be what the member as a whole has said. Nothing is guessed of an unlikely one: another reading may explain it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .._host import END_OF_TEXT
from ..structured.text_masks import TextMasks
from ..vocab.byte_order import ByteOrder
from ..vocab.text_sync import TextSync
from .paths import Path


@dataclass(frozen=True)
class WalkLimits:
    """What may be left out of the exact rule, to ask the members less often."""

    min_share: float = 1e-3
    """The least share of a member's probability for which a position is run."""
    max_ended: float = 0.01
    """The share of a member's probability whose tokens may have ended before a walk stops."""
    unlikely_share: float = 0.1
    """Both of these beside the probability of an unlikely target: no more than this share of it is left out."""
    merged_share: float = 0.03
    """A cover with less than this share of the weight of another one with the same end is taken as that one: both have
    read the same text, and what follows is asked about once."""
    unlikely_byte: float = 0.03
    """A byte to which the member gave less is a turn: a cover that waits may have given it anything. Above 1 every byte
    is one, and nothing is guessed."""
    max_lag: int = 64
    """How many bytes behind the end of the text a cover may lie that waits; longer than nearly every token."""
    held_share: float = 1e-4
    """The least share of a cover from which the member is likely to be asked about longer ones."""
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

    path: Path
    """The member's ids after its prompt."""
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
    def end(self) -> int:
        """How many bytes of the text its path spells."""
        return self.path.end

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

    Attributes
    ----------
    standing : Path
        What the member's context holds of the text.
    rows : dict of Path to (sums, eos)
        What the member says after paths that it has been asked about, see `ByteOrder.probability_sums`.
    byte_probs : list of float
        What the member gave to every byte of the lead and the text; 0 where it is not known.
    """

    def __init__(self, order: ByteOrder, limits: WalkLimits, lead: bytes = b"") -> None:
        self.order = order
        self.limits = limits
        self.lead = lead
        self.root = self.standing = Path()
        self.known: list[Cover] = []
        self.waiting: list[Cover] = [Cover(self.root, 1.0)]
        self.rows: dict[Path, tuple[NDArray[np.float64], float]] = {}
        self.byte_probs: list[float] = []

    @property
    def heaviest(self) -> Path | None:
        """The ids of the heaviest cover, of equals those of one that is known; None where no cover is left."""
        covers = [*self.known, *self.waiting]
        return max(covers, key=self.likely_share).path if covers else None

    def likely_share(self, cover: Cover) -> float:
        """A cover's share of the text. Of one that waits it is a guess, at most its bound.

        It is taken to say of every byte since what the member as a whole said, and of an unlikely one anything.
        """
        if cover.sums is not None:
            return cover.share
        since = self.byte_probs[cover.end :]
        return cover.share * math.prod([p for p in since if p >= self.limits.unlikely_byte])

    def likely_paths(self) -> list[Path]:
        """The paths of the covers from which longer ones that count are likely to come."""
        least = self.limits.held_share
        return [cover.path for cover in [*self.known, *self.waiting] if self.likely_share(cover) >= least]

    def said(self, path: Path) -> tuple[NDArray[np.float64], float] | None:
        """What the member says after a path, all of it; None where that is not at hand."""
        if path in self.rows:
            return self.rows[path]
        whole = len(self.order) + 1
        for cover in self.known:
            if cover.path is path and cover.depth == 0 and cover.sums is not None and len(cover.sums) == whole:
                return cover.sums, cover.eos
        return None

    def restart(self, path: Path) -> None:
        """Forget all covers but this path, for a text that the member cannot have written."""
        self.known, self.waiting = [], [Cover(path, 1.0)]

    def after(self, text: bytearray, end: int) -> bytes:
        """What follows the first `end` bytes of the lead and the text."""
        at = end - len(self.lead)
        return bytes(text[at:]) if at >= 0 else self.lead[end:] + text

    def ended_share(self, text_length: int) -> float:
        """The share of the member's probability whose tokens end with the text: what follows them is not known."""
        ended = sum(cover.weight for cover in self.waiting if cover.end == len(self.lead) + text_length)
        total = ended + sum(cover.share for cover in self.known)
        return ended / total if total > 0 else 1.0

    def due(self, text_length: int, min_share: float) -> list[Cover]:
        """The covers that may have this share and are not known: the model has to be asked about these.

        What is certain is the measure: the known covers, and those that end with the text, which say everything.
        """
        total = sum(cover.share for cover in self.known)
        total += sum(cover.share for cover in self.waiting if cover.end == len(self.lead) + text_length)
        least = min_share * total
        return [cover for cover in self.waiting if cover.share >= least and self.likely_share(cover) >= least]

    def settle(self, cover: Cover, text: bytearray) -> None:
        """Take in what the model says after a cover's path, whose end lies before or at the end of the text.

        It has been asked: the answer is taken from `rows`.
        """
        sums, eos = self.rows.pop(cover.path)
        self.waiting.remove(cover)
        tail = self.after(text, cover.end)
        found = self.order.tokens.prefixes(tail)
        for length, (token, after, _) in enumerate(found, 1):
            weight = cover.weight * float(sums[after] - sums[token])
            if weight > 0:
                self._take_in(Cover(cover.path.child(int(self.order.ids[token]), length), weight))
        begin, stop = 0, len(self.order)
        if tail:
            _, begin, stop = found[-1] if len(found) == len(tail) else (0, 0, 0)
        cover.sums, cover.first, cover.begin, cover.stop, cover.depth = sums, 0, begin, stop, len(tail)
        cover.eos = 0.0 if tail and text else eos
        cover.mass = float(sums[stop] - sums[begin]) + cover.eos
        if cover.mass > 0:
            self.known.append(cover)

    def advance(
        self,
        ranges: Sequence[tuple[int, int, int, float]],
        ends: Sequence[tuple[int, int, int, float]],
        text_length: int,
        probs: Sequence[float],
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
        probs : sequence of float
            What the member gave to each of the walk's bytes.
        """
        old_end = len(self.lead) + text_length
        self.byte_probs += [0.0] * (old_end - len(self.byte_probs))
        self.byte_probs += probs
        ended = []
        for c, length, token, weight in ends:
            path = self.known[c].path
            ended.append(Cover(path.child(int(self.order.ids[token]), old_end + length - path.end), weight))
        for cover, (begin, stop, depth, mass) in zip(self.known, ranges):
            assert cover.sums is not None
            cover.sums = cover.sums[begin - cover.first : stop - cover.first + 1].copy()  # a row is large
            cover.first, cover.begin, cover.stop, cover.depth, cover.mass = begin, begin, stop, depth, mass
            cover.eos = 0.0
        self.waiting += ended
        self.waiting = [cover for cover in self.waiting if len(self.byte_probs) - cover.end <= self.limits.max_lag]
        self._prune()
        wanted = {cover.path for cover in self.waiting}
        least = old_end + len(probs)
        self.rows = {path: row for path, row in self.rows.items() if path.end >= least or path in wanted}

    def _prune(self) -> None:
        """Keep what may count, and scale the weights so that the heaviest is 1."""
        waiting, self.waiting = sorted(self.waiting, key=lambda cover: -cover.weight), []
        for cover in waiting:
            self._take_in(cover)
        heaviest = max((self.likely_share(cover) for cover in [*self.known, *self.waiting]), default=0.0)
        if heaviest > 0:
            least = self.limits.kept_share * heaviest
            self.known, self.waiting = (
                [cover for share, cover in own if share >= least][: self.limits.max_covers]
                for own in (self._by_share(self.known), self._by_share(self.waiting))
            )
            for cover in [*self.known, *self.waiting]:
                cover.weight /= heaviest
        else:
            self.known, self.waiting = [], []

    def _by_share(self, covers: Sequence[Cover]) -> list[tuple[float, Cover]]:
        return sorted(((self.likely_share(cover), cover) for cover in covers), key=lambda pair: -pair[0])

    def _take_in(self, cover: Cover) -> None:
        """Let a cover wait, or be the heaviest one with the same end where it is much lighter."""
        alike = [other for other in [*self.known, *self.waiting] if other.end == cover.end]
        other = max(alike, key=lambda other: other.weight, default=None)
        if other is not None and cover.weight < self.limits.merged_share * other.weight:
            other.weight += cover.weight
        else:
            self.waiting.append(cover)


@dataclass(eq=False)
class ExactState:
    """What a request's steps with exact boundaries know of it."""

    members: list[MemberCovers]
    sync: TextSync
    """The primary's ids of the text."""
    weights: list[float]
    forced: list[int] | None = None
    """The symbols of the targets, which are taken whatever the members say."""
    masks: TextMasks | None = None
    """What a grammar allows along the text."""
    sure: bytes = b""
    """What the members that are inside a token will say next."""
    draft: bytes = b""
    """What has been drafted and not yet come to pass."""
    draft_sure: int = 0
    """How much of its beginning was sure already."""
    is_asking: bool = False
    """Whether a step has begun that could not be taken yet: members have more to say."""
    min_share: float = WalkLimits.min_share
    """`WalkLimits.min_share`, or less while an unlikely target is looked at."""
    log_probs: list[float] = field(default_factory=list)
    """Of the forced symbols so far."""
    greedy: list[bool] = field(default_factory=list)

    def ids(self, member: int) -> list[int]:
        """What a member's context holds of the text."""
        return self.members[member].standing.ids()

    def targets(self, count: int) -> list[int]:
        """The next symbols of the targets."""
        at = len(self.log_probs)
        return (self.forced or [])[at : at + count]

    @property
    def has_draft(self) -> bool:
        """Whether the draft says more than is sure, and nothing else."""
        return len(self.draft) > len(self.sure) and self.draft.startswith(self.sure)

    @property
    def foreseen(self) -> bytes:
        """What may follow a text without targets: members are asked about places along it ahead of time."""
        return self.draft if self.has_draft else self.sure

    def expected_bytes(self, count: int) -> bytes:
        """What is expected to follow the text: targets up to an end of the text, or what has been foreseen."""
        if self.forced is None:
            return self.foreseen[:count]
        left = self.targets(count)
        return bytes(left[: left.index(END_OF_TEXT)] if END_OF_TEXT in left else left)
