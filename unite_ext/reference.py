"""UNITE in plain PyTorch: one step, and decoding built on it. Start reading here.

UNITE (Yao et al., ICLR 2025, arXiv 2410.03777, Algorithm 1) lets M language models with different tokenizers
choose every next token together:

1. each model proposes its k most likely tokens;
2. the proposals are united into *slots*, one per distinct text (its *class*);
3. every model gives every slot a logit: of the same text if it has that (several tokens of its own proposals that
   stand for one text count together), else of the first sub-token of the text;
4. per model, a softmax over the slots; 5. the weighted average over models; 6. the most likely slot wins.

With combine="product" the average is one of logarithms, and models without a positive weight score but do not propose.

The compiled kernels do the same in one pass, or part by part, and are tested against this file, id for id.
`VocabAlignment` knows what text an id stands for; here ids and classes are just integers.

Shapes: B rows, M members, V_m logits of member m, U = M * k slots, one more with `include`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._core import BAD_INCLUDE, EOS_CLASS, FIRST_SUB_TOKEN, ID_MASK, NO_CLASS, NO_ID
from .exchange import LOWEST_SCORE, NO_KEY, UnionSlots, key_ids, key_values, make_keys
from .step_result import StepResult as StepResult
from .vocab.alignment import VocabAlignment


def unite_step(
    logits: Sequence[Tensor], alignment: VocabAlignment, *, k: int = 10, primary: int = 0,
    weights: Sequence[float] | None = None, score: str = "logits", duplicates: str = "repeat", combine: str = "mean",
    include: Tensor | None = None, workspace: Tensor | None = None,
) -> StepResult:  # fmt: skip
    """One UNITE step on any device, without host synchronisation. Arguments as `unite_ext.unite_step`.

    Computes in float32, or in float64 for float64 logits; `workspace` is accepted and not needed.
    """
    tops = [top_k_keys(logits[m], alignment, m, k=k, score=score) for m in range(len(logits))]
    pool: dict[str, Any] = {"primary": primary, "weights": weights, "combine": combine}
    union = unite_keys(torch.stack([keys for keys, _ in tops], dim=1), alignment, **pool, include=include)
    scores = []
    for m, (keys, log_sums) in enumerate(tops):
        slots = union.slots[:, :, m]
        given = (gather_logits(logits[m], slots), slots, union.union_size, keys, union.key_slots[:, m], log_sums)
        scores.append(score_slots(*given, score=score, duplicates=duplicates, combine=combine))
    return combine_slots(torch.stack(scores, dim=2), union, **pool)


def top_k_keys(
    logits: Tensor, alignment: VocabAlignment, member: int, *, k: int = 10, score: str = "logits"
) -> tuple[Tensor, Tensor]:
    """1. A member's k best eligible ids, as keys [B, k]: equal logits put the lower id first, an id at -inf is out.

    With `score="probs"` also the log of the sum of exp(logit - largest) over all its eligible ids, [B]; else zeros.
    """
    classes = alignment.classes[member][: alignment.vocab_sizes[member]]
    values = clean(logits[:, : len(classes)]).masked_fill(classes < 0, -torch.inf)
    best, ids = (t[:, :k] for t in values.sort(dim=1, descending=True, stable=True))
    keys = make_keys(best, ids).masked_fill(best == -torch.inf, NO_KEY)
    keys = torch.nn.functional.pad(keys, (0, k - keys.shape[1]), value=NO_KEY)
    if score == "logits":
        return keys, torch.zeros_like(values[:, 0])
    largest = best[:, :1].clamp(min=torch.finfo(values.dtype).min)
    return keys, (values - largest).double().logsumexp(dim=1).to(values.dtype)


def unite_keys(
    keys: Tensor, alignment: VocabAlignment, *, primary: int = 0, weights: Sequence[float] | None = None,
    combine: str = "mean", include: Tensor | None = None,
) -> UnionSlots:  # fmt: skip
    """2. The slots of all members' keys [B, M, k]: the primary's, then the others', one for each class not yet seen.

    In a product only members with a positive weight open slots. A member's id of a slot is the highest-ranked of that
    class in its own keys, else what the alignment says.
    """
    rows, members, k = keys.shape
    ids, values = key_ids(keys), key_values(keys)
    classes = torch.stack([classes_of(alignment, m, ids[:, m]) for m in range(members)], dim=1)
    classes = classes.masked_fill(~(values > -torch.inf), NO_CLASS)  # [B, M, k]

    order = [primary] + [m for m in range(members) if m != primary]
    silent = [combine == "product" and weights is not None and weights[m] <= 0 for m in order]
    walk = classes[:, order].masked_fill(torch.tensor(silent, device=keys.device)[:, None], NO_CLASS).flatten(1)
    same = walk[:, :, None] == walk[:, None, :]
    opens = (same.int().argmax(dim=2) == torch.arange(members * k, device=keys.device)) & (walk >= 0)
    size = opens.sum(dim=1)
    width = members * k + (include is not None)
    slot_classes = walk.new_full((rows, width + 1), NO_CLASS)  # the last column takes what opens no slot
    slot_classes = slot_classes.scatter(1, torch.where(opens, opens.cumsum(dim=1) - 1, width), walk)[:, :width]

    status = torch.zeros_like(size)
    if include is not None:
        wanted = classes_of(alignment, primary, include)
        status = torch.where((wanted < 0) & (include != -1), BAD_INCLUDE, status)
        absent = (wanted >= 0) & ~(slot_classes == wanted[:, None]).any(dim=1)
        last = torch.arange(width, device=keys.device) == size[:, None]
        slot_classes = torch.where(absent[:, None] & last, wanted[:, None], slot_classes)
        size = size + absent
    for m in reversed(range(members)):
        status = torch.where((classes[:, m] < 0).all(dim=1), 1 + m, status)
    size = size.masked_fill(status != 0, 0)
    slot_classes = slot_classes.masked_fill(status[:, None] != 0, NO_CLASS)

    key_slots = torch.full_like(classes, -1)
    slots = alignment.class_ids[slot_classes.clamp(min=0)].masked_fill((slot_classes < 0)[:, :, None], NO_ID)
    for m in range(members):
        own = (slot_classes[:, :, None] == classes[:, m, None]) & (slot_classes >= 0)[:, :, None]  # [B, U, k]
        own_ids = ids[:, m].gather(1, own.int().argmax(dim=2))  # highest rank first
        slots[:, :, m] = torch.where(own.any(dim=2), own_ids, slots[:, :, m])
        key_slots[:, m] = torch.where(own.any(dim=1), own.int().argmax(dim=1), -1)
    return UnionSlots(slots, slot_classes.int(), size.int(), status.int(), key_slots.int())


def gather_logits(logits: Tensor, ids: Tensor) -> Tensor:
    """3. A member's logits of tagged ids [B, U]; -inf for -1 and for ids that it has no logit of."""
    known = (ids >= 0) & (ids < 2 * FIRST_SUB_TOKEN) & (ids & ID_MASK < logits.shape[1])
    return clean(logits).gather(1, (ids & ID_MASK).long() * known).masked_fill(~known, -torch.inf)


