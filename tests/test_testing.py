"""`unite_ext.testing`: alignments and logits are as documented, and comparisons fail for every kind of difference."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from unite_ext import reference, step_parts, unite_step
from unite_ext.testing import (
    LOGIT_KINDS,
    alignment_from_classes,
    assert_bitwise_equal,
    assert_same_step,
    make_logits,
    step_in_parts,
    synthetic_alignment,
)


@pytest.fixture(scope="module")
def step():
    alignment = synthetic_alignment((50, 60))
    return unite_step(make_logits(alignment, 3), alignment, k=4)


def test_needs_no_test_runner(tmp_path):
    code = "import sys, unite_ext.testing; assert not {'pytest', '_pytest', 'hypothesis'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)  # not the source, which is not compiled


@pytest.mark.parametrize("field", reference.StepResult._fields)
def test_every_field_is_compared(step, field):
    tensor = getattr(step, field).clone()
    tensor[0] += 1
    other = step._replace(**{field: tensor})
    for compare in (assert_same_step, assert_bitwise_equal):
        compare(step, step)
        with pytest.raises(AssertionError, match=field):
            compare(other, step)
    with pytest.raises(AssertionError, match=f"{field} must be"):
        assert_bitwise_equal(step._replace(**{field: tensor.double()}), step)


def test_shapes_are_compared(step):
    with pytest.raises(AssertionError, match=r"union_ids must have the shape \[3, 8, 2\], got \[3, 7, 2\]"):
        assert_same_step(step._replace(union_ids=step.union_ids[:, :7]), step)


def test_rounding_is_no_difference_but_a_clear_choice_is():
    probs = torch.tensor([[0.5, 0.5, 0.0], [0.6, 0.4, 0.0], [0.5, 0.5 - 5e-7, 0.0]])
    shape = (3, 3, 1)
    ids = torch.arange(3).expand(3, 3)[:, :, None]
    size = torch.full((3,), 3, dtype=torch.int32)
    zero = torch.zeros(3, dtype=torch.int32)
    step = reference.StepResult(zero[:, None].long(), ids, size, zero, probs, probs.view(shape), zero)
    moved = step._replace(union_probs=probs + 1e-6)
    assert_same_step(moved, step)
    for row, same in ((0, False), (1, False), (2, True)):  # tied: the lower slot; clear; too close to call
        winner = zero.clone()
        winner[row] = 1
        other = step._replace(winner=winner, next_ids=winner[:, None].long())
        if same:
            assert_same_step(other, step)
        else:
            with pytest.raises(AssertionError, match="winner"):
                assert_same_step(other, step)


def test_classes_are_as_given():
    alignment = alignment_from_classes([np.array([0, 1, -1, 2]), np.array([2, 1])], np.array([[0, -1], [1, 1], [3, 0]]))
    assert [alignment.token_bytes(0, i) for i in range(4)] == [b"", b"1", b"", b"2"]
    assert alignment.class_ids.tolist() == [[0, -1], [1, 1], [3, 0]]
    step = unite_step([torch.tensor([[0.0, 1.0, 9.0, 2.0]]), torch.tensor([[3.0, 1.0]])], alignment, k=2)
    assert step.next_ids.tolist() == [[3, 0]]


@pytest.mark.parametrize("kind", LOGIT_KINDS)
def test_every_row_can_be_decided(kind):
    alignment = synthetic_alignment([40, 30, 70])
    assert alignment is synthetic_alignment((40, 30, 70))
    logits = make_logits(alignment, 16, kind=kind, padding=5, strided=kind == "nan")
    assert [x.shape for x in logits] == [(16, size + 5) for size in alignment.vocab_sizes]
    step = unite_step(logits, alignment, k=3)
    assert step.status.tolist() == [0] * 16
    assert_bitwise_equal(step_in_parts(step_parts, logits, alignment, k=3), step)
    assert_same_step(step, step_in_parts(reference, logits, alignment, k=3))


def test_unknown_kind_is_named():
    with pytest.raises(ValueError, match=r"kind must be one of gaussian, .*, got 'normal'"):
        make_logits(synthetic_alignment((4,)), 1, kind="normal")
