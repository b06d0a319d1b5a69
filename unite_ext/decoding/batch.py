"""One step of the running requests: the members' scores, the choice, and its consequences for texts and contexts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .._core import BAD_INCLUDE
from ..members.base import BaseMember, Context, Scores
from ..members.context import LogitScores
from ..methods.base import TokenMethod
from ..reference import StepResult
from ..vocab.alignment import VocabAlignment
from ..vocab.text_sync import append_all
from .processors import Processors
from .request import Request, StepRecord, TargetScore
from .sampling import sample

_TINY = torch.finfo(torch.float32).tiny  # a probability of 0 counts as this


class MemberOutOfMemory(Exception):
    """A member ran out of memory in a pass; which one, and torch's error as the cause."""

    def __init__(self, member: int) -> None:
        super().__init__(member)
        self.member = member


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
        self._eos = frozenset(alignment.vocabularies[primary].eos_token_ids)
        self._processors = Processors([v.eos_token_ids for v in alignment.vocabularies])
        self._token_bytes = alignment.vocabularies[primary].token_bytes
        self._shares_ids = [print_ == alignment.fingerprints[primary] for print_ in alignment.fingerprints]
        self._limits = [
            (context, member.context_length)
            for member, context in zip(members, contexts)
            if member.context_length is not None
        ]

    @torch.no_grad()
    def step(self, requests: Sequence[Request]) -> None:
        """Take one step of every request; those that end or fail say so.

        Raises
        ------
        MemberOutOfMemory
            No request has changed.
        """
        first = self._scores(self.primary, requests)
        gated = self._gated(first, requests)
        open_rows = [r for r in range(len(requests)) if r not in gated]
        chosen: list[int | None] = [gated.get(r) for r in range(len(requests))]
        if open_rows:
            asked = [requests[r] for r in open_rows]
            primary_scores = first.select(open_rows) if gated else first
            scores = [primary_scores if m == self.primary else self._scores(m, asked) for m in range(len(self.members))]
            for r, token_id in zip(open_rows, self._decide(scores, asked)):
                chosen[r] = token_id
        for r, request in enumerate(requests):
            if request.error is None:
                request.num_steps += 1
                if r in gated:
                    request.gated_steps += 1
                    if request.keeps_records:
                        request.records.append(self._gated_record(gated[r]))
        self._emit(requests, chosen)

    def _scores(self, m: int, requests: Sequence[Request]) -> Scores:
        """A member's scores after its processors, on the alignment's device."""
        try:
            scores = self.contexts[m].evaluate([request.key for request in requests])
        except torch.OutOfMemoryError as error:
            raise MemberOutOfMemory(m) from error
        scores = self._processors.apply(m, scores, requests, self.contexts[m])
        logits = scores.logits
        if logits is None:
            return scores
        if logits.dtype == torch.float64:
            return LogitScores(logits.float().to(self.alignment.device))
        if logits.device != self.alignment.device:
            return LogitScores(logits.to(self.alignment.device))
        return scores

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

    def _decide(self, scores: Sequence[Scores], requests: Sequence[Request]) -> list[int | None]:
        """The primary's id for every request, None for EOS without an id; one launch per method."""
        groups: dict[tuple[int, bool], list[int]] = {}
        for r, request in enumerate(requests):
            groups.setdefault((id(request.method), request.targets is not None), []).append(r)
        if len(groups) == 1:
            return self._decide_alike(requests[0].method, scores, requests)
        chosen: list[int | None] = [None] * len(requests)
        for rows in groups.values():
            own = [requests[r] for r in rows]
            found = self._decide_alike(own[0].method, [s.select(rows) for s in scores], own)
            for r, token_id in zip(rows, found):
                chosen[r] = token_id
        return chosen

    def _decide_alike(
        self, method: TokenMethod, scores: Sequence[Scores], requests: Sequence[Request]
    ) -> list[int | None]:
        states = [request.state for request in requests]
        if requests[0].targets is None:
            return self._choose(method.step(scores, states), requests)
        wanted = [request.targets[len(request.ids)] for request in requests if request.targets is not None]
        targets = torch.tensor(wanted, device=self.alignment.device)
        probs, step = method.likelihood(scores, states, targets)
        return self._take_targets(probs, step, targets, wanted, requests)

    def _choose(self, step: StepResult, requests: Sequence[Request]) -> list[int | None]:
        """Take the largest average, or draw. The step's one wait for the device."""
        packed = torch.stack([step.next_ids[:, self.primary], step.winner.long(), step.status.long()]).cpu()
        ids, winners, status = packed.tolist()
        drawing = [r for r, request in enumerate(requests) if request.options.do_sample and status[r] == 0]
        if drawing:
            emits = self._emits(step).cpu()
            probs = step.union_probs.cpu().double()
            union = step.union_ids[:, :, self.primary].cpu()
            for r in drawing:
                winners[r] = sample(probs[r] * emits[r], requests[r].options, requests[r].generator)
                ids[r] = int(union[r, winners[r]])
        self._record(step, requests, winners, status)
        return [None if i < 0 else i for i in ids]

    def _take_targets(
        self, probs: Tensor, step: StepResult, targets: Tensor, wanted: list[int], requests: Sequence[Request]
    ) -> list[int | None]:
        """Take every request's target, noting how likely it was."""
        classes = self.alignment.classes[self.primary]
        own = step.next_ids[:, self.primary]
        same = (classes[own.clamp(min=0)] == classes[targets]) & (own >= 0)
        packed = torch.stack([probs.double(), same.double(), step.status.double()]).cpu()
        found, greedy, status = packed.tolist()
        for r, request in enumerate(requests):
            if status[r] == 0:
                request.scores.append(TargetScore(math.log(max(found[r], _TINY)), bool(greedy[r])))
        self._record(step, requests, step.winner.tolist(), [int(s) for s in status])
        return list(wanted)

    def _record(
        self, step: StepResult, requests: Sequence[Request], winners: Sequence[int], status: Sequence[int]
    ) -> None:
        """Fail the requests whose row cannot be decided, and keep the others' records where they are wanted."""
        for r, request in enumerate(requests):
            if status[r] != 0:
                request.error = self._failure(status[r], request)
        kept = [r for r, request in enumerate(requests) if request.keeps_records and request.error is None]
        if not kept:
            return
        union_ids, averages, members = (t.tolist() for t in (step.union_ids, step.union_probs, step.member_probs))
        sizes = step.union_size.tolist()
        for r in kept:
            n = sizes[r]
            requests[r].records.append(StepRecord(union_ids[r][:n], averages[r][:n], members[r][:n], winners[r]))

    def _failure(self, status: int, request: Request) -> ValueError:
        where = f"prompt {request.index}, step {request.num_steps + 1}"
        if status == BAD_INCLUDE:
            return ValueError(f"{where}: the target is not an eligible id of the primary")
        return ValueError(f"{where}: {self.members[status - 1].name} has no eligible logit above -inf")

    def _emits(self, step: StepResult) -> Tensor:
        """[B, U] bool: slots the primary can emit, and EOS."""
        emits = step.union_ids[:, :, self.primary] >= 0
        if not self._eos:
            for m, vocabulary in enumerate(self.alignment.vocabularies):
                eos = torch.tensor(list(vocabulary.eos_token_ids), device=emits.device).long()
                emits = emits | torch.isin(step.union_ids[:, :, m], eos)
        return emits

    def _gated_record(self, token_id: int) -> StepRecord:
        ids = [token_id if m == self.primary else -1 for m in range(len(self.members))]
        return StepRecord([ids], [1.0], [[1.0 if i == token_id else 0.0 for i in ids]], 0, gated=True)

    def _emit(self, requests: Sequence[Request], chosen: Sequence[int | None]) -> None:
        """Take every request's token into its text and into the members' contexts."""
        going: list[Request] = []
        ids: list[int] = []
        for request, token_id in zip(requests, chosen):
            if request.error is not None:
                continue
            targets = request.targets
            if targets is not None and len(request.ids) + 1 == len(targets):
                request.finish_reason = "length"  # the last target has been scored: nothing is read after it
            elif token_id is None or (token_id in self._eos and targets is None):
                request.finish_reason = "eos"
            else:
                request.emit(token_id, self._token_bytes[token_id])
                going.append(request)
                ids.append(token_id)
        if not going:
            return
        pieces = [self._token_bytes[token_id] for token_id in ids]
        for m, context in enumerate(self.contexts):
            if self._shares_ids[m]:
                for request, token_id in zip(going, ids):
                    context.edit(request.key, 0, [token_id])
                continue
            edits = append_all([sync for request in going if (sync := request.syncs[m]) is not None], pieces)
            for request, (drop, append) in zip(going, edits):
                context.edit(request.key, drop, append)
        for request in going:
            if len(request.ids) >= request.options.max_new_tokens and not request.finish_reason:
                request.finish_reason = "length"
        keys = [request.key for request in going]
        for context, limit in self._limits:
            lengths = context.lengths(keys)
            if max(lengths) >= limit:
                for request, length in zip(going, lengths):
                    if length >= limit and not request.finish_reason:
                        request.finish_reason = "length"
