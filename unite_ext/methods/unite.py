"""UNITE: the union of every member's top k (Yao et al., ICLR 2025, arXiv 2410.03777, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from ..members.base import BaseMember, Scores
from ..ops import fused_step
from ..options import StepOptions
from ..step_parts import combine_slots, score_slots, unite_keys
from ..step_result import StepResult
from ..vocab.alignment import VocabAlignment
from .base import TokenMethod


class Unite(TokenMethod):
    """UNITE, see `unite_step`: one launch if all members have their logits, else in parts with the same result."""

    name: ClassVar[str] = "unite"
    takes_one: ClassVar[bool] = True
    is_large: ClassVar[bool] = False
    samples: ClassVar[bool] = True
    needs_logits: ClassVar[bool] = False
    multiplies: ClassVar[bool] = True
    keeps_structure: ClassVar[bool] = True
    walks: ClassVar[bool] = True
    drops_members: ClassVar[bool] = True
    spreads: ClassVar[bool] = True

    def __init__(self, alignment: VocabAlignment, members: Sequence[BaseMember], options: StepOptions) -> None:
        super().__init__(alignment, members, options)
        self._starts: dict[VocabAlignment, Unite] = {}

    def at_start(self, alignment: VocabAlignment) -> Unite:
        """See `TokenMethod.at_start`."""
        if alignment not in self._starts:
            self._starts[alignment] = Unite(alignment, (), self.options)
        return self._starts[alignment]

    @property
    def averages(self) -> bool:
        """See `TokenMethod.averages`."""
        return self.options.combine == "mean"

    def member_weights(self, states: Sequence[object]) -> Tensor:
        """See `TokenMethod.member_weights`."""
        weights = self.options.step_weights(self.alignment.num_members)
        return torch.tensor([weights], dtype=torch.float64, device=self.alignment.device).expand(len(states), -1)

    def only(self, members: Sequence[int], alignment: VocabAlignment) -> Unite:
        """See `TokenMethod.only`."""
        weights = self.options.weights
        kept = None if weights is None else tuple(weights[m] for m in members)
        options = replace(self.options, primary=list(members).index(self.primary), weights=kept)
        return Unite(alignment, [], options.check(len(members)))

    def step(self, scores: Sequence[Scores], states: Sequence[object]) -> StepResult:
        """See `TokenMethod.step`."""
        return unite_scores(scores, self.alignment, self.options)

    def likelihood(
        self, scores: Sequence[Scores], states: Sequence[object], targets: Tensor
    ) -> tuple[Tensor, StepResult]:
        """See `TokenMethod.likelihood`."""
        step = unite_scores(scores, self.alignment, self.options, include=targets)
        return emission_probability(step, targets, self.alignment, self.primary), step


def unite_scores(
    scores: Sequence[Scores], alignment: VocabAlignment, options: StepOptions, include: Tensor | None = None
) -> StepResult:
    """Do one step of UNITE from members' scores, without checks and without waiting for the device.

    `include` is that of `unite_step`.
    """
    logits = [x for own in scores if (x := own.logits) is not None]
    if len(logits) == len(scores):
        return fused_step(logits, alignment, options, include=include)
    return step_in_parts(scores, alignment, options, include)


def step_in_parts(
    scores: Sequence[Scores], alignment: VocabAlignment, options: StepOptions, include: Tensor | None = None
) -> StepResult:
    """Do one step of UNITE without whole logits: from every member's k best ids, and its logits of the slots.

    Where members live in several processes, each scores its own; keys and scores are what travels.
    """
    exchange = scores[0].exchange
    tops = [own.top_k(alignment, m, options) for m, own in enumerate(scores)]
    keys = exchange.keys(torch.stack([keys for keys, _ in tops], dim=1))
    weights, combine = options.step_weights(len(scores)), options.combine
    union = unite_keys(keys, alignment, primary=options.primary, weights=weights, combine=combine, include=include)
    columns = []
    for m, (own, (own_keys, log_sums)) in enumerate(zip(scores, tops)):
        slots = union.slots[:, :, m]
        if not exchange.holds(m):
            columns.append(torch.zeros_like(slots, dtype=torch.float32))
            continue
        values = own.gather(slots)
        given = (values, slots, union.union_size, own_keys, union.key_slots[:, m], log_sums)
        columns.append(score_slots(*given, score=options.score, duplicates=options.duplicates, combine=combine))
    given_scores = exchange.columns(torch.stack(columns, dim=2))
    return combine_slots(given_scores, union, primary=options.primary, weights=weights, combine=combine)


def emission_probability(step: StepResult, targets: Tensor, alignment: VocabAlignment, primary: int) -> Tensor:
    """Compute the probability that a step emits the text of given ids of the primary.

    It is the sum over the slots whose id in the primary has the target's text. A slot for which the primary has no
    token counts for its first sub-token, which it would emit.

    Parameters
    ----------
    step : StepResult
    targets : Tensor, int64 [N]

    Returns
    -------
    Tensor, float32 [N]
    """
    classes = alignment.classes[primary]
    ids = step.union_ids[:, :, primary]
    same = (ids >= 0) & (classes[ids.clamp(min=0)] == classes[targets][:, None])
    return (step.union_probs * same).sum(dim=1)
