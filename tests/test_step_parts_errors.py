"""Bad arguments of the step's parts get an error that names them, before any work."""

from __future__ import annotations

import pytest
import torch
from test_step_parts import operator_calls

from unite_ext import step_parts
from unite_ext.testing import make_logits, synthetic_alignment

ALIGNMENT = synthetic_alignment((40, 60))
X, Y = make_logits(ALIGNMENT, 2)
KEYS, SUMS = step_parts.top_k_keys(X, ALIGNMENT, 0, k=4)
BOTH = torch.stack([KEYS, step_parts.top_k_keys(Y, ALIGNMENT, 1, k=4)[0]], dim=1)
UNION = step_parts.unite_keys(BOTH, ALIGNMENT)
COLUMN, SIZE, KEY_SLOTS = UNION.slots[:, :, 0], UNION.union_size, UNION.key_slots[:, 0]
VALUES = step_parts.gather_logits(X, COLUMN)
PROBS = torch.rand(UNION.slots.shape)
RULES = {"score": "logits", "duplicates": "repeat"}

CASES = {
    "top_k_keys": [
        ((X, {}, 0), {}, TypeError, "alignment must be a VocabAlignment, got dict"),
        ((X, ALIGNMENT, 2), {}, ValueError, "member must be from 0 to 1, got 2"),
        ((X.double(), ALIGNMENT, 0), {}, TypeError, "logits must be float32, bfloat16 or float16, got torch.float64"),
        ((X[:, :9], ALIGNMENT, 0), {}, ValueError, "logits must hold the member's highest eligible id"),
        ((X, ALIGNMENT, 0), {"k": 257}, ValueError, "k must be from 1 to 256, got 257"),
        ((X, ALIGNMENT, 0), {"score": "logit"}, ValueError, "score must be one of 'logits', 'probs', got 'logit'"),
    ],
    "unite_keys": [
        ((BOTH.int(), ALIGNMENT), {}, TypeError, "keys must be int64, got torch.int32"),
        ((BOTH[:, :1], ALIGNMENT), {}, ValueError, r"keys must have shape \[any, 2, any\], got \[2, 1, 4\]"),
        ((BOTH.repeat(1, 1, 129), ALIGNMENT), {}, ValueError, "k must be from 1 to 256, got 516"),
        ((BOTH, ALIGNMENT), {"primary": 2}, ValueError, "primary must be from 0 to 1, got 2"),
        ((BOTH, ALIGNMENT), {"include": [1, 2]}, TypeError, "include must be an int64 tensor"),
        ((BOTH.to("meta"), ALIGNMENT), {}, ValueError, "keys must be on cpu, got meta"),
    ],
    "gather_logits": [
        (([1.0], COLUMN), {}, TypeError, "logits must be a tensor, got list"),
        ((X, COLUMN.float()), {}, TypeError, "ids must be int32 or int64, got torch.float32"),
        ((X, COLUMN[:1]), {}, ValueError, r"ids must have shape \[2, any\], got \[1, 8\]"),
        ((X, COLUMN[:, :0]), {}, ValueError, "the number of slots in ids must be from 1 to 1025, got 0"),
    ],
    "score_slots": [
        (
            (VALUES.half(), COLUMN, SIZE, KEYS, KEY_SLOTS, SUMS),
            RULES,
            TypeError,
            "values must be float32, got torch.float16",
        ),
        (
            (VALUES, COLUMN.long(), SIZE, KEYS, KEY_SLOTS, SUMS),
            RULES,
            TypeError,
            "slots must be int32, got torch.int64",
        ),
        (
            (VALUES, COLUMN, SIZE[:1], KEYS, KEY_SLOTS, SUMS),
            RULES,
            ValueError,
            r"union_size must have shape \[2\], got \[1\]",
        ),
        ((VALUES, COLUMN, SIZE, KEYS[:1], KEY_SLOTS, SUMS), RULES, ValueError, r"keys must have shape \[2, any\]"),
        ((VALUES, COLUMN, SIZE, KEYS, KEY_SLOTS[:1], SUMS), RULES, ValueError, r"key_slots must have shape \[2, 4\]"),
        ((VALUES, COLUMN, SIZE, KEYS, KEY_SLOTS, SUMS.double()), RULES, TypeError, "log_sums must be float32"),
        (
            (VALUES, COLUMN, SIZE, KEYS, KEY_SLOTS, SUMS),
            RULES | {"duplicates": "keep"},
            ValueError,
            "duplicates must be one of",
        ),
    ],
    "combine_slots": [
        ((PROBS[0], UNION), {}, ValueError, r"member_scores must have shape \[any, any, any\]"),
        ((PROBS[:, :, :1], UNION), {}, ValueError, r"union.slots must have shape \[2, 8, 1\], got \[2, 8, 2\]"),
        ((PROBS, UNION._replace(status=SIZE.long())), {}, TypeError, "union.status must be int32, got torch.int64"),
        ((PROBS, UNION), {"primary": -1}, ValueError, "primary must be from 0 to 1, got -1"),
        ((PROBS, UNION), {"weights": [1.0, -1.0]}, ValueError, "weights must not be negative with combine='mean'"),
        (
            (PROBS, UNION),
            {"weights": [0, 1], "combine": "product"},
            ValueError,
            "weights must be above 0",
        ),
        ((PROBS, UNION), {"combine": "sum"}, ValueError, "combine must be one of 'mean', 'product', got 'sum'"),
        ((PROBS, UNION), {"weights": [1.0]}, ValueError, "weights must have one entry per member, 2, got 1"),
    ],
}


