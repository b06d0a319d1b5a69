"""From members' scores to tokens: one launch per method, the choice or the draw, and the records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .._core import BAD_INCLUDE, NO_ID
from ..exchange import HERE, Exchange
from ..members.base import BaseMember, Scores
from ..methods.base import TokenMethod
from ..methods.unite import emission_probability
from ..step_result import StepResult
from ..structured.constraint import StructureError
from ..vocab.alignment import VocabAlignment
from .absence import Absences
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


class Launch(NamedTuple):
    """A step of several rows, before anything is chosen."""

    step: StepResult
    alignment: VocabAlignment
    """By which it was taken."""
    starts: tuple[bool, ...]
    """The members that take their first step in the start state."""
    log_probs: Tensor | None = None
    """[N] float64, of targets."""
    wanted: Tensor | None = None
    """[N] int64: the targets."""


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
        self.absences = Absences(members, alignment, primary)

    def choose(
        self,
        scores: Sequence[Scores | None],
        requests: Sequence[Request],
        targets: Sequence[int] | None = None,
        own: Tensor | None = None,
        starts: Sequence[tuple[bool, ...]] | None = None,
    ) -> list[Choice]:
        """Decide every row.

        Parameters
        ----------
        scores : sequence of Scores or None
            One per member; None for one that all the requests have lost.
        requests : sequence of Request
            Whose row it is; a request may have several.
        targets : sequence of int, optional
            Per row an id of the primary that is taken whatever the members say, and scored.
        own : Tensor, float64 [N, M], optional
            The members' own log-probabilities of the targets, by which they are scored.
        starts : sequence of tuple of bool, optional
            Per row, the members that take their first step in the start state; rows of one alignment share a launch.

        Raises
        ------
        MemberAway
            A member has no answer for some requests; nothing has been drawn.
        MemberOutOfMemory
            A member in another process is out of memory, or one here of which the others had to learn.
        """
        first = requests[0].method
        if (starts is None or len(set(starts)) == 1) and all(request.method is first for request in requests):
            launch = self._launch(scores, requests, targets, own, starts[0] if starts else ())
            return self._decide(launch, requests, targets)
        groups: dict[tuple[int, tuple[bool, ...]], list[int]] = {}
        for r, request in enumerate(requests):
            groups.setdefault((id(request.method), starts[r] if starts else ()), []).append(r)
        choices: list[Choice | None] = [None] * len(requests)
        launched = []
        for (_, at_start), rows in groups.items():  # all before any draw: a member that stays away changes no later one
            given = None if targets is None else [targets[r] for r in rows]
            theirs = None if own is None else own[torch.tensor(rows, device=own.device)]
            alike = [requests[r] for r in rows]
            selected = [None if s is None else s.select(rows) for s in scores]
            launched.append((self._launch(selected, alike, given, theirs, at_start), alike, given, rows))
        for launch, alike, given, rows in launched:
            for r, choice in zip(rows, self._decide(launch, alike, given)):
                choices[r] = choice
        return [choice for choice in choices if choice is not None]

    def _launch(
        self,
        scores: Sequence[Scores | None],
        requests: Sequence[Request],
        targets: Sequence[int] | None,
        own: Tensor | None,
        starts: tuple[bool, ...],
    ) -> Launch:
        """The step of rows whose requests have one method, all the same members, and one alignment."""
        method, states = requests[0].method, [request.state for request in requests]
        alignment = self.alignment.at_start(starts) if any(starts) else self.alignment
        there = [s for s in scores if s is not None]
        if len(there) < len(scores):
            present = [m for m, s in enumerate(scores) if s is not None]
            return Launch(self.absences.step(method, scores, states, present, starts), alignment, starts)
        if alignment is not self.alignment:
            method = method.at_start(alignment)
        if targets is None:
            return Launch(method.step(there, states), method.alignment, starts)
        wanted = torch.tensor(list(targets), device=self.alignment.device)
        if own is None:
            probs, step = self._likelihood(method, there, requests, wanted)
            return Launch(step, method.alignment, starts, probs.double().clamp(min=_TINY).log(), wanted)
        step = method.step(there, states)
        log_probs = (own + method.member_weights(states).log()).logsumexp(dim=1).clamp(min=_LOWEST)
        return Launch(step, method.alignment, starts, log_probs, wanted)

    def _decide(self, launch: Launch, requests: Sequence[Request], targets: Sequence[int] | None) -> list[Choice]:
        """What the rows of a launch come to: the best slot, a draw, or how likely the target is."""
        step, starts = launch.step, launch.starts
        if targets is not None and launch.log_probs is not None and launch.wanted is not None:
            return self._score(launch.log_probs, step, launch.wanted, targets, requests, launch.alignment)
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
        records = self._records(step, requests, winners, starts)
        return [
            Choice(None, self._failure(status[r], request)) if status[r] else Choice(None if i < 0 else i, None, record)
            for r, (request, i, record) in enumerate(zip(requests, ids, records))
        ]

    def _likelihood(
        self, method: TokenMethod, scores: Sequence[Scores], requests: Sequence[Request], wanted: Tensor
    ) -> tuple[Tensor, StepResult]:
        """The probability of every row's target, and the step.

        A bare space that adds nothing to the text is no slot. It is emitted for slots that begin with it: that of the
        next target, if the text goes on with this, is made one.
        """
        states = [request.state for request in requests]
        silent = method.alignment.classes[self.primary][wanted] < 0
        if not bool(silent.any()):
            return method.likelihood(scores, states, wanted)
        own, at_start = (a.vocabularies[self.primary].token_bytes for a in (self.alignment, method.alignment))
        following = [(request.targets or ())[1:2] for request in requests]
        included = [ids[0] if ids and own[ids[0]] == at_start[ids[0]] else NO_ID for ids in following]
        include = torch.where(silent, torch.tensor(included, device=wanted.device), wanted)
        _, step = method.likelihood(scores, states, include)
        return emission_probability(step, wanted, method.alignment, self.primary), step

    def _score(
        self,
        log_probs: Tensor,
        step: StepResult,
        wanted: Tensor,
        targets: Sequence[int],
        requests: Sequence[Request],
        alignment: VocabAlignment,
    ) -> list[Choice]:
        """How likely every row's target is, and whether it would have been taken."""
        classes = alignment.classes[self.primary]
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
        self, step: StepResult, requests: Sequence[Request], winners: Sequence[int], starts: tuple[bool, ...]
    ) -> Sequence[StepRecord | None]:
        """Per row its record where its request keeps them."""
        records: list[StepRecord | None] = [None] * len(requests)
        kept = [r for r, request in enumerate(requests) if request.keeps_records]
        if not kept:
            return records
        rows = torch.tensor(kept, device=step.union_size.device)
        shown = (step.union_ids, step.union_probs, step.member_probs, step.union_size)
        for r, ids, averages, members, n in zip(kept, *(t[rows].tolist() for t in shown)):
            missing = tuple(sorted(requests[r].missing))
            records[r] = StepRecord(ids[:n], averages[:n], members[:n], winners[r], starts=starts, missing=missing)
        return records

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
