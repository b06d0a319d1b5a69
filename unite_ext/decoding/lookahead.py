"""Running a member at the places that steps with exact boundaries ask about, now and next, in few passes.

A step asks a member about the covers that count (`covers.py`). What it will ask about next can be guessed: the paths
along the bytes that are expected to follow. They are fed in the same pass. Of a text that is scored all bytes are
known, and with them all ways of reading it; a draft is taken for known as well. The ways whose share counts are run
level by level, each level in one pass.
Nothing depends on the guess but how many passes there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..members.base import Context, Place
from ..vocab.alignment import VocabAlignment
from ..vocab.byte_order import ByteOrder, byte_order
from .covers import Cover, ExactState, MemberCovers
from .evaluation import Evaluator
from .paths import Path
from .request import Request

_BYTES_PER_PLACE = 8  # of what is expected: longer than most tokens
_LONGEST = 64  # bytes of a token that is looked for
_LEVELS = 3  # what is left then is asked about when it counts
_REACH = 2  # how many bytes after a cover's end may be unlikely ones beside which it counts


class Lookahead:
    """Asks the members of one engine.

    Parameters
    ----------
    evaluator : Evaluator
    contexts : sequence of Context
        One per member.
    alignment : VocabAlignment
    max_places : int
        How many places' logits one pass may give.
    """

    def __init__(
        self, evaluator: Evaluator, contexts: Sequence[Context], alignment: VocabAlignment, max_places: int
    ) -> None:
        self.evaluator = evaluator
        self.contexts = contexts
        self.alignment = alignment
        self.max_places = max(1, max_places // 3)  # a place's sums take twice the memory of its float32 logits

    def look(self, m: int, due: Sequence[tuple[Request, Cover]]) -> None:
        """Fill `MemberCovers.rows` of member m for these covers, and for others that will be asked about.

        Raises
        ------
        MemberOutOfMemory
        ValueError
            The member has no logits at hand.
        """
        wanted: dict[int, list[Path]] = {}
        asked: list[Request] = []
        for request, cover in due:
            if cover.path not in _covers(request, m).rows:
                if request.key not in wanted:
                    asked.append(request)
                wanted.setdefault(request.key, []).append(cover.path)
        if not asked:
            return
        room = max(1, self.max_places // len(asked))
        fans: list[tuple[Request, _Fan]] = []
        for request in asked:
            own = wanted[request.key]
            text, paths = self._ahead(m, request, max(0, room // 2 - len(own)))
            if paths and (_state(request).forced is not None or _state(request).has_draft):
                fans.append((request, _Fan(text, paths)))
            own += [path for path in paths if path not in own and path not in _covers(request, m).rows]
        self._run(m, asked, [wanted[request.key] for request in asked])
        order = byte_order(self.alignment.vocabularies[m])
        for _ in range(_LEVELS):
            branching = [(request, fan.branches(_covers(request, m), order, room)) for request, fan in fans]
            branching = [(request, paths) for request, paths in branching if paths]
            if not branching:
                return
            self._run(m, [request for request, _ in branching], [paths for _, paths in branching])

    def tip(self, m: int, request: Request) -> Path | None:
        """The path of member m along the text and what is foreseen; None where it cannot have written the text."""
        covers, vocabulary = _covers(request, m), self.alignment.vocabularies[m]
        start = covers.heaviest
        if start is None:
            return None
        rest = covers.after(request.text, start.end) + _state(request).foreseen
        return start.along(vocabulary.encode_continuation(rest), vocabulary.token_bytes)[-1] if rest else start

    def said(self, m: int, paths: Mapping[Request, Path]) -> list[tuple[NDArray[np.float64], float]]:
        """What member m says after one path of every request, see `MemberCovers.rows`; it is asked where it must be.

        Raises
        ------
        MemberOutOfMemory
        """
        lacking = [request for request, path in paths.items() if _covers(request, m).said(path) is None]
        if lacking:
            self._run(m, lacking, [[paths[request]] for request in lacking])
        found = [_covers(request, m).said(path) for request, path in paths.items()]
        return [own for own in found if own is not None]

    def _run(self, m: int, requests: Sequence[Request], paths: Sequence[Sequence[Path]]) -> None:
        """One pass over several paths of every request. What else may count is kept by the member."""
        places: list[list[Place]] = [
            [(request.key, *_covers(request, m).standing.change_to(path)) for path in own]
            for request, own in zip(requests, paths)
        ]
        for request, own in zip(requests, paths):
            if (masks := _state(request).masks) is not None:
                text, lead = bytes(request.text) + _state(request).foreseen, len(_covers(request, m).lead)
                masks.places = [text[: max(0, path.end - lead)] for path in own]
        self.contexts[m].hold(
            [
                (request.key, *_covers(request, m).standing.change_to(path))
                for request in requests
                for path in self._staying(m, request)
            ]
        )
        logits = self.evaluator.place_scores(m, requests, places).logits
        if logits is None:
            raise ValueError(f"{self.evaluator.members[m].name} must have its logits at hand for boundaries='exact'")
        found = iter(byte_order(self.alignment.vocabularies[m]).probability_sums(logits))
        for request, own in zip(requests, paths):
            _covers(request, m).rows |= {path: next(found) for path in own}

    def _staying(self, m: int, request: Request) -> list[Path]:
        """The paths that are likely to be gone on from after this pass."""
        paths = _covers(request, m).likely_paths()
        if _state(request).has_draft and (tip := self.tip(m, request)) is not None:
            paths.append(tip)
        return paths

    def _ahead(self, m: int, request: Request, room: int) -> tuple[bytes, list[Path]]:
        """Up to `room` paths of a member along what is expected to follow, and the bytes after the first of them."""
        state, covers, vocabulary = _state(request), _covers(request, m), self.alignment.vocabularies[m]
        start = covers.heaviest
        expected = state.expected_bytes(_BYTES_PER_PLACE * room)
        if not expected or start is None:
            return b"", []
        text = covers.after(request.text, start.end) + expected
        paths = [start, *start.along(vocabulary.encode_continuation(text), vocabulary.token_bytes)]
        if state.forced is not None:
            paths.pop()  # what follows the targets is no matter
        known = {cover.path for cover in covers.known}
        length, limit = len(covers.lead) + len(request.text), self.evaluator.members[m].context_length
        paths = [
            path
            for path in paths
            if path.end >= length
            and path not in known
            and (limit is None or len(request.prompt_ids[m]) + path.length < limit)
        ]
        return (text[paths[0].end - start.end :] if paths else b""), paths[:room]


@dataclass
class _Fan:
    """The ways in which a member may read bytes that are given.

    Attributes
    ----------
    text : bytes
        What follows the first path.
    paths : list of Path
        Along the bytes as the member's tokenizer reads them, each one id longer than the one before.
    """

    text: bytes
    paths: list[Path]
    shares: list[float] = field(default_factory=list)
    """The text's probability at every byte, at least, relative to that of the first path."""
    heaviest: dict[int, float] = field(default_factory=dict)
    """By where they end, the greatest weight of the paths that have been run."""
    fresh: list[tuple[Path, float]] = field(default_factory=list)
    """Paths that have been run and not yet followed, and their probabilities."""

    def branches(self, covers: MemberCovers, order: ByteOrder, room: int) -> list[Path]:
        """The paths that count and have not been run, the weightiest first, at most `room`."""
        if not self.shares:
            self._start(covers, order)
        found: dict[Path, float] = {}
        for path, weight in self.fresh:
            sums = covers.rows[path][0]
            for length, (begin, after, _) in enumerate(order.tokens.prefixes(self._rest(path)), 1):
                own = weight * _mass(sums, begin, after)
                if own <= 0:
                    continue
                child = path.child(int(order.ids[begin]), length)
                at = self._position(child)
                if at >= len(self.text) or child.length > self.paths[-1].length or child in covers.rows:
                    continue
                limits, soon = covers.limits, self.shares[min(at + _REACH, len(self.text))]
                least = min(limits.min_share * self.shares[at], limits.unlikely_share * soon)
                if own >= max(least, limits.merged_share * self.heaviest.get(child.end, 0.0)):
                    found[child] = own
        chosen = sorted(found, key=lambda path: -found[path])[:room]
        self.fresh = [(path, found[path]) for path in chosen]
        for path, weight in self.fresh:
            self.heaviest[path.end] = max(weight, self.heaviest.get(path.end, 0.0))
        return chosen

    def _start(self, covers: MemberCovers, order: ByteOrder) -> None:
        """Follow the tokenizer's own path."""
        self.shares = [0.0] * (len(self.text) + 1)
        weight = 1.0
        for n, path in enumerate(self.paths):
            if path not in covers.rows:
                break
            self.fresh.append((path, weight))
            self.heaviest[path.end] = weight
            sums, at = covers.rows[path][0], self._position(path)
            self.shares[at] = max(self.shares[at], weight)
            size = self.paths[n + 1].end - path.end if n + 1 < len(self.paths) else 0
            following = 0.0
            for length, (begin, after, stop) in enumerate(order.tokens.prefixes(self._rest(path)), 1):
                self.shares[at + length] = max(self.shares[at + length], weight * _mass(sums, begin, stop))
                if length == size:
                    following = weight * _mass(sums, begin, after)
            weight = following

    def _position(self, path: Path) -> int:
        """Where a path ends in the text."""
        return path.end - self.paths[0].end

    def _rest(self, path: Path) -> bytes:
        """What follows a path, as far as a token may reach."""
        at = self._position(path)
        return self.text[at : at + _LONGEST]


def _mass(sums: NDArray[np.float64], begin: int, end: int) -> float:
    return float(sums[end] - sums[begin])


def _state(request: Request) -> ExactState:
    assert request.exact is not None
    return request.exact


def _covers(request: Request, m: int) -> MemberCovers:
    return _state(request).members[m]
