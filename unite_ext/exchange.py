"""What the members of a step exchange when each runs elsewhere: keys of their proposals, and the slots made of them."""

from __future__ import annotations

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
