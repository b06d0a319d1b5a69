"""What the members of a step exchange when each runs elsewhere: keys of their proposals, and the slots made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

NO_KEY = 0
"""Below every key: no proposal."""


def make_keys(values: Tensor, ids: Tensor) -> Tensor:
    """Unique int64 keys of finite logits and their ids; larger logits first, then lower ids, as *unsigned* numbers.

    The order of csrc/core/key_order.h, which has the high half for the logit and the low half for the id.
    """
    values = values.float() + 0.0  # -0 counts as 0
    bits = values.view(torch.int32).long()
    order = torch.where(bits >= 0, bits + 2**31, -1 - bits)
    return (order << 32) | (2**32 - 1 - ids.long())


def key_ids(keys: Tensor) -> Tensor:
    """The ids in keys, int64; -1 for `NO_KEY`."""
    return (2**32 - 1 - (keys & (2**32 - 1))).masked_fill(keys == NO_KEY, -1)


def key_values(keys: Tensor) -> Tensor:
    """The logits in keys, float32; -inf for `NO_KEY`."""
    order = (keys >> 32) & (2**32 - 1)
    bits = torch.where(order >= 2**31, order - 2**31, -1 - order)
    return bits.int().view(torch.float32).masked_fill(keys == NO_KEY, -torch.inf)


LOWEST_SCORE = -1e30
"""Of a product: no score is lower, so that no sum of weighted ones overflows."""


class UnionSlots(NamedTuple):
    """The slots of every row; a failed row has none. Shapes as in `unite_ext.reference`."""

    slots: Tensor
    """[B, U, M] int32: each member's id of every slot, plus `FIRST_SUB_TOKEN` where it is only that; padded with -1."""
    slot_classes: Tensor
    """[B, U] int32: the class of every slot, padded with -1."""
    union_size: Tensor
    """[B] int32: number of slots."""
    status: Tensor
    """[B] int32: as in `StepResult`."""
    key_slots: Tensor
    """[B, M, k] int32: the slot of every key's class, -1 where it has none."""


class Exchange:
    """Brings together what the members of a step give. Here all of them run in this process: nothing has to travel.

    `unite_ext.decoding.ranks.RankExchange` is that of members in several processes, which all take the same steps.
    B rows, M members, U slots.
    """

    def holds(self, member: int) -> bool:
        """Whether this process asks a member itself."""
        return True

    def keys(self, keys: Tensor) -> Tensor:
        """All members' keys, int64 [B, M, k], from those in which this process has filled in its own members'."""
        return keys

    def columns(self, columns: Tensor) -> Tensor:
        """All members' scores of the slots, float32 [B, U, M], from those with this process's own filled in."""
        return columns

    def log_probs(self, log_probs: Tensor) -> Tensor:
        """All members' own log-probabilities, float64 [N, M], from those with this process's own filled in."""
        return log_probs

    def figures(self, figures: Sequence[int]) -> list[int]:
        """One number of every member, from those with this process's own filled in."""
        return list(figures)

    def told(self, member: int, shape: Sequence[int], dtype: torch.dtype, compute: Callable[[], Tensor]) -> Tensor:
        """What the process that holds a member computes, a tensor of this shape."""
        return compute()

    def agreed(self, answers: Sequence[bool]) -> list[bool]:
        """Per question whether every process says yes."""
        return list(answers)

    def lacks(self, member: int, error: Exception) -> None:
        """Take note of a member's lack of memory, which the other processes learn with what they wait for next.

        Raises
        ------
        Exception
            The error itself, where there are no other processes.
        """
        raise error

    def check(self) -> None:
        """Raise the error of a member, in whichever process, that `lacks` took note of before the last exchange."""


HERE = Exchange()
"""Of members that all run in this process."""
