"""The step in five parts, for members whose logits are not at hand: on other devices, other hosts, or behind a server.

Together they are `unite_step`, bit for bit on one kind of device, and only a few numbers per row have to travel::

    keys, log_sums = top_k_keys(logits, alignment, m, k=k, score=score)            # each member, where it runs
    union = unite_keys(torch.stack(all_keys, dim=1), alignment, primary=primary)   # anywhere: the same everywhere
    values = gather_logits(logits, union.slots[:, :, m])                           # each member
    probs = score_slots(values, union.slots[:, :, m], union.union_size, keys, union.key_slots[:, m], log_sums,
                        score=score, duplicates=rule)
    step = combine_slots(torch.stack(all_probs, dim=2), union, primary=primary)    # anywhere

With `combine="product"` the last three parts are told so, and `unite_keys` and `combine_slots` the weights.

A member that has no logits, only a server's answers, makes its keys with `unite_ext.exchange.make_keys` and fills
`values` itself. `unite_ext.reference` states every part under the same name in plain PyTorch. On CUDA each is one
kernel launch, and nothing waits.

Shapes: B rows, M members, V logits of one member, U = M * k slots, one more with `include`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import _arguments, _backend, _checks
from ._core import MAX_MEMBERS
from .exchange import UnionSlots
from .step_result import StepResult
from .vocab.alignment import VocabAlignment


def top_k_keys(
    logits: Tensor, alignment: VocabAlignment, member: int, *, k: int = 10, score: str = "logits"
) -> tuple[Tensor, Tensor]:
    """One member's k best eligible ids, as keys that order by logit, then id.

    Parameters
    ----------
    logits : Tensor
        [B, V] float32, bfloat16 or float16, any row stride, contiguous in the last dimension.
    alignment : VocabAlignment
        The members' vocabularies, on the logits' device.
    member : int
        Whose logits these are.
    k, score
        As in `unite_step`.

    Returns
    -------
    keys : Tensor
        [B, k] int64, best first, padded with `unite_ext.exchange.NO_KEY`.
    log_sums : Tensor
        [B] float32: the log of the sum of exp(logit - largest) over the eligible ids; 0 with `score="logits"`.

    Raises
    ------
    TypeError, ValueError
        An argument is wrong; nothing has been computed.
    RuntimeError
        CUDA tensors without the CUDA module, or an error of the device. So for every part.
    """
    _arguments.check_alignment(alignment)
    _checks.check_integer("member", member, 0, alignment.num_members - 1)
    _arguments.check_rows("logits", logits, alignment.vocab_sizes[member], alignment.device)
    _checks.check_proposals(1, k)
    _checks.check_choice("score", score, _checks.SCORES)
    _backend.require_cuda_for(logits)
    keys, log_sums = torch.ops.unite_ext.top_k_keys(
        logits, alignment.eligible, alignment.eligible_offsets[member], alignment.vocab_sizes[member], k, score
    )
    return keys, log_sums


def unite_keys(
    keys: Tensor,
    alignment: VocabAlignment,
    *,
    primary: int = 0,
    weights: Sequence[float] | None = None,
    combine: str = "mean",
    include: Tensor | None = None,
) -> UnionSlots:
    """From all members' keys to the slots of the union, each with one id per member.

    Parameters
    ----------
    keys : Tensor
        [B, M, k] int64 in member order, on the alignment's device. A key of an id that is not eligible counts as none.
    alignment : VocabAlignment
        The members' vocabularies.
    primary, weights, combine, include
        As in `unite_step`; weights count with combine="product" only. A bad `include` fails its row: see
        `UnionSlots.status`.

    Raises
    ------
    TypeError, ValueError
        An argument is wrong; nothing has been computed.
    """
    _arguments.check_alignment(alignment)
    _arguments.check_tensor("keys", keys, torch.int64, (None, alignment.num_members, None), alignment.device)
    _checks.check_proposals(alignment.num_members, keys.shape[2])
    _checks.check_integer("primary", primary, 0, alignment.num_members - 1)
    scaled = _checks.step_weights(weights, alignment.num_members, combine, primary)
    if include is not None:
        _arguments.check_include(include, keys.shape[0], keys.device)
    _backend.require_cuda_for(keys)
    tables = (alignment.table, alignment.class_ids, alignment.vocab_sizes)
    return UnionSlots(*torch.ops.unite_ext.unite_keys(keys.contiguous(), *tables, primary, scaled, combine, include))


def gather_logits(logits: Tensor, ids: Tensor) -> Tensor:
    """One member's logits of given ids, [B, U] float32, made finite or -inf as the step makes them.

    Parameters
    ----------
    logits : Tensor
        [B, V], as in `top_k_keys`.
    ids : Tensor
        [B, U] int32 or int64, any strides: ids, with or without `FIRST_SUB_TOKEN`. Those below 0 and from V on have a
        logit of -inf.

    Raises
    ------
    TypeError, ValueError
        An argument is wrong; nothing has been computed.
    """
    _arguments.check_rows("logits", logits)
    dtypes = (torch.int32, torch.int64)
    _arguments.check_tensor("ids", ids, dtypes, (logits.shape[0], None), logits.device)
    _arguments.check_slots("ids", ids)
    _backend.require_cuda_for(logits)
    return torch.ops.unite_ext.gather_logits(logits, ids)


def score_slots(
    values: Tensor,
    slots: Tensor,
    union_size: Tensor,
    keys: Tensor,
    key_slots: Tensor,
    log_sums: Tensor,
    *,
    score: str,
    duplicates: str,
    combine: str = "mean",
) -> Tensor:
    """One member's softmax over the slots, [B, U] float32, padded with 0; with combine="product" its finite scores.

    Parameters
    ----------
    values : Tensor
        [B, U] float32: the member's logits of its slots' ids. Of ids that are in its own `keys` the key's logit counts,
        so these need not be filled. Several keys of one slot's class count together, by log-sum-exp.
    slots : Tensor
        [B, U] int32: the member's column of `UnionSlots.slots`.
    union_size : Tensor
        [B] int32, of `UnionSlots`.
    keys : Tensor
        [B, k] int64: the member's own keys.
    key_slots : Tensor
        [B, k] int32: the member's part of `UnionSlots.key_slots`.
    log_sums : Tensor
        [B] float32: those that came with the keys; read with `score="probs"` only.
    score, duplicates, combine : str
        As in `unite_step`.

    Raises
    ------
    TypeError, ValueError
        An argument is wrong; nothing has been computed.
    """
    _arguments.check_tensor("values", values, torch.float32, (None, None))
    _arguments.check_slots("values", values)
    rows, device = values.shape[0], values.device
    _arguments.check_tensor("slots", slots, torch.int32, tuple(values.shape), device)
    _arguments.check_tensor("union_size", union_size, torch.int32, (rows,), device)
    _arguments.check_tensor("keys", keys, torch.int64, (rows, None), device)
    _checks.check_proposals(1, keys.shape[1])
    _arguments.check_tensor("key_slots", key_slots, torch.int32, tuple(keys.shape), device)
    _arguments.check_tensor("log_sums", log_sums, torch.float32, (rows,), device)
    _checks.check_choice("score", score, _checks.SCORES)
    _checks.check_choice("duplicates", duplicates, _checks.DUPLICATES)
    _checks.check_choice("combine", combine, _checks.COMBINES)
    _backend.require_cuda_for(values)
    return torch.ops.unite_ext.score_slots(
        values, slots, union_size.contiguous(), keys, key_slots, log_sums.contiguous(), score, duplicates, combine
    )


def combine_slots(
    member_scores: Tensor,
    union: UnionSlots,
    *,
    primary: int = 0,
    weights: Sequence[float] | None = None,
    combine: str = "mean",
) -> StepResult:
    """The end of the step: the weighted sum in member order, the choice, and every member's next id.

    Nothing is raised for rows that failed, also on the CPU: `StepResult.check` does.

    Parameters
    ----------
    member_scores : Tensor
        [B, U, M] float32: what `score_slots` gave for every member, in member order.
    union : UnionSlots
        The slots.
    primary, weights, combine
        As in `unite_step`.

    Raises
    ------
    TypeError, ValueError
        An argument is wrong; nothing has been computed.
    """
    _arguments.check_tensor("member_scores", member_scores, torch.float32, (None, None, None))
    _arguments.check_slots("member_scores", member_scores)
    rows, _, members = member_scores.shape
    _checks.check_integer("the number of members", members, 1, MAX_MEMBERS)
    used = (union.slots, union.slot_classes, union.union_size, union.status)
    shapes = (tuple(member_scores.shape), tuple(member_scores.shape[:2]), (rows,), (rows,))
    for name, tensor, shape in zip(union._fields, used, shapes):
        _arguments.check_tensor(f"union.{name}", tensor, torch.int32, shape, member_scores.device)
    _checks.check_integer("primary", primary, 0, members - 1)
    scaled = _checks.step_weights(weights, members, combine, primary)
    _backend.require_cuda_for(member_scores)
    given = [tensor.contiguous() for tensor in (member_scores, *used)]
    return StepResult(*torch.ops.unite_ext.combine_slots(*given, primary, scaled, combine))


@torch.library.register_fake("unite_ext::top_k_keys")
def _(
    logits: Tensor, eligible: Tensor, eligible_offset: int, vocab_size: int, k: int, score: str
) -> tuple[Tensor, Tensor]:
    rows = logits.shape[0]
    return logits.new_empty((rows, k), dtype=torch.int64), logits.new_empty((rows,), dtype=torch.float32)


@torch.library.register_fake("unite_ext::unite_keys")
def _(
    keys: Tensor,
    table: Tensor,
    class_ids: Tensor,
    vocab_sizes: Sequence[int],
    primary: int,
    weights: Sequence[float],
    combine: str,
    include: Tensor | None = None,
) -> tuple[Tensor, ...]:
    rows, members, k = keys.shape
    slots = members * k + int(include is not None)
    shapes = ((rows, slots, members), (rows, slots), (rows,), (rows,), (rows, members, k))
    return tuple(keys.new_empty(shape, dtype=torch.int32) for shape in shapes)


@torch.library.register_fake("unite_ext::gather_logits")
def _(logits: Tensor, ids: Tensor) -> Tensor:
    return logits.new_empty(ids.shape, dtype=torch.float32)


@torch.library.register_fake("unite_ext::score_slots")
def _(
    values: Tensor,
    slots: Tensor,
    union_size: Tensor,
    keys: Tensor,
    key_slots: Tensor,
    log_sums: Tensor,
    score: str,
    duplicates: str,
    combine: str,
) -> Tensor:
    return values.new_empty(values.shape)


@torch.library.register_fake("unite_ext::combine_slots")
def _(
    member_scores: Tensor,
    slots: Tensor,
    slot_classes: Tensor,
    union_size: Tensor,
    status: Tensor,
    primary: int,
    weights: Sequence[float],
    combine: str,
) -> tuple[Tensor, ...]:
    return step_outputs(member_scores, *member_scores.shape)


def step_outputs(like: Tensor, rows: int, slots: int, members: int) -> tuple[Tensor, ...]:
    """Unfilled tensors in the shapes and dtypes of `StepResult`."""
    return (
        like.new_empty((rows, members), dtype=torch.int64),
        like.new_empty((rows, slots, members), dtype=torch.int64),
        like.new_empty((rows,), dtype=torch.int32),
        like.new_empty((rows,), dtype=torch.int32),
        like.new_empty((rows, slots), dtype=torch.float32),
        like.new_empty((rows, slots, members), dtype=torch.float32),
        like.new_empty((rows,), dtype=torch.int32),
    )
