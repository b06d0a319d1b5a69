"""What the running requests do in a step of the engine: take a token, score targets, or try a draft."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..members.base import BaseMember, Context, Place, Scores
from ..vocab.alignment import VocabAlignment
from ..vocab.text_sync import append_all
from .choice import Choice, Chooser
from .drafts import Drafter, DraftLengths
from .evaluation import Evaluator
from .exact import ExactRunner
from .places import place_length, places_along
from .request import Request, StepRecord

_PLACE_BYTES = 1 << 28  # of the logits of one pass over many places
ACCEPTANCE_RATE = 0.05  # weight of one drafted token in the running share of those that are taken


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
    """

    def __init__(
        self, members: Sequence[BaseMember], contexts: Sequence[Context], alignment: VocabAlignment, primary: int
    ) -> None:
        self.members = members
        self.contexts = contexts
        self.alignment = alignment
        self.primary = primary
        self.evaluator = Evaluator(members, contexts, alignment)
        self.chooser = Chooser(members, alignment, primary)
        self.drafter = Drafter(self.evaluator, primary)
        self.exact = ExactRunner(self.evaluator, contexts, alignment, primary)
        self.lengths = DraftLengths()
        self._eos = frozenset(alignment.vocabularies[primary].eos_token_ids)
        self._token_bytes = alignment.vocabularies[primary].token_bytes
        self._limits = [
            (m, member.context_length) for m, member in enumerate(members) if member.context_length is not None
        ]
        self.max_places = max(1, _PLACE_BYTES // (4 * max(member.num_logits for member in members)))

    @torch.no_grad()
    def step(self, requests: Sequence[Request]) -> None:
        """Take one step of every request; those that end or fail say so.

        A request with targets scores as many as fit into a pass; one that speculates may take several tokens.

        Raises
        ------
        MemberOutOfMemory
            Requests of one kind (scoring, each drafter, plain) have all taken their step or none of them has. What the
            contexts have read is lost.
        """
        walking = [request for request in requests if request.exact is not None]
        if walking:
            self.exact.step(walking)
            requests = [request for request in requests if request.exact is None]
        scoring = [request for request in requests if request.targets is not None]
        generating = [request for request in requests if request.targets is None]
        if scoring:
            self._score(scoring)
        plain = [request for request in generating if request.drafter is None]
        for drafter in {request.drafter: None for request in generating if request.drafter is not None}:
            self._speculate([request for request in generating if request.drafter == drafter])
        if plain:
            self._take_one(plain)

    def _take_one(self, requests: Sequence[Request]) -> None:
        """One token of every request."""
        first = self.evaluator.next_scores(self.primary, requests)
        gated = self._gated(first, requests)
        open_rows = [r for r in range(len(requests)) if r not in gated]
        choices = {r: self._gated_choice(requests[r], token_id) for r, token_id in gated.items()}
        if open_rows:
            asked = [requests[r] for r in open_rows]
            scores = self._all_scores(asked, first.select(open_rows) if gated else first)
            choices |= zip(open_rows, self.chooser.choose(scores, asked))
        grown: list[Request] = []
        pieces: list[bytes] = []
        for r, request in enumerate(requests):
            request.gated_steps += r in gated
            if self._take(request, choices[r]):
                grown.append(request)
                pieces.append(self._token_bytes[request.ids[-1]])
        self._grow_contexts(grown, pieces, [[request.ids[-1]] for request in grown])

    def _all_scores(self, requests: Sequence[Request], first: Scores) -> list[Scores]:
        return [
            first if m == self.primary else self.evaluator.next_scores(m, requests) for m in range(len(self.members))
        ]

    def _take(self, request: Request, choice: Choice) -> bool:
        """Take a choice into a request; whether its text has grown."""
        if choice.error is not None:
            request.error = choice.error
            return False
        request.num_steps += 1
        if choice.record is not None:
            request.records.append(choice.record)
        if choice.token_id is None or choice.token_id in self._eos:
            request.finish_reason = "eos"
            return False
        request.emit(choice.token_id, self._token_bytes[choice.token_id])
        if not request.finish_reason and len(request.ids) >= request.options.max_new_tokens:
            request.finish_reason = "length"
        return True

    def _grow_contexts(
        self,
        requests: Sequence[Request],
        pieces: Sequence[bytes],
        new_ids: Sequence[Sequence[int]],
        asked: int | None = None,
    ) -> None:
        """Bring the members' contexts to the texts, which have grown by these bytes and ids of the primary.

        `asked` names a member whose context is there already.
        """
        if not requests:
            return
        keys = [request.key for request in requests]
        for m, context in enumerate(self.contexts):
            if requests[0].syncs[m] is None:
                if m != asked:
                    for key, ids in zip(keys, new_ids):
                        context.edit(key, 0, ids)
                continue
            syncs = [sync for request in requests if (sync := request.syncs[m]) is not None]
            for key, (drop, append) in zip(keys, append_all(syncs, pieces)):
                context.edit(key, drop, append)
        for m, limit in self._limits:
            lengths = self.contexts[m].lengths(keys)
            if max(lengths) >= limit:
                for request, length in zip(requests, lengths):
                    if length >= limit and not request.finish_reason:
                        request.finish_reason = "length"

    def _gated(self, scores: Scores, requests: Sequence[Request]) -> dict[int, int]:
        """The primary's token of every row that its gate decides."""
        gates = {r: request.options.gate for r, request in enumerate(requests) if request.options.gate is not None}
        if not gates:
            return {}
        logits = scores.logits
        if logits is None:
            raise ValueError("gate needs the primary's logits at hand")
        eligible = self.alignment.classes[self.primary][: self.alignment.vocab_sizes[self.primary]] >= 0
        values = logits[:, : len(eligible)].float().nan_to_num(nan=-torch.inf).masked_fill(~eligible, -torch.inf)
        top, ids = values.softmax(dim=1).max(dim=1)
        pairs = torch.stack([top.double(), ids.double()]).tolist()
        return {r: int(pairs[1][r]) for r, gate in gates.items() if pairs[0][r] > gate}

    def _gated_choice(self, request: Request, token_id: int) -> Choice:
        record = None
        if request.keeps_records:
            ids = [token_id if m == self.primary else -1 for m in range(len(self.members))]
            record = StepRecord([ids], [1.0], [[1.0 if i == token_id else 0.0 for i in ids]], 0, gated=True)
        return Choice(token_id, record=record)

    # Targets

    def _score(self, requests: Sequence[Request]) -> None:
        """Score the next targets of every request, as many as one pass takes."""
        room = max(1, self.max_places // len(requests))
        chunks, places, cut = [], [], []
        for request in requests:
            ids = (request.targets or ())[len(request.ids) : len(request.ids) + room]
            own = self._member_places(request, ids[:-1])
            fitting = self._fitting(request, own)
            cut.append(fitting < len(ids))
            chunks.append(ids[:fitting])
            places.append([member[:fitting] for member in own])
        scores = [
            self.evaluator.place_scores(m, requests, [own[m] for own in places]) for m in range(len(self.members))
        ]
        rows = [request for request, ids in zip(requests, chunks) for _ in ids]
        choices = iter(self.chooser.choose(scores, rows, [i for ids in chunks for i in ids]))
        grown = []
        for request, ids, is_cut in zip(requests, chunks, cut):
            self._take_scores(request, [next(choices) for _ in ids])
            if request.error is None:
                request.ids += ids
                if is_cut or len(request.ids) >= len(request.targets or ()):
                    request.finish_reason = "length"
                else:
                    grown.append((request, ids))
        self._grow_contexts(
            [request for request, _ in grown], [self._bytes_of(ids) for _, ids in grown], [ids for _, ids in grown]
        )

    def _take_scores(self, request: Request, choices: Sequence[Choice]) -> None:
        for choice in choices:
            if choice.error is not None:
                request.error = choice.error
                return
            if choice.score is not None:
                request.scores.append(choice.score)
                request.num_steps += 1

    def _member_places(self, request: Request, ids: Sequence[int]) -> list[list[Place]]:
        """Per member its places along these ids of the primary."""
        pieces = [self._token_bytes[i] for i in ids]
        return [places_along(request, m, ids, pieces) for m in range(len(self.members))]

    def _fitting(self, request: Request, places: Sequence[Sequence[Place]], asked: int | None = None) -> int:
        """How many of the places stand within the contexts of all members but the one asked; at least one."""
        fitting = max(map(len, places))
        for m, limit in self._limits:
            if m == asked:
                continue
            [length] = self.contexts[m].lengths([request.key])
            for n, place in enumerate(places[m][1:fitting], 1):
                if place_length(length, place) >= limit:
                    fitting = n
                    break
        return fitting

    def _bytes_of(self, ids: Sequence[int]) -> bytes:
        return b"".join([self._token_bytes[i] for i in ids])

    # Drafts

    def _speculate(self, requests: Sequence[Request]) -> None:
        """Try a draft of every request: steps are taken at all its places while the winners are the draft's tokens."""
        drafts = self.drafter.draft(requests, self.lengths.choose(requests))
        places = []
        for request, draft in zip(requests, drafts.ids):
            own = self._draft_places(request, draft, drafts.asked)
            fitting = self._fitting(request, own, drafts.asked)
            del draft[fitting - 1 :]
            places.append([member[:fitting] for member in own])
        scores = [
            drafts.scores(self.evaluator, requests)
            if m == drafts.asked
            else self.evaluator.place_scores(m, requests, [own[m] for own in places])
            for m in range(len(self.members))
        ]
        rows = [request for request, draft in zip(requests, drafts.ids) for _ in range(len(draft) + 1)]
        choices = iter(self.chooser.choose(scores, rows))
        new_ids = []
        for request, draft in zip(requests, drafts.ids):
            before = len(request.ids)
            self._take_draft(request, draft, [next(choices) for _ in range(len(draft) + 1)])
            new_ids.append(request.ids[before:])
        drafts.settle(self.evaluator, requests, new_ids)
        grown = [r for r, ids in enumerate(new_ids) if ids]
        self._grow_contexts(
            [requests[r] for r in grown],
            [self._bytes_of(new_ids[r]) for r in grown],
            [new_ids[r] for r in grown],
            drafts.asked,
        )
        self.lengths.end()

    def _draft_places(self, request: Request, draft: Sequence[int], asked: int | None) -> list[list[Place]]:
        """Per member its places along a draft; the one that has been asked needs none."""
        pieces = [self._token_bytes[i] for i in draft]
        return [[] if m == asked else places_along(request, m, draft, pieces) for m in range(len(self.members))]

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
            if n < len(draft):
                request.acceptance += (accepted - request.acceptance) * ACCEPTANCE_RATE
            if not self._take(request, choice) or not agrees or request.done:
                return
