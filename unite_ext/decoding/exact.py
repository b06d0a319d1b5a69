"""Decoding with exact boundaries: the members vote on the next bytes of the text, wherever their tokens end.

UNITE's own step makes every member read the text as if it ended between two of its tokens. Where it does not, as after
three spaces of which a member would have made one token with a fourth, that member's vote is about another text. Here
every member's vote is that for the bytes that follow the text, over the ways in which it may have read it
(`covers.py`), and a step walks along the members' averaged votes byte by byte until some member's token has ended
(`csrc/core/byte_walk.h`). `unite_ext.reference_exact` states the rule in plain Python.

A member that has to be asked is asked ahead of time as well (`lookahead.py`): about places along the targets where a
text is scored, else along what the members that are inside a token will say next.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from .._host import END_OF_TEXT, walk
from ..members.base import Context
from ..structured.constraint import StructureError
from ..structured.text_masks import TextMasks
from ..vocab.alignment import VocabAlignment
from ..vocab.byte_order import byte_order
from ..vocab.text_sync import TextSync
from ..vocab.vocabulary import SPACE
from .covers import Cover, ExactState, MemberCovers, WalkLimits
from .evaluation import Evaluator
from .exact_drafts import ExactDrafter, follow
from .lookahead import Lookahead
from .request import ByteRecord, Request, TargetScore
from .start_state import pieces_along

_RECORDED = 10  # symbols that every member brings into a record


class ExactRunner:
    """Takes steps with exact boundaries for the members of one engine.

    Parameters
    ----------
    evaluator : Evaluator
    contexts : sequence of Context
        One per member.
    alignment : VocabAlignment
    primary : int
    max_places : int
        How many places' logits one pass may give.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        contexts: Sequence[Context],
        alignment: VocabAlignment,
        primary: int,
        max_places: int,
    ) -> None:
        self.evaluator = evaluator
        self.contexts = contexts
        self.alignment = alignment
        self.primary = primary
        self.lookahead = Lookahead(evaluator, contexts, alignment, max_places)
        self.drafter = ExactDrafter(evaluator, self.lookahead, alignment, primary, self._ask)
        self.limits = WalkLimits()

    def start(self, request: Request, weights: Sequence[float]) -> ExactState:
        """The state of a request before its first step."""
        vocabularies = self.alignment.vocabularies
        leads = [SPACE if starts else b"" for starts in request.starts]
        state = ExactState(
            [MemberCovers(byte_order(v), self.limits, lead) for v, lead in zip(vocabularies, leads)],
            TextSync(vocabularies[self.primary], leads[self.primary]),
            list(weights),
            min_share=self.limits.min_share,
        )
        if (structure := request.options.structure) is not None:
            state.masks = TextMasks(structure, vocabularies, request.starts)
        if request.targets is not None:
            eos = vocabularies[self.primary].eos_token_ids
            pieces = zip(request.targets, self._target_pieces(request))
            state.forced = [s for i, data in pieces for s in ([END_OF_TEXT] if i in eos else data)]
        return state

    def step(self, requests: Sequence[Request]) -> None:
        """Walk on with those of the requests whose members have said enough, one at least, or let them end or fail.

        Nobody waits for what another one has to ask: so more requests share a pass, and there are fewer.
        """
        self.drafter.draft(requests)
        for request in requests:
            _state(request).is_asking = True
        lacking = {request: self._lacking_by_member(request) for request in requests}
        while any(request.error is None for request in requests):
            ready = [request for request in requests if request.error is None and not any(lacking[request])]
            if moved := [request for request in ready if self._walk(request)]:
                self._end_step(moved)
                return
            lacking |= {request: self._lacking_by_member(request) for request in ready}
            m = _most_lacked(list(lacking.values()))
            asked = [request for request in requests if lacking[request][m]]
            self.lookahead.look(m, [(request, cover) for request in asked for cover in lacking[request][m]])
            for request in asked:
                lacking[request][m] = self._lacking(m, request)

    def _end_step(self, requests: Sequence[Request]) -> None:
        """End the step of requests that have walked."""
        for request in requests:
            _state(request).is_asking, _state(request).min_share = False, self.limits.min_share
        for m in range(len(self.contexts)):
            self._move_context(m, [request for request in requests if not request.done])
        for request in requests:
            if request.finish_reason:
                for sync in request.syncs:
                    if sync is not None:
                        sync.append(bytes(request.text))

    # Asking members

    def _ask(self, m: int, requests: Sequence[Request]) -> None:
        """Ask a member about the covers that count, until all that do are known."""
        while lacking := [(request, cover) for request in requests for cover in self._lacking(m, request)]:
            self.lookahead.look(m, lacking)

    def _lacking_by_member(self, request: Request) -> list[list[Cover]]:
        return [self._lacking(m, request) for m in range(len(self.contexts))]

    def _lacking(self, m: int, request: Request) -> list[Cover]:
        """The covers that count and that a member has to be asked about; those that it has been are taken in."""
        covers = _state(request).members[m]
        while due := self._due(m, request):
            if lacking := [cover for cover in due if cover.path not in covers.rows]:
                return lacking
            for cover in due:
                if math.isnan(covers.rows[cover.path][0][-1]):
                    where = f"prompt {request.index}, step {request.num_steps + 1}"
                    name = self.evaluator.members[m].name
                    request.error = ValueError(f"{where}: {name} has no eligible logit above -inf")
                covers.settle(cover, request.text)
        return []

    def _due(self, m: int, request: Request) -> list[Cover]:
        if request.error is not None:
            return []
        covers = _state(request).members[m]
        due = covers.due(len(request.text), _state(request).min_share)
        if not due and not covers.known:  # the member cannot have written this text
            vocabulary = self.alignment.vocabularies[m]
            ids = vocabulary.encode_continuation(covers.lead + request.text)
            covers.restart(covers.root.along(ids, vocabulary.token_bytes)[-1])
            due = covers.due(len(request.text), _state(request).min_share)
        return due

    # Choosing

    def _walk(self, request: Request) -> bool:
        """Choose the next bytes of one request, and take them; False where a target needs more covers before."""
        state, options = _state(request), request.options
        draws = None
        if options.do_sample:
            draws = torch.rand(
                self.limits.max_bytes, generator=request.generator, dtype=torch.float64, device="cpu"
            ).tolist()
        forced = None if state.forced is None else state.targets(self.limits.max_bytes)
        if forced == []:  # targets that add nothing to the text
            self._score(request, state)
            request.finish_reason = "length"
            return True
        steps, ranges, ends = walk(
            [
                (covers.order.tokens, [cover.as_tuple() for cover in covers.known], weight)
                for covers, weight in zip(state.members, state.weights)
            ],
            primary=self.primary,
            max_ended=self.limits.max_ended,
            unlikely_share=self.limits.unlikely_share,
            max_bytes=self.limits.max_bytes,
            allow_eos=len(request.ids) >= options.min_new_tokens,
            forced=forced,
            draws=draws,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            recorded=_RECORDED if request.keeps_records else 0,
        )
        symbols = [step[0] for step in steps]
        if forced is not None:
            # What has been left out may be much beside an unlikely byte; what comes in makes it more likely.
            least = max(self.limits.unlikely_share * min(step[2] for step in steps), self.limits.kept_share)
            while least < state.min_share:
                state.min_share = max(least, state.min_share / 8)
                if any(covers.due(len(request.text), state.min_share) for covers in state.members):
                    return False
            state.log_probs += [math.log(max(step[2], 5e-324)) for step in steps]
            state.greedy += [step[1] for step in steps]
        ended = symbols[-1:] == [END_OF_TEXT]
        piece = bytes(symbols[:-1] if ended else symbols)
        length = len(request.text)
        request.num_steps += 1
        for m, covers in enumerate(state.members):
            own = [end[1:] for end in ends if end[0] == m]
            covers.advance(ranges[m], own, length, [step[3][m] for step in steps[: len(piece)]])
        taken = self._take(request, state, piece, ended)
        if request.keeps_records:
            request.byte_records += [_record(symbol, candidates) for symbol, *_, candidates in steps[:taken]]
        if forced is None:
            follow(request, piece)
            if not request.finish_reason:
                state.sure = self._foresee(request)
        return True

    def _foresee(self, request: Request) -> bytes:
        """What the members that are inside a token will say next."""
        state, length = _state(request), len(request.text)
        weights = [
            weight if covers.known and covers.ended_share(length) < 0.5 else 0.0
            for covers, weight in zip(state.members, state.weights)
        ]
        if not any(weights):
            return b""
        steps, _, _ = walk(
            [
                (covers.order.tokens, [cover.as_tuple() for cover in covers.known] if weight else [], weight)
                for covers, weight in zip(state.members, weights)
            ],
            primary=self.primary,
            max_ended=0.5,
            unlikely_share=self.limits.unlikely_share,
            max_bytes=self.limits.max_bytes,
            allow_eos=False,
        )
        return bytes(step[0] for step in steps)

    def _take(self, request: Request, state: ExactState, piece: bytes, ended: bool) -> int:
        """Take the walked bytes into a request; how many symbols fit."""
        if piece:
            drop, append = state.sync.append(piece)
            room = request.options.max_new_tokens - len(state.sync.ids)
            if state.forced is None and (room < 0 or (room == 0 and not ended)):
                kept = state.sync.ids[: request.options.max_new_tokens]
                text = b"".join([self.alignment.token_bytes(self.primary, i) for i in kept])
                append, ended = append[: len(append) + room], False
                piece = text[len(state.sync.lead) + len(request.text) :]
                request.finish_reason = "length"
            try:
                request.edit(drop, append, piece)
            except StructureError as error:
                request.error = error
        if ended and not request.finish_reason:
            request.finish_reason = "eos"
        if state.forced is not None and len(state.log_probs) >= len(state.forced):
            self._score(request, state)
            request.finish_reason = "length"
        return len(piece) + ended

    def _score(self, request: Request, state: ExactState) -> None:
        """Share out the bytes' log-probabilities among the targets."""
        eos, at = self.alignment.vocabularies[self.primary].eos_token_ids, 0
        for target, data in zip(request.targets or (), self._target_pieces(request)):
            after = at + (1 if target in eos else len(data))
            request.scores.append(TargetScore(math.fsum(state.log_probs[at:after]), all(state.greedy[at:after])))
            at = after

    def _target_pieces(self, request: Request) -> list[bytes]:
        token_bytes = self.alignment.vocabularies[self.primary].token_bytes
        return pieces_along(request, self.primary, token_bytes, request.targets or (), at=0)

    def _move_context(self, m: int, requests: Sequence[Request]) -> None:
        """Bring a member's context to every request's heaviest cover."""
        limit = self.evaluator.members[m].context_length
        for request in requests:
            covers = _state(request).members[m]
            path = covers.heaviest
            if path is None:
                continue
            self.contexts[m].edit(request.key, *covers.standing.change_to(path))
            covers.standing = path
            if limit is not None and len(request.prompt_ids[m]) + path.length >= limit:
                request.finish_reason = "length"


def _most_lacked(lacking: Sequence[Sequence[list[Cover]]]) -> int:
    """The member to ask next: every request has a vote, and shares it among the members that it lacks."""
    votes = [0.0] * len(lacking[0])
    for own in lacking:
        lacked = [m for m, covers in enumerate(own) if covers]
        for m in lacked:
            votes[m] += 1 / len(lacked)
    return votes.index(max(votes))


def _record(symbol: int, candidates: Sequence[tuple[int, float, list[float]]]) -> ByteRecord:
    symbols = [c[0] for c in candidates]
    return ByteRecord(symbols, [c[1] for c in candidates], [c[2] for c in candidates], symbols.index(symbol))


def _state(request: Request) -> ExactState:
    assert request.exact is not None
    return request.exact
