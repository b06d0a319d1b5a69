"""The CUDA kernels of the step's parts, without a GPU: together the fused kernel bit for bit, each as the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cuda_on_cpu import emulator
from cuda_on_cpu.emulated_parts import EmulatedParts
from cuda_on_cpu.emulator import EmulationError, Schedule
from test_cuda_on_cpu import DTYPES, real_widths
from test_step import drawn_weights

from unite_ext import exchange, reference
from unite_ext._core import FIRST_SUB_TOKEN
from unite_ext.testing import (
    LOGIT_KINDS,
    assert_bitwise_equal,
    assert_same_step,
    make_logits,
    step_in_parts,
    synthetic_alignment,
)

pytestmark = pytest.mark.skipif(emulator.unavailable() is not None, reason=str(emulator.unavailable()))


@pytest.fixture
def checked() -> EmulatedParts:
    return EmulatedParts(emulator.built("checked"))


@pytest.fixture
def plain() -> EmulatedParts:
    return EmulatedParts(emulator.built("plain"))


def compare(parts, alignment, logits, *, fused_shape, **options):
    """In parts, fused with another launch shape, and by the reference."""
    got = step_in_parts(parts, logits, alignment, **options)
    assert_bitwise_equal(got, parts.emulator.unite_step(logits, alignment, **fused_shape, **options))
    assert_same_step(got, reference.unite_step(logits, alignment, **options))


@pytest.mark.parametrize("seed", range(30))
def test_parts_are_the_fused_kernel(checked, seed):
    """Members, dtypes, options, launch shapes and interleavings drawn from a seed."""
    rng = np.random.default_rng(seed)
    members = int(rng.choice([1, 2, 3, 8]))
    sizes = tuple(int(s) for s in rng.choice([3, 17, 64, 257, 1000, 2049, 3100], size=members))
    alignment = synthetic_alignment(sizes, seed=seed % 4)
    batch = int(rng.choice([1, 2, 3]))
    dtypes, kinds = rng.integers(3, size=members), rng.choice(LOGIT_KINDS, size=members)
    logits = [
        make_logits(alignment, batch, kind=kinds[m], dtype=DTYPES[dtypes[m]], seed=seed, strided=seed % 2 == 0)[m]
        for m in range(members)
    ]
    options = {
        "k": int(rng.choice([1, 10, 16, 17, 64, 128])),
        "primary": int(rng.integers(members)),
        "score": ["logits", "probs"][seed % 3 != 0],
        "duplicates": str(rng.choice(["repeat", "drop"])),
        "combine": ["mean", "product"][seed % 2],
    }
    options["weights"] = drawn_weights(rng, members, options["primary"], options["combine"])
    if rng.random() < 0.4:
        options["include"] = torch.from_numpy(rng.integers(-1, alignment.vocab_sizes[options["primary"]], batch))
    checked.threads, checked.slices = int(rng.choice([32, 64, 128])), int(rng.integers(1, 6))
    checked.schedule = Schedule(
        policy=str(rng.choice(["in order", "reverse", "random"])),
        resident=int(rng.choice([1, 2, 7])),
        seed=seed,
        preempt=0.2,
        preempt_access=0.001,
    )
    fused_shape = {"threads": int(rng.choice([32, 64, 128])), "slices": [int(s) for s in rng.integers(1, 6, members)]}
    compare(checked, alignment, logits, fused_shape=fused_shape, **options)


@pytest.mark.parametrize(("sizes", "k"), [((300, 280, 310, 290), 256), ((160,) * 8, 128), ((1,), 1)], ids=str)
@pytest.mark.parametrize("duplicates", ["repeat", "drop"])
def test_limits_of_k_and_members(checked, sizes, k, duplicates):
    alignment = synthetic_alignment(sizes)
    logits = make_logits(alignment, 2, dtype=torch.bfloat16, strided=True)
    include = torch.tensor([int(torch.nonzero(alignment.classes[0] >= 0)[-1]), -1])
    checked.threads = 128
    options = {"k": k, "duplicates": duplicates, "include": include}
    compare(checked, alignment, logits, fused_shape={"threads": 256, "slices": 1}, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sums_of_real_widths_do_not_depend_on_the_launch(plain, dtype):
    alignment = real_widths()
    logits = make_logits(alignment, 1, dtype=dtype, padding=414)
    plain.threads, plain.slices = 512, 30
    compare(plain, alignment, logits, fused_shape={"sm_count": 132}, score="probs")


def test_failed_rows(checked):
    alignment = synthetic_alignment((300, 400, 200))
    logits = make_logits(alignment, 4)
    logits[1][1] = -torch.inf
    logits[2][1] = torch.nan
    ineligible = int(torch.nonzero(alignment.classes[0] < 0)[0])
    options = {"k": 5, "include": torch.tensor([-1, -1, -1, ineligible]), "score": "probs"}
    compare(checked, alignment, logits, fused_shape={}, **options)


def test_what_came_over_a_network_is_not_trusted_with_memory(checked):
    alignment = synthetic_alignment((40, 60))
    keys = torch.randint(-(2**63), 2**63 - 1, (4, 2, 8), generator=torch.Generator().manual_seed(0))
    got = checked.unite_keys(keys, alignment)
    for a, b in zip(got, reference.unite_keys(keys, alignment)):
        assert torch.equal(a, b)
    logits = make_logits(alignment, 4)
    wild = torch.tensor([[0, 40, 2**28 - 1, 5 | FIRST_SUB_TOKEN, -7, 2**29, 2**31 - 1]] * 4)
    for ids in (wild, wild.int()):
        assert torch.equal(checked.gather_logits(logits[0], ids), reference.gather_logits(logits[0], ids))
    union = exchange.UnionSlots(
        torch.full((2, 3, 2), 2**31 - 1).int(), torch.full((2, 3), 9).int(), torch.tensor([99, -99]).int(),
        torch.zeros(2).int(), torch.tensor([[[0, 2**31 - 1, -7, 0, 99, 2, 3, -1]] * 2] * 2).int(),
    )  # fmt: skip
    probs = checked.score_slots(
        torch.rand(2, 3), union.slots[:, :, 0], union.union_size, keys[:2, 0], union.key_slots[:, 0], torch.zeros(2),
        score="logits", duplicates="drop",
    )  # fmt: skip
    assert not probs[1].any()
    step = checked.combine_slots(torch.rand(2, 3, 2), union)
    assert step.union_size.tolist() == [3, 0]
    assert step.status.tolist() == [0, 1]


def test_fused_launches_and_parts_take_turns_on_one_workspace(checked):
    alignment = synthetic_alignment((2500, 3100))
    checked.workspace = workspace = torch.zeros(1 << 20, dtype=torch.uint8)
    for turn in range(3):
        logits = make_logits(alignment, 1 + turn, seed=turn, dtype=torch.bfloat16)
        score = ["probs", "logits"][turn % 2]
        compare(checked, alignment, logits, fused_shape={"workspace": workspace, "slices": 3}, score=score)
        assert not workspace[: emulator.COUNTER_BYTES].any()


def test_launches_that_cannot_work_are_refused(plain):
    alignment = synthetic_alignment((300, 400))
    logits = make_logits(alignment, 1)
    keys = torch.stack([plain.top_k_keys(x, alignment, m, k=5, score="logits")[0] for m, x in enumerate(logits)], dim=1)
    for call in (
        lambda: plain.top_k_keys(logits[0], alignment, 0, k=257, score="logits"),
        lambda: plain.unite_keys(keys, alignment, primary=2),
        lambda: plain.unite_keys(keys.repeat(1, 5, 1), alignment),
        lambda: plain.gather_logits(logits[0], torch.zeros(1, 1026).int()),
        lambda: plain.combine_slots(torch.rand(1, 1026, 2), plain.unite_keys(keys, alignment)),
    ):
        with pytest.raises(EmulationError, match="returned error"):
            call()