def score_slots(
    values: Tensor, slots: Tensor, union_size: Tensor, keys: Tensor, key_slots: Tensor, log_sums: Tensor, *,
    score: str, duplicates: str, combine: str = "mean",
) -> Tensor:  # fmt: skip
    """4. A member's softmax over its slots [B, U], from their logits, its own keys [B, k] and its log-sums [B].

    The logit of a class in its own top-k is the log-sum-exp over the class's ids there. All are taken relative to its
    largest, beside which a logarithm could be lost. For a product these scores, of which none is -inf: a slot without
    one (the member cannot spell it, or it was dropped) takes the member's smallest.
    """
    positions = torch.arange(slots.shape[1], device=slots.device)
    is_slot = positions < union_size[:, None]
    ids = torch.where(is_slot & (slots >= 0), slots & ID_MASK, -1)
    own = (ids[:, :, None] == key_ids(keys)[:, None]) & (ids >= 0)[:, :, None]  # [B, U, k]
    largest = torch.where(key_values(keys).isfinite(), key_values(keys), 0.0)[:, :1]
    values = torch.where(own.any(dim=2), key_values(keys).gather(1, own.int().argmax(dim=2)), values)
    same_text = (key_slots[:, None] == positions[:, None]) & (ids >= 0)[:, :, None]
    sums = (key_values(keys).double() - largest)[:, None].masked_fill(~same_text, -torch.inf).logsumexp(dim=2)
    values = clean(torch.where(same_text.any(dim=2), sums.to(values.dtype), clean(values) - largest))
    if score == "probs":
        values = (values - log_sums[:, None]).double().exp().to(values.dtype)
    values = values.masked_fill(ids < 0, -torch.inf)
    if duplicates == "drop":
        values = values.masked_fill(loses_its_id(ids, slots >= FIRST_SUB_TOKEN), -torch.inf)
    if combine == "product":
        finite, values = values > -torch.inf, values.clamp(min=LOWEST_SCORE)
        smallest = values.masked_fill(~finite, torch.inf).amin(dim=1, keepdim=True)
        values = torch.where(finite, values, smallest.masked_fill(smallest == torch.inf, 0.0))
    return torch.where(is_slot, values if combine == "product" else softmax(values), 0.0)


