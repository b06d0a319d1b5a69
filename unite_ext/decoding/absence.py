"""What becomes of requests when a member stays away: they end with an error, or go on without it and say so."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from ..members.base import BaseMember, MemberAway, Scores
from ..methods.base import TokenMethod
from ..step_result import StepResult
from ..vocab.alignment import VocabAlignment
from .request import Request

logger = logging.getLogger(__name__)

DROP = "drop"


class Absences:
    """Notes which members requests have lost, and takes steps without them.

    Parameters
    ----------
    members : sequence of BaseMember
    alignment : VocabAlignment
        On the device where the steps run.
    primary : int
    """

    def __init__(self, members: Sequence[BaseMember], alignment: VocabAlignment, primary: int) -> None:
        self._members = members
        self._alignment = alignment
        self._primary = primary
        self._alignments: dict[tuple[int, ...], VocabAlignment] = {}
        self._methods: dict[tuple[int, tuple[int, ...]], tuple[TokenMethod, TokenMethod]] = {}

    def note(self, error: MemberAway, requests: Sequence[Request]) -> None:
        """End the requests that a member has not answered, or let them go on without it where they say so.

        Those that score given tokens always end: their numbers would be of another ensemble.
        """
        m = next(m for m, member in enumerate(self._members) if member is error.member)
        for request in requests:
            if request.key not in error.reasons or request.done:
                continue
            may_drop = request.options.on_member_failure == DROP and request.targets is None and m != self._primary
            where = f"prompt {request.index}, step {request.num_steps + 1}: "
            away = MemberAway(error.member, {request.key: error.reasons[request.key]}, where)
            if not may_drop:
                request.error = away
                continue
            request.missing[m] = len(request.ids)
            try:
                self._method(request.method, tuple(present_members(request, len(self._members))))
            except ValueError as failure:
                request.error = failure
                failure.__cause__ = away
                continue
            logger.warning("%s; the others go on without it", away)

    def step(
        self,
        method: TokenMethod,
        scores: Sequence[Scores | None],
        states: Sequence[object],
        present: Sequence[int],
        starts: Sequence[bool] = (),
    ) -> StepResult:
        """A step of the members that are present, as one of all: the others have no ids and no probabilities.

        Parameters
        ----------
        method : TokenMethod
            Of all members.
        scores, states : sequence
            As `TokenMethod.step`; one of `scores` per member, of which those of `present` count.
        present : sequence of int
        starts : sequence of bool
            Per member whether it takes its first step in the start state; nothing if none does.
        """
        own = [given for m in present if (given := scores[m]) is not None]
        alone = self._method(method, tuple(present))
        if any(starts):
            alignment = self._alignments[tuple(present)]
            meaning = alignment.at_start([starts[m] for m in present])
            alone = alone if meaning is alignment else alone.at_start(meaning)
        return widened(alone.step(own, states), present, len(self._members))

    def _method(self, method: TokenMethod, present: tuple[int, ...]) -> TokenMethod:
        """The method of these members alone. ValueError if it needs others, or none of them has a weight."""
        if present not in self._alignments:
            self._alignments[present] = self._alignment.only(present)
        key = (id(method), present)
        if key not in self._methods:  # the method is kept, so that no other gets its id
            if len(self._methods) > 64:
                self._methods.clear()
            self._methods[key] = method, method.only(present, self._alignments[present])
        return self._methods[key][1]


def present_members(request: Request, members: int) -> list[int]:
    """The members that a request still has."""
    return [m for m in range(members) if m not in request.missing]


def widened(step: StepResult, present: Sequence[int], members: int) -> StepResult:
    """A step of some members, with columns for all."""

    def spread(values: Tensor, filling: float) -> Tensor:
        wide = values.new_full((*values.shape[:-1], members), filling)
        wide[..., torch.tensor(present, device=values.device)] = values
        return wide

    owners = torch.tensor([0, *(m + 1 for m in present)], dtype=step.status.dtype, device=step.status.device)
    status = torch.where(step.status > 0, owners[step.status.clamp(min=0).long()], step.status)
    return step._replace(
        next_ids=spread(step.next_ids, -1),
        union_ids=spread(step.union_ids, -1),
        member_probs=spread(step.member_probs, 0.0),
        status=status,
    )
