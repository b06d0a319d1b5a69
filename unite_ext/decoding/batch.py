"""What the running requests do in a step of the engine: take a token, score targets, or try a draft."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from ..exchange import HERE, Exchange
from ..members.base import BaseMember, Context, Place, Scores
from ..members.ranks import SpreadScores
from ..structured.constraint import StructureError
from ..vocab.alignment import VocabAlignment
from ..vocab.text_sync import append_all
from .choice import Choice, Chooser
from .draft_choice import AUTO, DraftChooser, DraftCosts
from .drafts import NGRAM_LENGTH, Drafter, Drafts
from .evaluation import Evaluator
from .exact import ExactRunner
from .full_likelihood import Chains, ask, base_rows, chain_log_probs
from .places import place_length, places_along
from .request import NGRAM, Request, StepRecord

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
        self.chains = Chains(alignment, primary)
        self.drafter = Drafter(self.evaluator, primary)
        self.draft_chooser = DraftChooser(draft_costs or DraftCosts(len(members), primary), primary)
        self.exact = ExactRunner(self.evaluator, contexts, alignment, primary)
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
        walking: list[Request] = []
        scoring: list[Request] = []
        plain: list[Request] = []
        drafted: dict[tuple[int | str, bool], list[Request]] = {}
        for request in requests:
            if request.exact is not None:
                walking.append(request)
            elif request.targets is not None:
                scoring.append(request)
            elif request.drafter is None:
                plain.append(request)
            else:
                drafted.setdefault((request.drafter, request.draft_length is None), []).append(request)
        if walking:
            self.exact.step(walking)
        for full in (False, True):
            if alike := [request for request in scoring if request.full == full]:
                self._score(alike, full)
        for (drafter, automatic), own in drafted.items():
            if automatic:
                self._speculate(own, drafter)
            else:
                self._try(own, self.drafter.draft(own, drafter, [r.draft_length or 0 for r in own]), drafter)
        if plain:
            self._take_one(plain)

    def _take_one(self, requests: Sequence[Request]) -> None:
        """One token of every request."""
        first = self.evaluator.next_scores(self.primary, requests)
        gated = self._gated(first, requests)
        if gated:
            choices = self._choose_beside(gated, first, requests)
        else:
            choices = self.chooser.choose(self._all_scores(requests, first), requests)
        grown: list[Request] = []
        pieces: list[bytes] = []
        new_ids: list[list[int]] = []
        for request, choice in zip(requests, choices):
            if self._take(request, choice):
                grown.append(request)
                token_id = request.ids[-1]
                pieces.append(self._token_bytes[token_id])
                new_ids.append([token_id])
        self._grow_contexts(grown, pieces, new_ids)

    def _choose_beside(self, gated: dict[int, int], first: Scores, requests: Sequence[Request]) -> list[Choice]:
        """Every row's choice, where the gate has decided some."""
        choices = {r: self._gated_choice(requests[r], token_id) for r, token_id in gated.items()}
        open_rows = [r for r in range(len(requests)) if r not in gated]
        if open_rows:
            asked = [requests[r] for r in open_rows]
            scores = self._all_scores(asked, first.select(open_rows))
            choices |= zip(open_rows, self.chooser.choose(scores, asked))
        for r in gated:
            requests[r].gated_steps += 1
        return [choices[r] for r in range(len(requests))]

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
        try:
            request.emit(choice.token_id, self._token_bytes[choice.token_id])
        except StructureError as error:
            request.error = error
            return False
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
        found = self.exchange.told(self.primary, (2, len(requests)), torch.float64, lambda: self._surest(scores))
        pairs = found.tolist()
        return {r: int(pairs[1][r]) for r, gate in gates.items() if pairs[0][r] > gate}

    def _surest(self, scores: Scores) -> torch.Tensor:
        """The primary's largest probability of every row, and its id, float64 [2, N]."""
        logits = (scores.own if isinstance(scores, SpreadScores) else scores).logits
        if logits is None:
            raise ValueError("gate needs the primary's logits at hand")
        eligible = self.alignment.classes[self.primary][: self.alignment.vocab_sizes[self.primary]] >= 0
        values = logits[:, : len(eligible)].float().nan_to_num(nan=-torch.inf).masked_fill(~eligible, -torch.inf)
        top, ids = values.softmax(dim=1).max(dim=1)
        return torch.stack([top.double(), ids.double()])

    def _gated_choice(self, request: Request, token_id: int) -> Choice:
        record = None
        if request.keeps_records:
            ids = [token_id if m == self.primary else -1 for m in range(len(self.members))]
            record = StepRecord([ids], [1.0], [[1.0 if i == token_id else 0.0 for i in ids]], 0, gated=True)
        return Choice(token_id, record=record)

    # Targets

    def _score(self, requests: Sequence[Request], full: bool) -> None:
        """Score the next targets of every request, as many as one pass takes."""
        room = max(1, self.max_places // len(requests))
        chunks, places, cut = [], [], []
        for request in requests:
            ids = (request.targets or ())[len(request.ids) : len(request.ids) + room]
            if full:
                ids = self._affordable(ids, room)
            own = self._member_places(request, ids[:-1])
            fitting = self._fitting(request, own)
            cut.append(fitting < len(ids))
            chunks.append(ids[:fitting])
            places.append([member[:fitting] for member in own])
        rows = [request for request, ids in zip(requests, chunks) for _ in ids]
        targets = [i for ids in chunks for i in ids]
        if full:
            scores, own_log_probs = self._full_scores(requests, chunks, places)
            choices = iter(self.chooser.choose(scores, rows, targets, own_log_probs))
        else:
            scores = [
                self.evaluator.place_scores(m, requests, [own[m] for own in places]) for m in range(len(self.members))
            ]
            choices = iter(self.chooser.choose(scores, rows, targets))
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

    def _full_scores(
        self, requests: Sequence[Request], chunks: Sequence[Sequence[int]], places: Sequence[Sequence[list[Place]]]
    ) -> tuple[list[Scores], torch.Tensor]:
        """The members' scores at all targets, and their own log-probabilities of them, [N, M]."""
        scores, columns = [], []
        for m, member in enumerate(self.members):
            lengths = self.contexts[m].lengths([request.key for request in requests])
            asked = [
                ask(own[m], [self.chains.of(m, i) for i in ids], length, member.context_length)
                for ids, own, length in zip(chunks, places, lengths)
            ]
            found = self.evaluator.place_scores(m, requests, [own.places for own in asked])
            options = requests[0].method.options
            columns.append(chain_log_probs(found, self.alignment, m, options, asked))
            scores.append(found.select(base_rows(asked)))
        return scores, self.exchange.log_probs(torch.stack(columns, dim=1))

    def _affordable(self, ids: Sequence[int], room: int) -> Sequence[int]:
        """As many of the targets, at least one, as have room with the places along their chains."""
        used = 0
        for n, token_id in enumerate(ids):
            used += max(len(self.chains.of(m, token_id)) for m in range(len(self.members)))
            if used > room:
                return ids[: max(1, n)]
        return ids

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

    def _speculate(self, requests: Sequence[Request], drafter: int | str) -> None:
        """Take the kind of round that is measured to be fastest; a plain one is that of plain decoding."""
        start = time.perf_counter()
        chooser, drafting = self.draft_chooser, 0.0
        before = [len(request.ids) for request in requests]
        steps = [request.num_steps for request in requests]
        repeats = Drafts([[] for _ in requests])
        if drafter == AUTO:
            repeats = self.drafter.draft(requests, NGRAM, [NGRAM_LENGTH] * len(requests))
        offered = [list(ids) for ids in repeats.ids]
        kind = chooser.choose(requests, offered)
        if kind.drafter is None:
            self._take_one(requests)
            for request in requests:
                request.rounds += 1
        elif kind.drafter == NGRAM:
            self._try(requests, repeats, NGRAM)
        else:
            drafts = self.drafter.draft(requests, kind.drafter, [kind.length] * len(requests))
            drafting = time.perf_counter() - start
            self._try(requests, drafts, kind.drafter)
        if all(steps):  # the first pass reads a prompt as well
            tokens = sum(request.num_steps for request in requests) - sum(steps)
            took = torch.tensor([time.perf_counter() - start, drafting], dtype=torch.float64, device="cpu")
            # All processes have to choose alike.
            chooser.end(
                requests, kind, tokens, *self.exchange.told(self.primary, (2,), took.dtype, lambda: took).tolist()
            )
        if kind.drafter != NGRAM:
            # What would have become of the n-grams is seen without trying them.
            for request, ids, at in zip(requests, offered, before):
                chooser.compare(request, NGRAM, ids, request.ids[at:])

    def _try(self, requests: Sequence[Request], drafts: Drafts, drafter: int | str) -> None:
        """Try a draft of every request: steps are taken at all its places while the winners are the draft's tokens."""
        places = []
        for request, draft in zip(requests, drafts.ids):
            if request.constraint is not None:  # what the grammar does not allow, no step takes
                del draft[request.constraint.look_ahead([self._token_bytes[i] for i in draft]) :]
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
            self.draft_chooser.compare(request, drafter, draft, request.ids[before:])
            new_ids.append(request.ids[before:])
        drafts.settle(self.evaluator, requests, new_ids)
        grown = [r for r, ids in enumerate(new_ids) if ids]
        self._grow_contexts(
            [requests[r] for r in grown],
            [self._bytes_of(new_ids[r]) for r in grown],
            [new_ids[r] for r in grown],
            drafts.asked,
        )

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
            if not self._take(request, choice) or not agrees or request.done:
                return
