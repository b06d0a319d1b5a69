"""Bad input gets a ValueError or TypeError that names the argument, before any work."""

from __future__ import annotations

import math

import pytest
import torch

from unite_ext import reference, unite_step
from unite_ext.testing import make_logits, synthetic_alignment

ALIGNMENT = synthetic_alignment((40, 60))
GOOD = make_logits(ALIGNMENT, 2)
EIGHT = synthetic_alignment((40,) * 8)


def replaced(tensor: torch.Tensor) -> list[torch.Tensor]:
    return [GOOD[0], tensor]


CASES = {
    "no logits": ([], {}, ValueError, "logits must hold 1 to 8 members, got 0"),
    "nine members": ([GOOD[0]] * 9, {}, ValueError, "1 to 8 members, got 9"),
    "one member missing": (GOOD[:1], {}, ValueError, r"one tensor per member of the alignment, 2, got 1"),
    "a tensor for a list": (GOOD[0], {}, TypeError, "logits must be a list"),
    "not a tensor": (replaced([1.0]), {}, TypeError, r"logits\[1\] must be a tensor, got list"),
    "other batch": (replaced(GOOD[1][:1]), {}, ValueError, r"logits\[1\] must have 2 rows like logits\[0\], got 1"),
    "one dimension": (replaced(GOOD[1][0]), {}, ValueError, r"logits\[1\] must be \[batch, vocabulary\], got shape"),
    "three dimensions": (replaced(GOOD[1][None]), {}, ValueError, r"logits\[1\] must be \[batch, vocabulary\]"),
    "integers": (replaced(GOOD[1].long()), {}, TypeError, r"logits\[1\] must be float32, bfloat16 or float16, got"),
    "float64": (replaced(GOOD[1].double()), {}, TypeError, r"got torch.float64"),
    "too narrow": (
        replaced(GOOD[1][:, :50]),
        {},
        ValueError,
        r"logits\[1\] must hold .* highest eligible id, \d+, got a width of 50",
    ),
    "last dimension strided": (
        replaced(torch.randn(200, 2).T),
        {},
        ValueError,
        r"logits\[1\] must be contiguous in its last dimension",
    ),
    "other device": (
        replaced(GOOD[1].to("meta")),
        {},
        ValueError,
        r"logits\[1\] must be on the alignment's device, cpu",
    ),
    "k too small": (GOOD, {"k": 0}, ValueError, "k must be from 1 to 256, got 0"),
    "k too large": (GOOD, {"k": 257}, ValueError, "k must be from 1 to 256, got 257"),
    "k a float": (GOOD, {"k": 10.0}, TypeError, "k must be an int, got float"),
    "k a bool": (GOOD, {"k": True}, TypeError, "k must be an int, got bool"),
    "primary too large": (GOOD, {"primary": 2}, ValueError, "primary must be from 0 to 1, got 2"),
    "primary negative": (GOOD, {"primary": -1}, ValueError, "primary must be from 0 to 1, got -1"),
    "negative weight": (GOOD, {"weights": [1, -1]}, ValueError, "weights must not be negative with combine='mean'"),
    "NaN weight": (GOOD, {"weights": [1, math.nan]}, ValueError, "weights must be finite"),
    "infinite weight": (GOOD, {"weights": [1, math.inf]}, ValueError, "weights must be finite"),
    "weights all zero": (GOOD, {"weights": [0, 0]}, ValueError, "weights must not all be zero"),
    "three weights": (GOOD, {"weights": [1, 1, 1]}, ValueError, "weights must have one entry per member, 2, got 3"),
    "weights text": (GOOD, {"weights": ["a", "b"]}, TypeError, "weights must be numbers"),
    "weights a number": (GOOD, {"weights": 1.0}, TypeError, "weights must be numbers, one per member, got 1.0"),
    "unknown score": (GOOD, {"score": "logit"}, ValueError, "score must be one of 'logits', 'probs', got 'logit'"),
    "unknown duplicates": (GOOD, {"duplicates": "keep"}, ValueError, "duplicates must be one of 'repeat', 'drop'"),
    "include a list": (GOOD, {"include": [1, 2]}, TypeError, "include must be an int64 tensor"),
    "include int32": (
        GOOD,
        {"include": torch.tensor([1, 2]).int()},
        TypeError,
        "include must be int64, got torch.int32",
    ),
    "include too short": (
        GOOD,
        {"include": torch.tensor([1])},
        ValueError,
        r"include must have shape \(2,\), got \(1,\)",
    ),
    "include elsewhere": (GOOD, {"include": torch.tensor([1, 2], device="meta")}, ValueError, "include must be on cpu"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_arguments(case):
    logits, options, error, message = CASES[case]
    with pytest.raises(error, match=message):
        unite_step(logits, ALIGNMENT, **options)


def test_walk_longer_than_1024():
    with pytest.raises(ValueError, match=r"members \* k must be at most 1024, got 8 \* 129 = 1032"):
        unite_step(make_logits(EIGHT, 1), EIGHT, k=129)
    unite_step(make_logits(EIGHT, 1), EIGHT, k=128)


def test_not_an_alignment():
    with pytest.raises(TypeError, match="alignment must be a VocabAlignment, got dict"):
        unite_step(GOOD, {})


@pytest.mark.parametrize("step", [unite_step, reference.unite_step])
@pytest.mark.parametrize("bad", ["special", "past the vocabulary", "below -1"])
def test_include_of_an_ineligible_id(step, bad):
    special = int((ALIGNMENT.classes[0] < 0).nonzero()[0, 0])
    wrong = {"special": special, "past the vocabulary": 10**6, "below -1": -2}[bad]
    with pytest.raises(ValueError, match=r"include\[1\] must be -1 or an eligible id of the primary"):
        step(GOOD, ALIGNMENT, include=torch.tensor([-1, wrong])).check()


def test_the_operator_itself_stays_memory_safe():
    def call(
        logits,
        table=ALIGNMENT.table,
        class_ids=ALIGNMENT.class_ids,
        k=10,
        sizes=ALIGNMENT.vocab_sizes,
        score="logits",
        duplicates="repeat",
        combine="mean",
        **options,
    ):
        torch.ops.unite_ext.fused_step(
            logits, table, class_ids, ALIGNMENT.eligible, ALIGNMENT.eligible_offsets, sizes, k, 0, [0.5, 0.5], score,
            duplicates, combine, **options,
        )  # fmt: skip

    call(GOOD)
    for arguments, message in [
        (dict(logits=replaced(GOOD[1][:, :50])), "must hold the highest eligible id"),
        (dict(logits=replaced(GOOD[1][:1])), "must have 2 rows"),
        (dict(logits=replaced(GOOD[1].double())), "must be float32"),
        (dict(logits=GOOD, k=300), "k must be from 1 to 256"),
        (dict(logits=GOOD, table=ALIGNMENT.table[:7]), "table must be"),
        (dict(logits=GOOD, table=ALIGNMENT.table.float()), "table has the wrong dtype"),
        (dict(logits=GOOD, class_ids=ALIGNMENT.class_ids[:, :1].contiguous()), "class_ids must be"),
        (dict(logits=[GOOD[0].repeat(1, 999)] * 2, sizes=(40, 9999)), "eligible must hold"),
        (dict(logits=GOOD, include=torch.tensor([1])), "include must have 2 entries"),
        (dict(logits=GOOD, score="logit"), "score must be one of 'logits', 'probs', got 'logit'"),
        (dict(logits=GOOD, duplicates="keep"), "duplicates must be one of 'repeat', 'drop', got 'keep'"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            call(**arguments)
