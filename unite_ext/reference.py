"""UNITE in plain PyTorch: one step, and decoding built on it. Start reading here.

UNITE (Yao et al., ICLR 2025, arXiv 2410.03777, Algorithm 1) lets M language models with different tokenizers
choose every next token together:

1. each model proposes its k most likely tokens;
2. the proposals are united into *slots*, one per distinct text (its *class*);
3. every model gives every slot a logit: of the same token if it has it, else of the first sub-token of its text;
4. per model, a softmax over the slots; 5. the weighted average over models; 6. the most likely slot wins.

The compiled kernels do the same in one pass and are tested against this file, id for id. `VocabAlignment` knows
what text an id stands for; here ids and classes are just integers.

Shapes: B rows, M members, V_m logits of member m, W = M * k proposals, U slots (W, one more with `include`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .vocab.alignment import EOS_CLASS, FIRST_SUB_TOKEN, ID_MASK, VocabAlignment

BAD_INCLUDE = -1


class StepResult(NamedTuple):
    """What one step decided, for every row. Rows with a non-zero status hold -1 ids and zero probabilities."""

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


def unite_step(
    logits: Sequence[Tensor],
    alignment: VocabAlignment,
    *,
    k: int = 10,
    primary: int = 0,
    weights: Sequence[float] | None = None,
    score: str = "logits",
    duplicates: str = "repeat",
    include: Tensor | None = None,
    workspace: Tensor | None = None,
) -> StepResult:
    """One UNITE step on any device, without host synchronisation. Arguments as `unite_ext.unite_step`.

    Computes in float32, or in float64 for float64 logits; `workspace` is accepted and not needed.
    """
    members = len(logits)
    dtype = torch.float64 if logits[0].dtype == torch.float64 else torch.float32
    weights = [1.0] * members if weights is None else list(weights)
    weights = [weight / sum(weights) for weight in weights]
    rows, device = logits[0].shape[0], logits[0].device

    # 1. Top-k over the eligible ids; a stable sort puts the lower id first among equal logits.
    values, top_ids, top_classes = [], [], []
    for m in range(members):
        value = clean(logits[m][:, : alignment.vocab_sizes[m]]).to(dtype)
        classes = alignment.classes[m][: alignment.vocab_sizes[m]]
        value = value.masked_fill(classes < 0, -torch.inf)
        best, ids = (t[:, :k] for t in value.sort(dim=1, descending=True, stable=True))
        values.append(value)
        top_ids.append(ids)
        top_classes.append(torch.where(best > -torch.inf, classes[ids].long(), -1))

    # 2. Union: walk the primary's top-k, then the others'; the first entry of each class opens a slot.
    order = [primary] + [m for m in range(members) if m != primary]
    walk = torch.cat([top_classes[m] for m in order], dim=1)  # [B, W'], W' <= W for tiny vocabularies
    width = walk.shape[1]
    same = walk[:, :, None] == walk[:, None, :]
    opens = (same.int().argmax(dim=2) == torch.arange(width, device=device)) & (walk >= 0)
    size = opens.sum(dim=1)
    slots = members * k + (include is not None)
    slot_class = walk.new_full((rows, slots + 1), -1)  # the last column takes what opens no slot
    slot_class.scatter_(1, torch.where(opens, opens.cumsum(dim=1) - 1, slots), walk)
    slot_class = slot_class[:, :slots]
    bad_include = torch.zeros(rows, dtype=torch.bool, device=device)
    if include is not None:
        known = (include >= 0) & (include < alignment.vocab_sizes[primary])
        include_class = torch.where(known, alignment.classes[primary][include * known].long(), -1)
        bad_include = (include_class < 0) & (include != -1)
        absent = (include_class >= 0) & ~(slot_class == include_class[:, None]).any(dim=1)
        column = torch.arange(slots, device=device) == size[:, None]
        slot_class = torch.where(absent[:, None] & column, include_class[:, None], slot_class)
        size = size + absent
    is_slot = slot_class >= 0

    # 3. Fill, 4. score.
    union_ids, scores = [], []
    for m in range(members):
        tagged = alignment.class_ids[slot_class.clamp(min=0), m].long()
        ids = torch.where(tagged >= 0, tagged & ID_MASK, -1)
        sub_token = (tagged >= 0) & (tagged & FIRST_SUB_TOKEN != 0)
        own = slot_class[:, :, None] == top_classes[m][:, None, :]  # [B, U, k]
        in_top = own.any(dim=2)
        ids = torch.where(in_top, top_ids[m].gather(1, own.int().argmax(dim=2)), ids)  # highest rank first
        ids = torch.where(is_slot, ids, -1)
        value = values[m].softmax(dim=1) if score == "probs" else values[m]
        value = value.gather(1, ids.clamp(min=0))
        value = value.masked_fill(ids < 0, -torch.inf)
        if duplicates == "drop":
            value = value.masked_fill(loses_its_id(ids, sub_token & ~in_top), -torch.inf)
        union_ids.append(ids)
        scores.append(value)
    member_probs = torch.stack(scores, dim=2).softmax(dim=1)

    # 5. Average, in member order so that equal sums are equal everywhere.
    union_probs = torch.zeros_like(member_probs[:, :, 0])
    for m in range(members):
        union_probs = union_probs + weights[m] * member_probs[:, :, m]

    # 6. The first largest slot that the primary can emit, or EOS.
    ids = torch.stack(union_ids, dim=2)
    emits = is_slot & ((ids[:, :, primary] >= 0) | (slot_class == EOS_CLASS))
    winner = union_probs.float().masked_fill(~emits, -1.0).argmax(dim=1)  # the first of equals
    next_ids = ids.gather(1, winner[:, None, None].expand(-1, 1, members))[:, 0]

    # Rows that cannot be decided say why and hold nothing.
    status = torch.where(bad_include, BAD_INCLUDE, 0)
    for m in reversed(range(members)):
        status = torch.where(top_classes[m][:, 0] < 0, 1 + m, status)
    failed = status != 0
    return StepResult(
        next_ids=next_ids.masked_fill(failed[:, None], -1),
        union_ids=ids.masked_fill(failed[:, None, None], -1),
        union_size=size.masked_fill(failed, 0).int(),
        winner=winner.masked_fill(failed, -1).int(),
        union_probs=union_probs.float().masked_fill(failed[:, None], 0.0),
        member_probs=member_probs.float().masked_fill(failed[:, None, None], 0.0),
        status=status.int(),
    )


def clean(logits: Tensor) -> Tensor:
    """NaN counts as -inf, +inf as the largest finite value of the dtype, -0 as 0."""
    largest = torch.finfo(logits.dtype).max
    return torch.where(logits.isnan(), -torch.inf, logits).clamp(max=largest) + 0.0


def loses_its_id(ids: Tensor, sub_token: Tensor) -> Tensor:
    """[B, U] bool: slots that share a member's id with one that has more right to it.

    Among the slots with one id, the one that is not a mere first sub-token keeps it, else the first.
    """
    slots = ids.shape[1]
    claim = torch.arange(slots, device=ids.device) + slots * sub_token  # smaller is stronger
    same = (ids[:, :, None] == ids[:, None, :]) & (ids >= 0)[:, None, :]
    return (same & (claim[:, None, :] < claim[:, :, None])).any(dim=2)


@torch.no_grad()
def generate(
    models: Sequence[Any],
    alignment: VocabAlignment,
    prompt_ids: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    primary: int = 0,
    **options: Any,
) -> tuple[bytes, list[int], list[StepResult]]:
    """Decode one prompt greedily in the plainest way: every step re-tokenizes and recomputes everything.

    This is the oracle for `UniteEnsemble.generate`, which must give the same text. `prompt_ids` holds the
    prompt as each member's own token ids. Returns the text's bytes, the primary's ids and every step's result.
    """
    shares_ids = [f == alignment.fingerprints[primary] for f in alignment.fingerprints]
    text = b""
    ids: list[int] = []
    steps: list[StepResult] = []
    for _ in range(max_new_tokens):
        logits = []
        for m, model in enumerate(models):
            continuation = ids if shares_ids[m] else alignment.encode_continuation(m, text)
            context = torch.tensor([[*prompt_ids[m], *continuation]], device=model.device)
            output = model(input_ids=context, use_cache=False, logits_to_keep=1)
            logits.append(output.logits[:, -1].to(alignment.device))
        step = unite_step(logits, alignment, primary=primary, **options).check()
        steps.append(step)
        next_id = int(step.next_ids[0, primary])
        if next_id < 0 or int(alignment.classes[primary][next_id]) == EOS_CLASS:
            break
        ids.append(next_id)
        text += alignment.token_bytes(primary, next_id)
    return text, ids, steps
