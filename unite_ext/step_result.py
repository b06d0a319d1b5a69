"""What a step returns, from kernel and reference alike, and what a frontend reads off it."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from ._core import BAD_INCLUDE
from .vocab.alignment import VocabAlignment


class StepResult(NamedTuple):
    """What one step decided, for every row. Rows with a non-zero status hold -1 ids and zero probabilities.

    B rows, M members, U slots.
    """

    next_ids: Tensor
    """[B, M] int64: each member's id of the winning slot; -1 where the member cannot spell it."""
    union_ids: Tensor
    """[B, U, M] int64: each member's id of every slot, padded with -1."""
    union_size: Tensor
    """[B] int32: number of slots."""
    winner: Tensor
    """[B] int32: index of the winning slot, -1 in failed rows."""
    union_probs: Tensor
    """[B, U] float32: weighted average over the members, padded with 0."""
    member_probs: Tensor
    """[B, U, M] float32: every member's softmax over the union, padded with 0."""
    status: Tensor
    """[B] int32: 0, 1 + the first member without a finite eligible logit, or -1 for an ineligible `include`."""

    def check(self) -> StepResult:
        """Raise ValueError, naming member and row, if any row failed; waits for the device. Returns itself."""
        for row, status in enumerate(self.status.tolist()):
            if status > 0:
                raise ValueError(f"logits[{status - 1}] has no eligible logit above -inf in row {row}")
            if status == BAD_INCLUDE:
                raise ValueError(f"include[{row}] must be -1 or an eligible id of the primary")
        return self

    def is_eos(self, alignment: VocabAlignment) -> Tensor:
        """[B] bool: whether the winner is EOS, also where the primary has no id for it. Nothing waits for a device."""
        # A slot holds EOS ids of all members that have any, or of none: one of these members tells.
        for m, vocabulary in enumerate(alignment.vocabularies):
            if vocabulary.eos_token_ids:
                first, *others = (self.next_ids[:, m] == eos for eos in vocabulary.eos_token_ids)
                return functools.reduce(torch.logical_or, others, first)
        return torch.zeros_like(self.winner, dtype=torch.bool)

    def append_ids(self, alignment: VocabAlignment, *, primary: int = 0) -> list[tuple[tuple[int, ...], ...]]:
        """Per row and member all the ids to append for the winner, for caches that only grow; waits for the device.

        `next_ids` holds the first of them only: what is one token of the primary may take several of another member.
        None are to be appended for EOS and in failed rows. See `VocabAlignment.append_ids`.
        """
        return alignment.append_ids(self.next_ids[:, primary].tolist(), primary=primary)
