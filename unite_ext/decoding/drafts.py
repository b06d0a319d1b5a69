"""Drafts for lossless speculation, and who writes them.

A draft is a guess at a text's next tokens, as ids of the primary. All members are asked at all its places in one pass
each, and a step is taken at every place: as long as the winner is the draft's token, the next place stands where the
text does. A draft changes how many passes a text takes, and never the text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from ..exchange import key_ids, key_values
from ..members.base import JoinedScores, MemberAway, Place, Scores
from ..members.context import LogitScores
from ..options import StepOptions
from ..vocab.vocabulary import SPACE
from .evaluation import Evaluator
from .ngrams import Ngrams
from .processors import apply_masks
from .request import NGRAM, Request
from .start_state import first_steps

NGRAM_LENGTH = 8
_BEST_TWO = StepOptions(k=2)

GoesOn = Callable[[Sequence[Sequence[float]]], Sequence[bool]]
"""Of drafts, each by how sure their drafter was of every token and is of the next one: whether they take this one."""


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
    guesses: list[list[tuple[int, float]]] = field(default_factory=list)
    """Per request the tokens that `asked` would have taken, also the first that was not drafted, and how sure it was:
    the probability of its best token among the best two."""

    @classmethod
    def by(cls, asked: int, count: int) -> Drafts:
        """Empty ones of so many requests, by a member."""
        requests = range(count)
        return cls(
            [[] for _ in requests], asked, [[] for _ in requests], [[] for _ in requests], [[] for _ in requests]
        )

    @property
    def first_scores(self) -> Scores:
        """The scores of `asked` where the texts end, all from its first pass."""
        return self.rows[0][0][0]

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

    def draft(
        self, requests: Sequence[Request], drafter: int | str, lengths: Sequence[int], goes_on: GoesOn | None = None
    ) -> Drafts:
        """Drafts of up to these lengths, by a member or `NGRAM`; the primary's as far as `goes_on` says."""
        lengths = [
            max(0, min(n, request.options.max_new_tokens - len(request.ids) - 1))
            for n, request in zip(lengths, requests)
        ]
        if drafter == NGRAM:
            return Drafts([self._repeated(request, n) for request, n in zip(requests, lengths)])
        if drafter == self._primary:
            return self._by_primary(requests, lengths, goes_on)
        return self._by_member(int(drafter), requests, lengths)

    def _repeated(self, request: Request, length: int) -> list[int]:
        """What followed the text's last ids before, in the prompt or the text."""
        if request.ngrams is None:
            request.ngrams = Ngrams(request.prompt_ids[self._primary])
        request.ngrams.extend(request.ids[request.ngrams.grown :])
        return request.ngrams.following(length)

    def _by_primary(self, requests: Sequence[Request], lengths: Sequence[int], goes_on: GoesOn | None) -> Drafts:
        m = self._primary
        drafts = Drafts.by(m, len(requests))
        self._write(m, requests, self._room(m, requests, lengths), drafts, goes_on=goes_on)
        drafts.ids = [list(written) for written in drafts.written]
        return drafts

    def _by_member(self, m: int, requests: Sequence[Request], lengths: Sequence[int]) -> Drafts:
        """By another member: its text, in the primary's ids."""
        drafts = Drafts.by(m, len(requests))
        lengths = self._room(m, requests, lengths)
        self._write(m, requests, lengths, drafts, ends=False)
        ids = []
        for request, own, length in zip(requests, drafts.written, lengths):
            self._evaluator.contexts[m].edit(request.key, len(own), [])
            text = b"".join(self._pieces(m, request, own))
            lead = SPACE if text and request.starts[self._primary] and not request.ids else b""
            ids.append(self._alignment.encode_continuation(self._primary, lead + text)[:length])
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
        drafts: Drafts,
        *,
        ends: bool = True,
        goes_on: GoesOn | None = None,
    ) -> None:
        """Let a member go on alone, greedily; `ends` asks it after its last id as well."""
        context = self._evaluator.contexts[m]
        try:
            self._write_on(m, requests, lengths, drafts, ends=ends, goes_on=goes_on)
        except MemberAway:
            for request, ids in zip(requests, drafts.written):
                context.edit(request.key, len(ids), [])
            raise

    def _write_on(
        self,
        m: int,
        requests: Sequence[Request],
        lengths: Sequence[int],
        drafts: Drafts,
        *,
        ends: bool,
        goes_on: GoesOn | None,
    ) -> None:
        context, written, guesses = self._evaluator.contexts[m], drafts.written, drafts.guesses
        eos = set(self._alignment.vocabularies[m].eos_token_ids)
        going = list(range(len(requests)))
        while going:
            going = [r for r in going if ends or len(written[r]) < lengths[r]]
            if not going:
                return
            keys = [requests[r].key for r in going]
            scores = self._evaluator.asked(m, len(keys), partial(context.evaluate, keys))
            for row, r in enumerate(going):
                drafts.rows[r].append((scores, row))
            going = [r for r in going if len(written[r]) < lengths[r]]
            if not going:
                return
            if len(going) < len(keys):
                scores = scores.select([keys.index(requests[r].key) for r in going])
            best = self._best(m, scores, [requests[r] for r in going], [written[r] for r in going])
            following = []
            for r, (i, sure) in zip(going, best):
                if i >= 0 and i not in eos:
                    guesses[r].append((i, sure))
                    following.append(r)
            if goes_on is not None:
                worth = goes_on([[sure for _, sure in guesses[r]] for r in following])
                following = [r for r, goes in zip(following, worth) if goes]
            for r in following:
                i, _ = guesses[r][-1]
                written[r].append(i)
                context.edit(requests[r].key, 0, [i])
            going = following

    def _pieces(self, m: int, request: Request, written: Sequence[int]) -> list[bytes]:
        """What each of some ids that a member has written behind the text adds to it."""
        pieces = [self._alignment.token_bytes(m, i) for i in written]
        if pieces and self._at_start(m, request, 0):
            pieces[0] = pieces[0].removeprefix(SPACE)
        return pieces

    def _at_start(self, m: int, request: Request, written: int) -> bool:
        return not written and first_steps(request)[m]

    def _best(
        self, m: int, scores: Scores, requests: Sequence[Request], written: Sequence[Sequence[int]]
    ) -> list[tuple[int, float]]:
        """A member's best id of every row, -1 for none, and its probability among the best two."""

        def compute() -> Tensor:
            keys, _ = self._constrained(m, scores, requests, written).top_k(self._alignment, m, _BEST_TWO)
            sure = torch.softmax(key_values(keys).double(), dim=1).nan_to_num(0.0)  # where there is none
            return torch.stack([key_ids(keys)[:, 0].double(), sure[:, 0]], dim=1)

        found = self._evaluator.exchange.told(m, (len(requests), 2), torch.float64, compute).tolist()
        return [(int(i), sure) for i, sure in found]

    def _constrained(
        self, m: int, scores: Scores, requests: Sequence[Request], written: Sequence[Sequence[int]]
    ) -> Scores:
        """Scores with what grammars forbid left out, so that a draft can be taken; the given ones stay as they are."""
        rows = []
        for r, (request, ids) in enumerate(zip(requests, written)):
            if request.constraint is not None:
                request.constraint.look_ahead(self._pieces(m, request, ids))
                rows.append((r, request.constraint, len(ids), self._at_start(m, request, len(ids))))
        if not rows or scores.logits is None:
            return scores
        logits = scores.logits.float().clone()
        apply_masks(m, logits, rows)
        return LogitScores(logits)
