"""Alignments and logits for tests of the step, made from a seed: no tokenizer is involved."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch

from unite_ext import VocabAlignment, Vocabulary
from unite_ext.reference import StepResult
from unite_ext.vocab.alignment import EOS_CLASS, FIRST_SUB_TOKEN, NO_CLASS, NO_ID

# Probabilities are float32 sums over at most 1025 slots, in different orders.
ATOL = 2e-6


def alignment_from_classes(classes: Sequence[np.ndarray], class_ids: np.ndarray) -> VocabAlignment:
    """An alignment from the class of every id ([size_m], -1 ineligible, 0 EOS) and tagged ids [classes, members]."""
    vocabularies = []
    for m, class_of in enumerate(classes):
        eos = tuple(np.flatnonzero(class_of == EOS_CLASS).tolist())
        vocabularies.append(
            Vocabulary(
                kind="byte-level",
                pieces=[b"" if c < 0 else b"%d" % c for c in class_of.tolist()],
                size=len(class_of),
                is_byte_piece=np.zeros(len(class_of), bool),
                eos_token_ids=eos,
                eos_token_id=eos[0] if eos else None,
                fingerprint=f"synthetic {m}",
                parts=None,
            )
        )
    return VocabAlignment(vocabularies, [c.astype(np.int32) for c in classes], class_ids.astype(np.int32))


@functools.lru_cache(maxsize=32)
def synthetic_alignment(sizes: tuple[int, ...], seed: int = 0) -> VocabAlignment:
    """Members of the given sizes that share about half of their classes.

    Some ids are ineligible, some classes have two ids, member 1 has no EOS, and of the classes that a member lacks
    nine in ten have a first sub-token, drawn from few ids so that slots often share one.
    """
    rng = np.random.default_rng(seed)
    pool = int(max(sizes) * 1.5) + 4
    classes = []
    for m, size in enumerate(sizes):
        class_of = rng.permutation(np.arange(1, pool))[:size].astype(np.int64)
        doubled = rng.random(size) < 0.05
        class_of[doubled] = class_of[rng.integers(0, size, doubled.sum())]
        class_of[rng.random(size) < 0.05] = NO_CLASS
        if m != 1:
            class_of[rng.integers(0, size, 2)] = EOS_CLASS
        if not (class_of > 0).any():
            class_of[0] = 1
        classes.append(class_of)
    # Number the classes without gaps.
    used = np.unique(np.concatenate([c[c > 0] for c in classes]))
    class_ids = np.full((len(used) + 1, len(sizes)), NO_ID, np.int64)
    for m, class_of in enumerate(classes):
        text = class_of > 0
        class_of[text] = np.searchsorted(used, class_of[text]) + 1
        for i in np.flatnonzero(class_of >= 0)[::-1]:
            class_ids[class_of[i], m] = i
        heads = rng.choice(np.flatnonzero(text), size=max(1, text.sum() // 8))
        for c in np.flatnonzero(class_ids[1:, m] == NO_ID) + 1:
            if rng.random() < 0.9:
                class_ids[c, m] = rng.choice(heads) | FIRST_SUB_TOKEN
    return alignment_from_classes(classes, class_ids)


KINDS = ("gaussian", "ties", "equal", "ascending", "descending", "infinities", "nan", "sparse", "clustered")


def make_logits(
    alignment: VocabAlignment,
    batch: int,
    *,
    kind: str = "gaussian",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    padding: int = 3,
    strided: bool = False,
) -> list[torch.Tensor]:
    """One [batch, V_m] tensor per member, `padding` columns wider than its vocabulary.

    Every row keeps one finite eligible logit. `strided` rows lie apart in memory and start at odd addresses.
    """
    generator = torch.Generator().manual_seed(seed)
    result = []
    for m, size in enumerate(alignment.vocab_sizes):
        width = size + padding
        x = torch.randn(batch, width, generator=generator) * 4
        noise = torch.rand(batch, width, generator=generator)
        if kind == "ties":
            x = (x / 4).round()
            x = torch.where((x == 0) & (noise < 0.5), -0.0, x)
        elif kind == "equal":
            x = torch.full_like(x, -0.0)
        elif kind == "ascending":
            x = torch.arange(width).expand(batch, -1) / 64 - 7
        elif kind == "descending":
            x = -torch.arange(width).expand(batch, -1) / 64 + 7
        elif kind == "infinities":
            x = torch.where(noise < 0.2, torch.inf, torch.where(noise < 0.4, -torch.inf, x))
        elif kind == "nan":
            x = torch.where(noise < 0.3, torch.nan, torch.where(noise < 0.35, -torch.nan, x))
        elif kind == "sparse":
            x = torch.where(noise < 0.999, -torch.inf, x)
        elif kind == "clustered":
            x[:, width // 3 : width // 3 + 40] += 30
        x = x.clone()
        anchor = torch.nonzero(alignment.classes[m] >= 0)[m % 3 if m % 3 < size // 2 else 0, 0]
        bad = ~x[:, anchor].isfinite()
        x[bad, anchor] = 1.0
        x = x.to(dtype)
        if strided:
            buffer = torch.empty(batch * (width + 5) + 1, dtype=dtype)
            view = buffer[1:].view(batch, width + 5)[:, :width]
            view.copy_(x)
            x = view
        result.append(x)
    return result


def assert_same_step(got: StepResult, expected: StepResult, atol: float = ATOL) -> None:
    """Same slots exactly, same probabilities within `atol`, same winner where the choice is clear by 1e-6."""
    assert torch.equal(got.status.cpu(), expected.status.cpu())
    assert torch.equal(got.union_size.cpu(), expected.union_size.cpu())
    assert torch.equal(got.union_ids.cpu(), expected.union_ids.cpu())
    torch.testing.assert_close(got.member_probs.cpu(), expected.member_probs.cpu(), rtol=0, atol=atol)
    torch.testing.assert_close(got.union_probs.cpu(), expected.union_probs.cpu(), rtol=0, atol=atol)
    top = expected.union_probs.cpu().topk(min(2, expected.union_probs.shape[1]), dim=1).values
    clear = (top[:, 0] - top[:, -1] > 1e-6) | (top[:, 0] == top[:, -1])
    assert torch.equal(got.winner.cpu()[clear], expected.winner.cpu()[clear])
    assert torch.equal(got.next_ids.cpu()[clear], expected.next_ids.cpu()[clear])


def in_parts(parts, logits, alignment, *, k=10, primary=0, weights=None, score="logits", duplicates="repeat",
             include=None):  # fmt: skip
    """A step made of `parts`: the module `step_parts`, or what has functions of the same names."""
    tops = [parts.top_k_keys(x, alignment, m, k=k, score=score) for m, x in enumerate(logits)]
    keys = torch.stack([keys for keys, _ in tops], dim=1)
    union = parts.unite_keys(keys, alignment, primary=primary, include=include)
    columns = []
    for m, (own, log_sums) in enumerate(tops):
        slots = union.slots[:, :, m]
        values = parts.gather_logits(logits[m], slots)
        columns.append(
            parts.score_slots(values, slots, union.union_size, own, log_sums, score=score, duplicates=duplicates)
        )
    return parts.combine_slots(torch.stack(columns, dim=2), union, primary=primary, weights=weights)


def assert_bitwise_equal(a, b):
    """Same bits in every field of two results."""
    for name, value in a._asdict().items():
        other = getattr(b, name)
        assert (value.dtype, value.shape) == (other.dtype, other.shape), name
        assert torch.equal(value.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8)), name
