"""What the running requests do in a step of the engine: take a token, score targets, or try a draft."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

from ..exchange import HERE, Exchange
from ..members.base import BaseMember, Context, MemberAway, Scores
from ..structured.constraint import StructureError
from ..vocab.alignment import VocabAlignment
from .choice import Choice, Chooser
from .draft_choice import AUTO, OWN, DraftChooser, DraftCosts
from .drafts import NGRAM_LENGTH, Drafter, Drafts
from .evaluation import Evaluator
from .exact import ExactRunner
from .gate import gated_choice, gated_tokens
from .request import NGRAM, Request
from .start_state import rows_along
from .target_scoring import TargetScorer
from .text_contexts import TextContexts

_PLACE_BYTES = 1 << 28  # of the logits of one pass over many places


class StepRunner:
    """Takes steps for the members of one engine.

    Parameters
    ----------
    members : sequence of BaseMember
    contexts : sequence of Context
        One per member.
    alignment : VocabAlignment
        On the device where the steps run.
    primary : int
    draft_costs : DraftCosts, optional
        What is known already of the times of drafts.
    exchange : Exchange
        Between the processes that the members live in.
    """

    def __init__(
        self,
        members: Sequence[BaseMember],
        contexts: Sequence[Context],
        alignment: VocabAlignment,
        primary: int,
        draft_costs: DraftCosts | None = None,
        exchange: Exchange = HERE,
    ) -> None:
        self.members = members
        self.contexts = contexts
        self.alignment = alignment
        self.primary = primary
        self.exchange = exchange
        self.evaluator = Evaluator(members, contexts, alignment, exchange)
        self.chooser = Chooser(members, alignment, primary, exchange)
        self.texts = TextContexts(members, contexts, alignment, primary)
        self.drafter = Drafter(self.evaluator, primary)
        self.draft_chooser = DraftChooser(draft_costs or DraftCosts(len(members), primary), primary)
        self._eos = frozenset(alignment.vocabularies[primary].eos_token_ids)
        max_places = max(1, _PLACE_BYTES // (4 * max(member.num_logits for member in members)))
        self.exact = ExactRunner(self.evaluator, contexts, alignment, primary, max_places)
        self.targets = TargetScorer(self.evaluator, self.chooser, self.texts, primary, max_places)

    @torch.no_grad()
    def step(self, requests: Sequence[Request]) -> None:
        """Take one step of every request; those that end or fail say so.

        A request with targets scores as many as fit into a pass; one that speculates may take several tokens. With
        exact boundaries a request may take its step in a later call, while others have taken theirs.

        Raises
        ------
        MemberOutOfMemory
            Requests of one kind (exact, scoring, each drafter, plain) have taken the steps of this call or none of them
            has. What the contexts have read is lost.
        """
        waiting = list(requests)
        while waiting:
            again: list[Request] = []
            for alike, step in self._kinds(waiting):
                try:
                    step(alike)
                except MemberAway as error:  # nothing has been taken: those that go on take their step once more
                    self.chooser.absences.note(error, alike)
                    again += [request for request in alike if not request.done]
            waiting = again

    def _kinds(self, requests: Sequence[Request]) -> list[tuple[list[Request], Callable[[Sequence[Request]], None]]]:
        """The requests that take the same kind of step with the same members, and what takes it."""
        kinds: dict[tuple[int, object], list[Request]] = {}
        for request in requests:
            if request.exact is not None:
                kind: tuple[int, object] = (0, None)
            elif request.targets is not None:
                kind = (1, request.full)
            elif request.drafter is None or request.missing:  # without a member there are no drafts
                kind = (3, tuple(sorted(request.missing)))
            else:
                kind = (2, (request.drafter, request.draft_length is None))
            kinds.setdefault(kind, []).append(request)
        return [(kinds[kind], self._taker(kinds[kind][0])) for kind in sorted(kinds, key=lambda kind: kind[0])]

    def _taker(self, request: Request) -> Callable[[Sequence[Request]], None]:
        """What takes the step of requests of this one's kind."""
        if request.exact is not None:
            return self.exact.step
        if request.targets is not None:
            return partial(self.targets.score, full=request.full)
        drafter = request.drafter
        if drafter is None or request.missing:
            return self._take_one
        if request.draft_length is None:
            return partial(self._speculate, drafter=drafter)
        return lambda own: self._try(own, self.drafter.draft(own, drafter, [r.draft_length or 0 for r in own]), drafter)

    def _take_one(self, requests: Sequence[Request], first: Scores | None = None) -> None:
        """One token of every request; `first` is what the primary says, where it has been asked."""
        if any(request.options.gate is not None for request in requests):
            choices = self._choose_gated(requests)
        else:
            choices = self.chooser.choose(self._all_scores(requests, first), requests, starts=rows_along(requests))
        grown: list[Request] = []
        pieces: list[bytes] = []
        new_ids: list[list[int]] = []
        for request, choice in zip(requests, choices):
            piece = self._take(request, choice)
            if piece is not None:
                grown.append(request)
                pieces.append(piece)
                new_ids.append([request.ids[-1]])
        self.texts.grow(grown, pieces, new_ids)

    def _choose_gated(self, requests: Sequence[Request]) -> list[Choice]:
        """Every row's choice; where the primary's gate decides, the others are not asked."""
        first = self.evaluator.next_scores(self.primary, requests)
        gated = gated_tokens(first, requests, self.alignment, self.primary, self.exchange)
        members = len(self.members)
        choices = {r: gated_choice(requests[r], token_id, members, self.primary) for r, token_id in gated.items()}
        open_rows = [r for r in range(len(requests)) if r not in gated]
        if open_rows:
            asked = [requests[r] for r in open_rows]
            scores = self._all_scores(asked, first.select(open_rows) if gated else first)
            choices |= zip(open_rows, self.chooser.choose(scores, asked, starts=rows_along(asked)))
        for r in gated:
            requests[r].gated_steps += 1
        return [choices[r] for r in range(len(requests))]

    def _all_scores(self, requests: Sequence[Request], first: Scores | None = None) -> list[Scores | None]:
        """Every member's scores, the primary's where they are given; None for one that the requests have lost."""
        scores: list[Scores | None] = [None] * len(self.members)
        scores[self.primary] = first
        for m in self.evaluator.order:
            if scores[m] is None and m not in requests[0].missing:
                scores[m] = self.evaluator.next_scores(m, requests)
        return scores

    def _take(self, request: Request, choice: Choice) -> bytes | None:
        """Take a choice into a request; the bytes of its token, None if it has taken none."""
        if choice.error is not None:
            request.error = choice.error
            return None
        request.num_steps += 1
        if choice.record is not None:
            request.records.append(choice.record)
        if choice.token_id is None or choice.token_id in self._eos:
            request.finish_reason = "eos"
            return None
        [piece] = self.texts.pieces(request, [choice.token_id])
        try:
            request.emit(choice.token_id, piece)
        except StructureError as error:
            request.error = error
            return None
        if not request.finish_reason and len(request.ids) >= request.options.max_new_tokens:
            request.finish_reason = "length"
        return piece

    def _speculate(self, requests: Sequence[Request], *, drafter: int | str) -> None:
        """Take the kind of round that is measured to be fastest; a plain one is that of plain decoding."""
        start = time.perf_counter()
        chooser, drafting = self.draft_chooser, 0.0
        before = [len(request.ids) for request in requests]
        steps = [request.num_steps for request in requests]
        offered: list[list[int]] = [[] for _ in requests]
        if drafter == AUTO:
            offered = self.drafter.draft(requests, NGRAM, [NGRAM_LENGTH] * len(requests)).ids
        drafts = Drafts(chooser.worthwhile(requests, offered))
        kind = chooser.choose(requests, drafts.ids)
        who = self.primary if kind == OWN else kind.drafter
        if isinstance(who, int):
            goes_on = partial(chooser.goes_on, len(requests)) if kind == OWN else None
            drafts = self.drafter.draft(requests, who, [int(kind.length)] * len(requests), goes_on)
            drafting = time.perf_counter() - start
        drafted = [len(ids) for ids in drafts.ids]
        if who is None or (kind == OWN and not any(drafted)):
            asked = kind == OWN
            first = self.evaluator.processed(self.primary, drafts.first_scores, None, requests) if asked else None
            self._take_one(requests, first)
            for request in requests:
                request.rounds += 1
        else:
            self._try(requests, drafts, who)
        took = torch.tensor([time.perf_counter() - start, drafting], dtype=torch.float64, device="cpu")
        if all(steps):  # the first pass reads a prompt as well
            tokens = sum(request.num_steps for request in requests) - sum(steps)
            # All processes have to choose alike.
            times = self.exchange.told(self.primary, (2,), took.dtype, lambda: took).tolist()
            if kind == OWN:
                chooser.end_own(drafted, tokens, *times)
            else:
                chooser.end(requests, kind, tokens, *times)
        for r, (request, at) in enumerate(zip(requests, before)):
            if kind == OWN:
                chooser.learn(drafts.guesses[r], request.ids[at:])
            if kind.drafter != NGRAM or not drafts.ids[r]:
                # What would have become of the n-grams is seen without trying them.
                chooser.compare(request, NGRAM, offered[r], request.ids[at:])

    def _try(self, requests: Sequence[Request], drafts: Drafts, drafter: int | str) -> None:
        """Try a draft of every request: steps are taken at all its places while the winners are the draft's tokens."""
        places = []
        for request, draft in zip(requests, drafts.ids):
            if request.constraint is not None:  # what the grammar does not allow, no step takes
                del draft[request.constraint.look_ahead(self.texts.pieces(request, draft)) :]
            own = self.texts.places(request, draft, drafts.asked)
            fitting = self.texts.fitting(request, own, drafts.asked)
            del draft[fitting - 1 :]
            places.append([member[:fitting] for member in own])
        rows = [request for request, draft in zip(requests, drafts.ids) for _ in range(len(draft) + 1)]
        starts = rows_along(requests, [self.texts.pieces(r, draft) for r, draft in zip(requests, drafts.ids)])
        try:
            found = {
                m: drafts.scores(self.evaluator, requests)
                if m == drafts.asked
                else self.evaluator.place_scores(m, requests, [own[m] for own in places])
                for m in self.evaluator.order
            }
            choices = iter(self.chooser.choose([found[m] for m in range(len(self.members))], rows, starts=starts))
        except MemberAway:
            drafts.settle(self.evaluator, requests, [[] for _ in requests])
            raise
        new_ids, pieces = [], []
        for request, draft in zip(requests, drafts.ids):
            before = len(request.ids)
            self._take_draft(request, draft, [next(choices) for _ in range(len(draft) + 1)])
            self.draft_chooser.compare(request, drafter, draft, request.ids[before:])
            new_ids.append(request.ids[before:])
            pieces.append(b"".join(self.texts.pieces(request, new_ids[-1], before)))
        drafts.settle(self.evaluator, requests, new_ids)
        grown = [r for r, ids in enumerate(new_ids) if ids]
        self.texts.grow(
            [requests[r] for r in grown], [pieces[r] for r in grown], [new_ids[r] for r in grown], drafts.asked
        )

    def _take_draft(self, request: Request, draft: Sequence[int], choices: Sequence[Choice]) -> None:
        """Take the choices up to the first that is not the draft's token, which is taken instead."""
        request.rounds += 1
        request.drafted += len(draft)
        for n, choice in enumerate(choices):
            agrees = n < len(draft) and choice.token_id == draft[n]
            if agrees and choice.record is not None:
                choice.record.drafted = True
            accepted = agrees and choice.error is None
            request.accepted += accepted
            if self._take(request, choice) is None or not agrees or request.done:
                return