@pytest.mark.parametrize(
    ("name", "arguments", "options", "error", "message"),
    [pytest.param(name, *case, id=f"{name}-{i}") for name, cases in CASES.items() for i, case in enumerate(cases)],
)
def test_bad_arguments(name, arguments, options, error, message):
    with pytest.raises(error, match=message):
        getattr(step_parts, name)(*arguments, **options)


OPERATOR_CASES = [
    ("top_k_keys", 0, lambda x: x[:, :9], "logits must hold the highest eligible id"),
    ("top_k_keys", 2, lambda offset: 10**6, "eligible must hold"),
    ("top_k_keys", 4, lambda k: 0, "k must be from 1 to 256, got 0"),
    ("top_k_keys", 5, lambda score: "logit", "score must be one of 'logits', 'probs', got 'logit'"),
    ("unite_keys", 0, lambda keys: keys[0], "keys must have 3 dimensions, got 2"),
    ("unite_keys", 0, lambda keys: keys.transpose(0, 1), "keys must be contiguous"),
    ("unite_keys", 0, lambda keys: keys.repeat(1, 5, 1), "the number of members must be from 1 to 8, got 10"),
    ("unite_keys", 1, lambda table: table[:7], "table must be"),
    ("unite_keys", 3, lambda sizes: sizes[:1], "vocab_sizes must have one entry per member, 2, got 1"),
    ("gather_logits", 1, lambda ids: ids.float(), "ids has the wrong dtype"),
    ("gather_logits", 1, lambda ids: ids[:2], r"ids must be \[3, 20\], got \[2, 20\]"),
    ("gather_logits", 1, lambda ids: ids.repeat(1, 60), "the number of slots must be from 1 to 1025, got 1200"),
    ("score_slots", 1, lambda slots: slots[:, :5], r"slots must be \[3, 20\], got \[3, 5\]"),
    ("score_slots", 2, lambda size: size[:2], "union_size must have 3 entries, got 2"),
    ("score_slots", 4, lambda key_slots: key_slots.long(), "key_slots has the wrong dtype"),
    ("score_slots", 7, lambda duplicates: "keep", "duplicates must be one of 'repeat', 'drop', got 'keep'"),
    ("score_slots", 8, lambda combine: "sum", "combine must be one of 'mean', 'product', got 'sum'"),
    ("unite_keys", 5, lambda weights: [1.0], "weights must have one entry per member, 2, got 1"),
    ("unite_keys", 6, lambda combine: "sum", "combine must be one of 'mean', 'product', got 'sum'"),
    ("combine_slots", 1, lambda slots: slots[:, :5].contiguous(), "slots must have the shape of member_scores"),
    ("combine_slots", 7, lambda combine: "sum", "combine must be one of 'mean', 'product', got 'sum'"),
    ("combine_slots", 4, lambda status: status.long(), "status has the wrong dtype"),
    ("combine_slots", 5, lambda primary: 2, "primary must be from 0 to 1, got 2"),
    ("combine_slots", 6, lambda weights: [1.0], "weights must have one entry per member, 2, got 1"),
]


@pytest.mark.parametrize(("name", "position", "change", "message"), OPERATOR_CASES)
def test_the_operators_themselves_stay_memory_safe(name, position, change, message):
    arguments = list(operator_calls()[name][0])
    operator = getattr(torch.ops.unite_ext, name)
    operator(*arguments)
    arguments[position] = change(arguments[position])
    with pytest.raises(RuntimeError, match=message):
        operator(*arguments)
