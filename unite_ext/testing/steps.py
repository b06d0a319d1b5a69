"""Alignments and logits for tests of the step, made from a seed without a tokenizer; and what makes two steps the same.

Shapes: B rows, M members, V_m logits of member m, U slots.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..step_result import StepResult
from ..vocab.alignment import EOS_CLASS, FIRST_SUB_TOKEN, NO_CLASS, NO_ID, VocabAlignment
from ..vocab.vocabulary import Vocabulary

ATOL = 2e-6
"""How far probabilities of two right steps may lie apart. The reference and the kernels round their softmax alike; what
differs is the sum over a vocabulary that `score="probs"` divides by, and float32 sums of other implementations."""

_CLEAR = 1e-6  # where the two largest averages lie further apart, the choice is no matter of rounding

LOGIT_KINDS = ("gaussian", "ties", "equal", "ascending", "descending", "infinities", "nan", "sparse", "clustered")
"""The kinds of logits that `make_logits` knows.

"gaussian"      standard deviation 4
"ties"          a few distinct values, zeros of both signs among them
"equal"         all -0.0
"ascending"     the largest logits last, in steps of 1/64
"descending"    the largest logits first
"infinities"    a fifth +inf, a fifth -inf
"nan"           a third NaN, of both signs
"sparse"        all but a thousandth at -inf: some rows have fewer than k proposals
"clustered"     the 40 largest logits side by side
"""


def alignment_from_classes(classes: Sequence[NDArray[np.integer]], class_ids: NDArray[np.integer]) -> VocabAlignment:
    """An alignment that is known id by id.

    Parameters
    ----------
    classes : sequence of arrays of int, one [size_m] per member
        The class of every id: -1 where it is not eligible, 0 for EOS, 1 to C - 1 for texts. The text of class c is
        its number in decimal digits.
    class_ids : array of int [C, M]
        Each member's id of every class, plus `FIRST_SUB_TOKEN` where it is only the first sub-token of the text; -1 for
        none.

    Returns
    -------
    VocabAlignment
        On the CPU. It steps, but does not tokenize.
    """
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


def synthetic_alignment(sizes: Sequence[int], seed: int = 0) -> VocabAlignment:
    """An alignment of members that share about half of their classes; the same object for the same arguments.

    One id in twenty is ineligible, one in twenty has the class of another. Member 1 has no EOS, the others have one or
    two. Of the classes that a member lacks nine in ten have a first sub-token, drawn from few ids so that slots often
    share one.

    Parameters
    ----------
    sizes : sequence of int
        Ids per member, 1 to 8 members.
    seed : int
    """
    return _synthetic_alignment(tuple(sizes), seed)


@functools.lru_cache(maxsize=32)
def _synthetic_alignment(sizes: tuple[int, ...], seed: int) -> VocabAlignment:
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


def make_logits(
    alignment: VocabAlignment,
    batch: int,
    *,
    kind: str = "gaussian",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    padding: int = 3,
    strided: bool = False,
) -> list[Tensor]:
    """Logits for a step: one [B, V_m] tensor per member, on the CPU. Every row keeps one finite eligible logit.

    Parameters
    ----------
    alignment : VocabAlignment
    batch : int
        B.
    kind : str
        One of `LOGIT_KINDS`.
    dtype : torch.dtype
    seed : int
    padding : int
        How many columns the logits are wider than the vocabulary, as padded heads are.
    strided : bool
        Rows lie apart in memory and start at odd addresses.
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)
    result = []
    for m, size in enumerate(alignment.vocab_sizes):
        width = size + padding
        x = torch.randn(batch, width, generator=generator, device="cpu") * 4
        noise = torch.rand(batch, width, generator=generator, device="cpu")
        columns = torch.arange(width, device="cpu").expand(batch, -1)
        if kind == "ties":
            x = (x / 4).round()
            x = torch.where((x == 0) & (noise < 0.5), -0.0, x)
        elif kind == "equal":
            x = torch.full_like(x, -0.0)
        elif kind == "ascending":
            x = columns / 64 - 7
        elif kind == "descending":
            x = -columns / 64 + 7
        elif kind == "infinities":
            x = torch.where(noise < 0.2, torch.inf, torch.where(noise < 0.4, -torch.inf, x))
        elif kind == "nan":
            x = torch.where(noise < 0.3, torch.nan, torch.where(noise < 0.35, -torch.nan, x))
        elif kind == "sparse":
            x = torch.where(noise < 0.999, -torch.inf, x)
        elif kind == "clustered":
            x[:, width // 3 : width // 3 + 40] += 30
        elif kind != "gaussian":
            raise ValueError(f"kind must be one of {', '.join(LOGIT_KINDS)}, got {kind!r}")
        x = x.clone()
        anchor = torch.nonzero(alignment.classes[m].cpu() >= 0)[m % 3 if m % 3 < size // 2 else 0, 0]
        bad = ~x[:, anchor].isfinite()
        x[bad, anchor] = 1.0
        x = x.to(dtype)
        if strided:
            buffer = torch.empty(batch * (width + 5) + 1, dtype=dtype, device="cpu")
            view = buffer[1:].view(batch, width + 5)[:, :width]
            view.copy_(x)
            x = view
        result.append(x)
    return result


def assert_same_step(got: StepResult, expected: StepResult, atol: float = ATOL) -> None:
    """Raise AssertionError, with the field's name, unless two steps decide the same.

    Slots, sizes and statuses have to be equal, probabilities within `atol`. Winner and ids have to be equal in every
    row whose two best slots are exactly tied or more than 1e-6 apart. The results may lie on different devices.
    """
    got, expected = (StepResult(*(tensor.cpu() for tensor in step)) for step in (got, expected))
    for name in ("status", "union_size", "union_ids"):
        _assert_equal(name, getattr(got, name), getattr(expected, name))
    for name in ("member_probs", "union_probs"):
        ours, theirs = getattr(got, name), getattr(expected, name)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=atol, msg=functools.partial(_named, name))
    top = expected.union_probs.topk(min(2, expected.union_probs.shape[1]), dim=1).values
    clear = (top[:, 0] - top[:, -1] > _CLEAR) | (top[:, 0] == top[:, -1])
    for name in ("winner", "next_ids"):
        _assert_equal(name, getattr(got, name)[clear], getattr(expected, name)[clear])


def assert_bitwise_equal(got: StepResult, expected: StepResult) -> None:
    """Raise AssertionError, with the field's name, unless two results have the same dtypes, shapes and bits."""
    for name, ours in got._asdict().items():
        theirs = getattr(expected, name)
        if (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape):
            raise AssertionError(
                f"{name} must be {theirs.dtype} {list(theirs.shape)}, got {ours.dtype} {list(ours.shape)}"
            )
        _assert_equal(name, *(tensor.contiguous().view(torch.uint8) for tensor in (ours, theirs)))


def _named(name: str, message: str) -> str:
    return f"{name}: {message}"


def _assert_equal(name: str, got: Tensor, expected: Tensor) -> None:
    if got.shape != expected.shape:
        raise AssertionError(f"{name} must have the shape {list(expected.shape)}, got {list(got.shape)}")
    if not torch.equal(got, expected):
        where = (got != expected).nonzero()
        first = tuple(where[0].tolist())
        raise AssertionError(
            f"{name} differs in {len(where)} of {got.numel()} places: {name}{list(first)} must be "
            f"{expected[first].item()}, got {got[first].item()}"
        )


def step_in_parts(
    parts: Any,
    logits: Sequence[Tensor],
    alignment: VocabAlignment,
    *,
    k: int = 10,
    primary: int = 0,
    weights: Sequence[float] | None = None,
    score: str = "logits",
    duplicates: str = "repeat",
    combine: str = "mean",
    include: Tensor | None = None,
) -> StepResult:
    """A whole step made of `parts`.

    Parameters
    ----------
    parts : module or object
        `unite_ext.step_parts`, `unite_ext.reference`, or what has their five functions under the same names.
    logits : sequence of Tensor
        One [B, V_m] per member.
    alignment, k, primary, weights, score, duplicates, combine, include
        As in `unite_ext.unite_step`.
    """
    tops = [parts.top_k_keys(x, alignment, m, k=k, score=score) for m, x in enumerate(logits)]
    keys = torch.stack([keys for keys, _ in tops], dim=1)
    pool = {"primary": primary, "weights": weights, "combine": combine}
    union = parts.unite_keys(keys, alignment, **pool, include=include)
    columns = []
    for m, (own, log_sums) in enumerate(tops):
        slots = union.slots[:, :, m]
        values = parts.gather_logits(logits[m], slots)
        given = (values, slots, union.union_size, own, union.key_slots[:, m], log_sums)
        columns.append(parts.score_slots(*given, score=score, duplicates=duplicates, combine=combine))
    return parts.combine_slots(torch.stack(columns, dim=2), union, **pool)
