"""The members' scores for running requests, processed and on one device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import torch

from ..exchange import HERE, Exchange
from ..members.base import BaseMember, Context, Place, Scores
from ..members.context import LogitScores
from ..members.ranks import NoScores, SpreadScores
from ..vocab.alignment import VocabAlignment
from .processors import Processors, ScoredRow
from .request import Request

Result = TypeVar("Result")


class MemberOutOfMemory(Exception):
    """A member ran out of memory in a pass; which one, and torch's error as the cause."""

    def __init__(self, member: int) -> None:
        super().__init__(member)
        self.member = member


def guarded(member: int, call: Callable[[], Result]) -> Result:
    """What a call returns; a lack of memory in it is that of the member."""
    try:
        return call()
    except torch.OutOfMemoryError as error:
        raise MemberOutOfMemory(member) from error


class Evaluator:
    """Asks the members of one engine for scores.

    Parameters
    ----------
    members : sequence of BaseMember
    contexts : sequence of Context
        One per member.
    alignment : VocabAlignment
        On the device where the steps run.
    exchange : Exchange
        Between the processes that the members live in.

    Attributes
    ----------
    order : list of int
        The members in the order in which they are asked.
    """

    def __init__(
        self,
        members: Sequence[BaseMember],
        contexts: Sequence[Context],
        alignment: VocabAlignment,
        exchange: Exchange = HERE,
    ) -> None:
        self.members = members
        self.contexts = contexts
        self.alignment = alignment
        self.exchange = exchange
        # Members that run elsewhere are asked first: they answer while the others run here.
        self.order = sorted(range(len(members)), key=lambda m: members[m].gives_logits)
        self._processors = Processors([v.eos_token_ids for v in alignment.vocabularies])

    def next_scores(self, m: int, requests: Sequence[Request]) -> Scores:
        """A member's scores for every request's next token.

        Raises
        ------
        MemberOutOfMemory
        """
        context = self.contexts[m]
        scores = self.asked(m, len(requests), lambda: context.evaluate([request.key for request in requests]))
        return self.processed(m, scores, None, requests)

    def place_scores(self, m: int, requests: Sequence[Request], places: Sequence[Sequence[Place]]) -> Scores:
        """A member's scores at several places of every request, all of the first request's, then the next one's.

        Raises
        ------
        MemberOutOfMemory
        """
        wanted = [place for own in places for place in own]
        scores = self.asked(m, len(wanted), lambda: self.contexts[m].evaluate_places(wanted))
        return self.processed(m, scores, places, requests)

    def all_place_scores(self, requests: Sequence[Request], places: Sequence[Sequence[list[Place]]]) -> list[Scores]:
        """Every member's scores at its places of each request; raises as `place_scores`."""
        scores = {m: self.place_scores(m, requests, [own[m] for own in places]) for m in self.order}
        return [scores[m] for m in range(len(self.members))]

    def asked(self, m: int, rows: int, call: Callable[[], Scores]) -> Scores:
        """The scores of so many rows that a call to a member gives.

        Raises
        ------
        MemberOutOfMemory
            With members in several processes later, when all of them know of it.
        """
        try:
            return guarded(m, call)
        except MemberOutOfMemory as error:
            self.exchange.lacks(m, error)
            return NoScores(rows, self.alignment.device)

    def read_prompts(self, budget: int) -> None:
        """Let every member read up to `budget` ids of prompts, see `Context.prefill`; raises as `asked`."""
        for m, context in enumerate(self.contexts):
            try:
                guarded(m, partial(context.prefill, budget))
            except MemberOutOfMemory as error:
                self.exchange.lacks(m, error)

    def ready(self, keys: Sequence[int]) -> list[bool]:
        """Whether each request can run beside the others in every member."""
        return self.exchange.agreed([all(context.ready(key) for context in self.contexts) for key in keys])

    def processed(
        self, m: int, scores: Scores, places: Sequence[Sequence[Place]] | None, requests: Sequence[Request]
    ) -> Scores:
        """Scores after the member's processors, on the alignment's device.

        The n-th place of a request is where n more of its tokens stand than now; None for where all of them end.
        """
        if self.exchange is HERE:
            return self._processed(m, scores, places, requests)
        if self.exchange.holds(m):
            scores = self._processed(m, scores, places, requests)
        return SpreadScores(scores, self.exchange)

    def _processed(
        self, m: int, scores: Scores, places: Sequence[Sequence[Place]] | None, requests: Sequence[Request]
    ) -> Scores:
        early: list[int] = []
        rows: list[ScoredRow] = []
        row = 0
        for r, request in enumerate(requests):
            options, own = request.options, 1 if places is None else len(places[r])
            lack = options.min_new_tokens - len(request.ids)
            if lack > 0:
                early += range(row, row + min(lack, own))
            if options.processes:
                ends = [(request.key, 0, ())] if places is None else places[r]
                rows += [self._scored_row(m, row + n, request, place, n) for n, place in enumerate(ends)]
            row += own
        if early or rows:
            scores = self._processors.apply(m, scores, early, rows)
        logits = scores.logits
        if logits is None:
            return scores
        if logits.dtype == torch.float64:
            logits = logits.float()
        # Joined rows are stacked whenever they are asked for: once is enough.
        moved = logits.to(self.alignment.device)
        return scores if moved is logits and isinstance(scores, LogitScores) else LogitScores(moved)

    def _scored_row(self, m: int, row: int, request: Request, place: Place, n: int) -> ScoredRow:
        constraint = request.constraint if request.exact is None else request.exact.masks
        at_start = request.starts[m] and len(self._place_ids(m, place)) == len(request.prompt_ids[m])
        return ScoredRow(row, request.options, partial(self._place_ids, m, place), constraint, n, at_start)

    def _place_ids(self, m: int, place: Place) -> list[int]:
        key, drop, append = place
        ids = self.contexts[m].ids(key)
        return [*ids[: len(ids) - drop], *append]
