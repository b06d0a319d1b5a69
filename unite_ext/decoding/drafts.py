"""Drafts for lossless speculation: who writes them, and how long they are.

A draft is a guess at a text's next tokens, as ids of the primary. All members are asked at all its places in one pass
each, and a step is taken at every place: as long as the winner is the draft's token, the next place stands where the
text does. A draft changes how many passes a text takes, and never the text.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from ..exchange import key_ids
from ..members.base import JoinedScores, Place, Scores
from ..members.context import LogitScores
from ..options import StepOptions
from .evaluation import Evaluator, guarded
from .ngrams import Ngrams
from .processors import apply_masks
from .request import NGRAM, Request

NGRAM_LENGTH = 8
LENGTHS = (0, 2, 4, 8)
"""What "auto" chooses among; 0 is plain decoding."""
_FIRST = (0, 4)  # lengths that are timed at first; others are estimated from these
_WARM, _AGAIN = 2, 64  # rounds of each at first, and rounds between looks at the second best
_BEST = StepOptions(k=1)
_KEEP = 0.8  # of the old estimate when a new figure comes


@dataclass
class Drafts:
    """The drafts of a round.

    Attributes
    ----------
    ids : list of list of int
        Per request the primary's ids; may be empty, and may be shortened.
    asked : int or None
        The primary, if it wrote them: it has been asked at all places, and its context stands at the drafts' ends.
    """

    ids: list[list[int]]
    asked: int | None = None
    rows: list[list[tuple[Scores, int]]] = field(default_factory=list)
    """Per request and place where the scores of `asked` are."""
    written: list[list[int]] = field(default_factory=list)
    """Per request what the context of `asked` holds of its draft."""

    def scores(self, evaluator: Evaluator, requests: Sequence[Request]) -> Scores:
        """The scores of `asked` at all places, as `Evaluator.place_scores` gives them."""
        rows = [row for draft, own in zip(self.ids, self.rows) for row in own[: len(draft) + 1]]
        # Places, seen from where the context stands.
        places: list[list[Place]] = [
            [(request.key, len(written) - n, ()) for n in range(len(draft) + 1)]
            for request, draft, written in zip(requests, self.ids, self.written)
        ]
        return evaluator.processed(self.asked or 0, JoinedScores(rows), places, requests)

    def settle(self, evaluator: Evaluator, requests: Sequence[Request], taken: Sequence[Sequence[int]]) -> None:
        """Bring the context of `asked` from the drafts to the ids that were taken."""
        if self.asked is None:
            return
        for request, written, ids in zip(requests, self.written, taken):
            same = 0
            while same < min(len(written), len(ids)) and written[same] == ids[same]:
                same += 1
            evaluator.contexts[self.asked].edit(request.key, len(written) - same, ids[same:])


class Drafter:
    """Writes drafts for the requests of one engine."""

    def __init__(self, evaluator: Evaluator, primary: int) -> None:
        self._evaluator = evaluator
        self._primary = primary
        self._alignment = evaluator.alignment

    def draft(self, requests: Sequence[Request], lengths: Sequence[int]) -> Drafts:
        """Drafts of up to these lengths, all by the drafter of the first request."""
        lengths = [
            max(0, min(n, request.options.max_new_tokens - len(request.ids) - 1))
            for n, request in zip(lengths, requests)
        ]
        drafter = requests[0].drafter
        if drafter == NGRAM:
            return Drafts([self._repeated(request, n) for request, n in zip(requests, lengths)])
        if drafter == self._primary:
            return self._by_primary(requests, lengths)
        return self._by_member(int(drafter or 0), requests, lengths)

    def _repeated(self, request: Request, length: int) -> list[int]:
        """What followed the text's last ids before, in the prompt or the text."""
        if request.ngrams is None:
            request.ngrams = Ngrams(request.prompt_ids[self._primary])
        request.ngrams.extend(request.ids[len(request.ngrams.ids) - len(request.prompt_ids[self._primary]) :])
        return request.ngrams.following(length)

    def _by_primary(self, requests: Sequence[Request], lengths: Sequence[int]) -> Drafts:
        m = self._primary
        drafts = Drafts([[] for _ in requests], m, [[] for _ in requests], [[] for _ in requests])
        self._write(m, requests, self._room(m, requests, lengths), drafts.rows, drafts.written)
        drafts.ids = [list(written) for written in drafts.written]
        return drafts

    def _by_member(self, m: int, requests: Sequence[Request], lengths: Sequence[int]) -> Drafts:
        """By another member: its text, in the primary's ids."""
        written: list[list[int]] = [[] for _ in requests]
        lengths = self._room(m, requests, lengths)
        self._write(m, requests, lengths, [[] for _ in requests], written, ends=False)
        ids = []
        for request, own, length in zip(requests, written, lengths):
            self._evaluator.contexts[m].edit(request.key, len(own), [])
            text = b"".join([self._alignment.token_bytes(m, i) for i in own])
            ids.append(self._alignment.encode_continuation(self._primary, text)[:length])
        return Drafts(ids)

    def _room(self, m: int, requests: Sequence[Request], lengths: Sequence[int]) -> list[int]:
        """The lengths, as far as they fit into a member's context."""
        limit = self._evaluator.members[m].context_length
        if limit is None:
            return list(lengths)
        used = self._evaluator.contexts[m].lengths([request.key for request in requests])
        return [max(0, min(n, limit - count - 1)) for n, count in zip(lengths, used)]

    def _write(
        self,
        m: int,
        requests: Sequence[Request],
        lengths: Sequence[int],
        rows: list[list[tuple[Scores, int]]],
        written: list[list[int]],
        *,
        ends: bool = True,
    ) -> None:
        """Let a member go on alone, greedily; `ends` asks it after its last id as well."""
        context = self._evaluator.contexts[m]
        eos = set(self._alignment.vocabularies[m].eos_token_ids)
        going = list(range(len(requests)))
        while going:
            going = [r for r in going if ends or len(written[r]) < lengths[r]]
            if not going:
                return
            keys = [requests[r].key for r in going]
            scores = guarded(m, partial(context.evaluate, keys))
            for row, r in enumerate(going):
                rows[r].append((scores, row))
            going = [r for r in going if len(written[r]) < lengths[r]]
            if not going:
                return
            if len(going) < len(keys):
                scores = scores.select([keys.index(requests[r].key) for r in going])
            scores = self._constrained(m, scores, [requests[r] for r in going], [written[r] for r in going])
            best, _ = scores.top_k(self._alignment, m, _BEST)
            following = []
            for r, i in zip(going, key_ids(best)[:, 0].tolist()):
                if i >= 0 and i not in eos:
                    written[r].append(i)
                    context.edit(requests[r].key, 0, [i])
                    following.append(r)
            going = following

    def _constrained(
        self, m: int, scores: Scores, requests: Sequence[Request], written: Sequence[Sequence[int]]
    ) -> Scores:
        """Scores with what grammars forbid left out, so that a draft can be taken; the given ones stay as they are."""
        rows = []
        for r, (request, ids) in enumerate(zip(requests, written)):
            if request.constraint is not None:
                request.constraint.look_ahead([self._alignment.token_bytes(m, i) for i in ids])
                rows.append((r, request.constraint, len(ids)))
        if not rows or scores.logits is None:
            return scores
        logits = scores.logits.float().clone()
        apply_masks(m, logits, rows)
        return LogitScores(logits)


