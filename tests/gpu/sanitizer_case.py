"""Small steps through every path of the kernels, for compute-sanitizer: python tests/gpu/sanitizer_case.py"""

import sys
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

from unite_ext import reference, step_parts, unite_step  # noqa: E402
from unite_ext.testing import (  # noqa: E402
    assert_bitwise_equal,
    assert_same_step,
    make_logits,
    step_in_parts,
    synthetic_alignment,
)

CASES = [
    ((2500, 3101), {"k": 10}, "gaussian", torch.bfloat16),
    ((40_000, 30_000), {"k": 10}, "equal", torch.float16),  # the radix passes
    ((2500, 3101, 900), {"k": 64, "score": "probs", "duplicates": "drop"}, "ties", torch.float32),
    ((300, 280, 310, 290), {"k": 256}, "nan", torch.bfloat16),  # slots in the row's record
]

for sizes, options, kind, dtype in CASES:
    alignment = synthetic_alignment(sizes)
    on_device = alignment.to("cuda")
    logits = make_logits(alignment, 2, kind=kind, dtype=dtype, strided=True)
    want = reference.unite_step(logits, alignment, **options)
    on_gpu = [x.cuda() for x in logits]
    for _ in range(2):
        step = unite_step(on_gpu, on_device, **options)
        assert_same_step(step, want, atol=1e-5)
        assert_bitwise_equal(step_in_parts(step_parts, on_gpu, on_device, **options), step)
print("sanitizer case: all steps right")
