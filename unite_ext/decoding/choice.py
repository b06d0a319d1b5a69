"""From members' scores to tokens: one launch per method, the choice or the draw, and the records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .._core import BAD_INCLUDE
from ..exchange import HERE, Exchange
from ..members.base import BaseMember, Scores
from ..step_result import StepResult
from ..structured.constraint import StructureError
from ..vocab.alignment import VocabAlignment
from .request import Request, StepRecord, TargetScore
from .sampling import sample

_TINY = torch.finfo(torch.float32).tiny  # a probability of 0 counts as this
_LOWEST = -1e4  # the logarithm of one that no member gives, where they may be smaller than that


@dataclass(slots=True)
class Choice:
    """What one row of a step came to."""

    token_id: int | None
    """The primary's; None for EOS without an id there, and after an error."""
    error: Exception | None = None
    record: StepRecord | None = None
    score: TargetScore | None = None
    """Of the row's target, if it has one."""


class Chooser:
    """Decides rows of scores for the members of one engine.

    Parameters
    ----------
    members : sequence of BaseMember
    alignment : VocabAlignment
        On the device where the steps run.
    primary : int
    exchange : Exchange
        Between the processes that the members live in.
    """

    def __init__(
        self, members: Sequence[BaseMember], alignment: VocabAlignment, primary: int, exchange: Exchange = HERE
    ) -> None:
        self.members = members
        self.alignment = alignment
        self.primary = primary
        self.exchange = exchange

    def choose(
        self,
        scores: Sequence[Scores],
        requests: Sequence[Request],
        targets: Sequence[int] | None = None,
        own: Tensor | None = None,
    ) -> list[Choice]:
        """Decide every row.

        Parameters
        ----------
        scores : sequence of Scores
            One per member.
        requests : sequence of Request
            Whose row it is; a request may have several.
        targets : sequence of int, optional
            Per row an id of the primary that is taken whatever the members say, and scored.
        own : Tensor, float64 [N, M], optional
            The members' own log-probabilities of the targets, by which they are scored.

        Raises
        ------
        MemberOutOfMemory
            A member in another process is out of memory, or one here of which the others had to learn.
        """
        groups: dict[int, list[int]] = {}
        for r, request in enumerate(requests):
            groups.setdefault(id(request.method), []).append(r)
        if len(groups) == 1:
            return self._choose_alike(scores, requests, targets, own)
        choices: list[Choice | None] = [None] * len(requests)
        for rows in groups.values():
            given = None if targets is None else [targets[r] for r in rows]
            theirs = None if own is None else own[torch.tensor(rows, device=own.device)]
            found = self._choose_alike([s.select(rows) for s in scores], [requests[r] for r in rows], given, theirs)
            for r, choice in zip(rows, found):
                choices[r] = choice
        return [choice for choice in choices if choice is not None]

    def _choose_alike(
        self,
        scores: Sequence[Scores],
        requests: Sequence[Request],
        targets: Sequence[int] | None,
        own: Tensor | None,
    ) -> list[Choice]:
        """The same for rows whose requests have one method."""
        method, states = requests[0].method, [request.state for request in requests]
        if targets is not None:
            wanted = torch.tensor(list(targets), device=self.alignment.device)
            if own is None:
                probs, step = method.likelihood(scores, states, wanted)
                log_probs = probs.double().clamp(min=_TINY).log()
            else:
                step = method.step(scores, states)
                log_probs = (own + method.member_weights(states).log()).logsumexp(dim=1).clamp(min=_LOWEST)
            return self._score(log_probs, step, wanted, targets, requests)
        step = method.step(scores, states)
        found = [step.next_ids[:, self.primary], step.winner, step.status]
        if not step.status.is_cpu:  # the step's one wait for the device
            found = list(torch.stack([values.long() for values in found]).cpu())
        self.exchange.check()
        ids, winners, status = (values.tolist() for values in found)
        drawing = [r for r, request in enumerate(requests) if request.options.do_sample and status[r] == 0]
        if drawing:
            emits = self._emits(step).cpu()
            probs = step.union_probs.cpu().double()
            union = step.union_ids[:, :, self.primary].cpu()
            for r in drawing:
                winners[r] = sample(probs[r] * emits[r], requests[r].options, requests[r].generator)
                ids[r] = int(union[r, winners[r]])
        records = self._records(step, requests, winners)
        return [
            Choice(None, self._failure(status[r], request)) if status[r] else Choice(None if i < 0 else i, None, record)
            for r, (request, i, record) in enumerate(zip(requests, ids, records))
        ]

    def _score(
        self, log_probs: Tensor, step: StepResult, wanted: Tensor, targets: Sequence[int], requests: Sequence[Request]
    ) -> list[Choice]:
        """How likely every row's target is, and whether it would have been taken."""
        classes = self.alignment.classes[self.primary]
        own = step.next_ids[:, self.primary]
        same = (classes[own.clamp(min=0)] == classes[wanted]) & (own >= 0)
        packed = torch.stack([log_probs, same.double(), step.status.double()]).cpu()
        self.exchange.check()
        found, greedy, status = packed.tolist()
        return [
            Choice(None, self._failure(int(status[r]), request))
            if status[r]
            else Choice(target, score=TargetScore(found[r], bool(greedy[r])))
            for r, (request, target) in enumerate(zip(requests, targets))
        ]

    def _records(
        self, step: StepResult, requests: Sequence[Request], winners: Sequence[int]
    ) -> Sequence[StepRecord | None]:
        """Per row its record where its request keeps them."""
        if not any(request.keeps_records for request in requests):
            return [None] * len(requests)
        union_ids, averages, members = (t.tolist() for t in (step.union_ids, step.union_probs, step.member_probs))
        sizes = step.union_size.tolist()
        return [
            StepRecord(union_ids[r][:n], averages[r][:n], members[r][:n], winners[r]) if request.keeps_records else None
            for r, (request, n) in enumerate(zip(requests, sizes))
        ]

    def _failure(self, status: int, request: Request) -> ValueError:
        where = f"prompt {request.index}, step {request.num_steps + 1}"
        if status == BAD_INCLUDE:
            return ValueError(f"{where}: the target is not an eligible id of the primary")
        name = self.members[status - 1].name
        if request.constraint is not None:
            return StructureError(f"{where}: {name} has no token that the grammar allows and a logit above -inf for it")
        return ValueError(f"{where}: {name} has no eligible logit above -inf")

    def _emits(self, step: StepResult) -> Tensor:
        """[B, U] bool: slots the primary can emit, and EOS."""
        emits = step.union_ids[:, :, self.primary] >= 0
        if not self.alignment.vocabularies[self.primary].eos_token_ids:
            for m, vocabulary in enumerate(self.alignment.vocabularies):
                eos = torch.tensor(list(vocabulary.eos_token_ids), device=emits.device).long()
                emits = emits | torch.isin(step.union_ids[:, :, m], eos)
        return emits