class DraftLengths:
    """How long drafts are: as asked for, or what has been measured to be fastest.

    A round with drafts of n tokens takes T(n) seconds, which is measured, and gives (1 - a^(n+1)) / (1 - a) tokens,
    where a is the share of drafted tokens that are taken: of these figures the best ratio decides.
    """

    def __init__(self) -> None:
        self._seconds: dict[tuple[int, int], float] = {}  # (requests, length) to seconds of a round
        self._count: dict[tuple[int, int], int] = {}
        self._rounds = 0
        self._round: tuple[int, int] | None = None
        self._start = 0.0

    def choose(self, requests: Sequence[Request]) -> list[int]:
        """The length of every request's draft in the round that begins."""
        self._start = time.perf_counter()
        automatic = [request for request in requests if request.draft_length is None]
        length = self._best(len(requests), automatic) if automatic else 0
        self._round = (len(requests), length) if len(automatic) == len(requests) else None
        return [length if request.draft_length is None else request.draft_length for request in requests]

    def end(self) -> None:
        """The round has ended, its tokens have been chosen."""
        if self._round is None:
            return
        seconds, key = time.perf_counter() - self._start, self._round
        old = self._seconds.get(key)
        # The first round of a kind pays for what later ones find ready.
        first = self._count.get(key, 0) < 1
        self._seconds[key] = seconds if old is None or first else min(2 * old, _KEEP * old + (1 - _KEEP) * seconds)
        self._count[key] = self._count.get(key, 0) + 1

    def _best(self, size: int, requests: Sequence[Request]) -> int:
        for length in _FIRST:
            if self._count.get((size, length), 0) < _WARM:
                return length
        self._rounds += 1
        ranked = sorted(LENGTHS, key=lambda n: -self._tokens(n, requests) / self._time(size, n))
        return ranked[1] if self._rounds % _AGAIN == 0 else ranked[0]

    def _tokens(self, length: int, requests: Sequence[Request]) -> float:
        rates = [min(request.acceptance, 0.999) for request in requests]
        return sum((1 - a ** (length + 1)) / (1 - a) for a in rates) / len(rates)

    def _time(self, size: int, length: int) -> float:
        """Measured, or on the line through the lengths that are timed at first."""
        known = self._seconds.get((size, length))
        if known is not None:
            return known
        low, high = (self._seconds[size, n] for n in _FIRST)
        return max(low, low + (high - low) * (length - _FIRST[0]) / (_FIRST[1] - _FIRST[0]))