def combine_slots(
    member_scores: Tensor, union: UnionSlots, *, primary: int = 0, weights: Sequence[float] | None = None,
    combine: str = "mean",
) -> StepResult:  # fmt: skip
    """5. The pool of all members' columns [B, U, M], and 6. the first largest the primary can emit, or EOS."""
    members = member_scores.shape[2]
    if weights is None:
        weights = [1.0 / members] * members
    elif combine == "mean":
        weights = [weight / sum(weights) for weight in weights]
    pooled = torch.zeros_like(member_scores[:, :, 0])
    for m in range(members):  # in member order so that equal sums are equal everywhere
        pooled = pooled + weights[m] * member_scores[:, :, m]
    member_probs, union_probs = member_scores, pooled
    if combine == "product":
        beside = (torch.arange(pooled.shape[1], device=pooled.device) >= union.union_size[:, None])[:, :, None]
        both = torch.cat([member_scores, pooled[:, :, None]], dim=2).masked_fill(beside, -torch.inf)
        both = softmax(both).masked_fill(beside, 0.0)
        member_probs, union_probs = both[:, :, :-1], both[:, :, -1]

    ids = torch.where(union.slots >= 0, union.slots & ID_MASK, -1).long()
    emits = (ids[:, :, primary] >= 0) | (union.slot_classes == EOS_CLASS)
    winner = pooled.float().masked_fill(~emits, -torch.inf).argmax(dim=1)  # the first of equals
    next_ids = ids.gather(1, winner[:, None, None].expand(-1, 1, members))[:, 0]
    failed = union.status != 0  # such rows have no slot
    return StepResult(
        next_ids=next_ids.masked_fill(failed[:, None], -1),
        union_ids=ids,
        union_size=union.union_size,
        winner=winner.masked_fill(failed, -1).int(),
        union_probs=union_probs.float(),
        member_probs=member_probs.float(),
        status=union.status,
    )


def classes_of(alignment: VocabAlignment, member: int, ids: Tensor) -> Tensor:
    """The classes of a member's ids, -1 for ids that are not eligible."""
    known = (ids >= 0) & (ids < alignment.vocab_sizes[member])
    return torch.where(known, alignment.classes[member][ids * known].long(), NO_CLASS)


def clean(logits: Tensor) -> Tensor:
    """NaN counts as -inf, +inf as the largest finite value of the dtype, -0 as 0. float32, or float64 as given."""
    finite = torch.where(logits.isnan(), -torch.inf, logits).clamp(max=torch.finfo(logits.dtype).max) + 0.0
    return finite if finite.dtype == torch.float64 else finite.float()


def softmax(values: Tensor) -> Tensor:
    """Over dimension 1. Exponentials and sums are made in float64 and rounded once: the same bits on every device."""
    parts = (values - values.amax(dim=1, keepdim=True)).double().exp().to(values.dtype)
    return parts / parts.double().sum(dim=1, keepdim=True).to(values.dtype)


def loses_its_id(ids: Tensor, sub_token: Tensor) -> Tensor:
    """[B, U] bool: slots whose id another keeps: the first that is no mere first sub-token, else the first."""
    slots = ids.shape[1]
    claim = torch.arange(slots, device=ids.device) + slots * sub_token  # smaller is stronger
    same = (ids[:, :, None] == ids[:, None, :]) & (ids >= 0)[:, None, :]
    return (same & (claim[:, None, :] < claim[:, :, None])).any(dim=2)


@torch.no_grad()
def generate(
    models: Sequence[Any], alignment: VocabAlignment, prompt_ids: Sequence[Sequence[int]], *, max_new_tokens: int,
    primary: int = 0, starts: Sequence[bool] | None = None, **options: Any,
) -> tuple[bytes, list[int], list[StepResult]]:  # fmt: skip
    """Decode one prompt greedily in the plainest way: every step re-tokenizes and recomputes everything.

    This is the oracle for `UniteEnsemble.generate`, which must give the same text. `prompt_ids` are each member's own.
    A member of `starts` puts a space before the text that is no part of it: its ids are those of both; while it has
    none, `at_start` says what its ids mean. Returns the text's bytes, the primary's ids and every step's result.
    """
    starts = [False] * len(models) if starts is None else starts
    kinds = list(zip(alignment.fingerprints, starts))
    text, ids, steps = b"", list[int](), list[StepResult]()
    for _ in range(max_new_tokens):
        written = [
            ids if kind == kinds[primary] else alignment.encode_continuation(m, b" " * (kind[1] and text > b"") + text)
            for m, kind in enumerate(kinds)
        ]
        texts = [torch.tensor([[*prompt, *own]], device=alignment.device) for prompt, own in zip(prompt_ids, written)]
        outputs = [x(input_ids=t.to(x.device), use_cache=False, logits_to_keep=1) for x, t in zip(models, texts)]
        logits = [output.logits[:, -1].to(alignment.device) for output in outputs]
        meaning = alignment.at_start([first and not own for first, own in zip(starts, written)])
        step = unite_step(logits, meaning, primary=primary, **options).check()
        steps.append(step)
        next_id = int(step.next_ids[0, primary])
        if next_id < 0 or int(alignment.classes[primary][next_id]) == EOS_CLASS:
            break
        data = alignment.token_bytes(primary, next_id)
        text += data.removeprefix(b" ") if starts[primary] and not ids else data
        ids = [*ids, next_id]
    return text, ids, steps
