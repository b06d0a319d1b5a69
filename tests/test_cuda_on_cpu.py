"""The CUDA step's own source against the reference, without a GPU: run by tests/cuda_on_cpu under a race checker.

tests/gpu runs the same matrix on a device.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import subprocess

import numpy as np
import pytest
import torch
from cuda_on_cpu import emulator
from cuda_on_cpu.emulated_parts import EmulatedParts
from cuda_on_cpu.emulator import EmulationError, Emulator, LaunchConfig, Schedule, StepParams
from cuda_on_cpu.faults import FAULTS
from test_step import drawn_weights

from unite_ext import reference
from unite_ext.testing import (
    LOGIT_KINDS,
    alignment_from_classes,
    assert_same_step,
    make_logits,
    step_in_parts,
    synthetic_alignment,
)

pytestmark = pytest.mark.skipif(emulator.unavailable() is not None, reason=str(emulator.unavailable()))

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
STEP_OPTIONS = ("k", "primary", "weights", "score", "duplicates", "combine", "include")


@pytest.fixture
def checked() -> Emulator:
    return emulator.built("checked")


@pytest.fixture
def plain() -> Emulator:
    return emulator.built("plain")


def compare(emu, alignment, logits, **options):
    got = emu.unite_step(logits, alignment, **options)
    options = {name: options[name] for name in STEP_OPTIONS if name in options}
    assert_same_step(got, reference.unite_step(logits, alignment, **options))
    return got


@pytest.mark.parametrize("checking", [False, True], ids=["plain", "checked"])
def test_shim_and_race_checker_mean_what_they_say(checking):
    program = emulator.build(emulator.HERE / "selftest.cpp", checking)
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("kind", LOGIT_KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kinds_of_logits(checked, kind, dtype):
    alignment = synthetic_alignment((2500, 3101))
    logits = make_logits(alignment, 2, kind=kind, dtype=dtype, strided=True)
    compare(checked, alignment, logits, k=10, slices=3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["equal", "ties", "ascending", "descending", "clustered"])
def test_inputs_that_defeat_the_bound(checked, kind, dtype):
    """More than 1024 candidates in one slice: the radix passes find the exact top-k."""
    alignment = synthetic_alignment((9001, 7000))
    logits = make_logits(alignment, 1, kind=kind, dtype=dtype, strided=True)
    compare(checked, alignment, logits, k=17, slices=1, threads=32)


@pytest.mark.parametrize("kind", ["equal", "ties", "descending"])
def test_a_whole_row_in_one_slice_that_defeats_the_bound(plain, kind):
    """Ids that differ in their third byte only must be told apart."""
    alignment = real_widths()
    logits = make_logits(alignment, 1, kind=kind, dtype=torch.bfloat16)
    compare(plain, alignment, logits, k=10, slices=1, threads=128)


@pytest.mark.parametrize(
    ("sizes", "k", "threads", "slices"),
    [
        ((1,), 1, 32, 1),
        ((5, 3), 10, 32, 4),
        ((40, 33, 37), 64, 64, 1),
        ((700,), 256, 512, 2),
        ((2500, 2300), 256, 512, 2),
        ((1100, 900, 1000), 256, 128, 1),  # k above the number of threads
        ((300, 280, 310, 290), 256, 256, 2),  # slots in the row's record
        ((160,) * 8, 128, 128, 1),
        ((900, 400, 650, 1), 16, 64, (3, 1, 2, 1)),
        ((9000, 6000), 64, 128, 16),  # as many slices as the merge takes
        ((8000,), 20, 64, 32),
    ],
    ids=str,
)
@pytest.mark.parametrize("include", [False, True], ids=["", "include"])
def test_limits_of_k_and_members(checked, sizes, k, threads, slices, include):
    alignment = synthetic_alignment(sizes)
    logits = make_logits(alignment, 2, dtype=torch.bfloat16, strided=True)
    options = {}
    if include:
        rarest = int(torch.nonzero(alignment.classes[0] >= 0)[-1])
        options["include"] = torch.tensor([rarest, -1])
    compare(checked, alignment, logits, k=k, threads=threads, slices=slices, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", [1, 3])
def test_real_widths_as_launched(plain, checked, dtype, batch):
    """Llama-3 and Qwen2, with the launch that an H200 gets."""
    alignment = real_widths()
    logits = make_logits(alignment, batch, dtype=dtype, padding=414)
    compare(plain if batch > 1 else checked, alignment, logits, sm_count=132)


@functools.cache
def real_widths():
    """Vocabularies as wide as Llama-3's and Qwen2's: the first thousand ids of each are alike."""
    small = synthetic_alignment((1000, 1200))
    classes = []
    for m, width in enumerate((128256, 151646)):
        wide = np.arange(width) + small.num_classes + 200_000 * m
        wide[: len(small.classes[m])] = small.classes[m].numpy()
        classes.append(wide)
    used = np.unique(np.concatenate(classes))
    used = used[used >= 0]
    class_ids = np.full((len(used), 2), -1)
    for m in range(2):
        classes[m] = np.where(classes[m] < 0, -1, np.searchsorted(used, classes[m]))
        class_ids[: small.num_classes, m] = small.class_ids[:, m].numpy()
        first = len(small.classes[m])
        class_ids[classes[m][first:], m] = np.arange(first, len(classes[m]))
    return alignment_from_classes(classes, class_ids)


@pytest.mark.parametrize("seed", range(40))
def test_random_steps_under_random_schedules(checked, seed):
    """Members, dtypes, options, launch shapes and interleavings drawn from a seed."""
    rng = np.random.default_rng(seed)
    members = int(rng.choice([1, 2, 3, 8]))
    sizes = tuple(int(s) for s in rng.choice([3, 17, 64, 257, 1000, 2049], size=members))
    alignment = synthetic_alignment(sizes, seed=seed % 4)
    batch = int(rng.choice([1, 2, 3]))
    strided = bool(rng.random() < 0.5)
    logits = [
        make_logits(
            alignment, batch, kind=rng.choice(LOGIT_KINDS), dtype=DTYPES[rng.integers(3)], seed=seed, strided=strided
        )[m]
        for m in range(members)
    ]
    options = {
        "k": int(rng.choice([1, 10, 16, 17, 64, 128])),
        "primary": int(rng.integers(members)),
        "score": str(rng.choice(["logits", "probs"])),
        "duplicates": str(rng.choice(["repeat", "drop"])),
        "combine": ["mean", "product"][seed % 2],
    }
    options["weights"] = drawn_weights(rng, members, options["primary"], options["combine"])
    if rng.random() < 0.4:  # one in five of these ids is not eligible, or none is asked for
        options["include"] = torch.from_numpy(rng.integers(-1, alignment.vocab_sizes[options["primary"]], batch))
    schedule = Schedule(
        policy=str(rng.choice(["in order", "reverse", "random"])),
        resident=int(rng.choice([1, 2, 7])),
        seed=seed,
        preempt=0.2,
        preempt_access=0.001,
    )
    slices = [int(s) for s in rng.integers(1, 6, members)]
    compare(
        checked, alignment, logits, threads=int(rng.choice([32, 64, 128])), slices=slices, schedule=schedule, **options
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_infinite_logits_share_the_probability(checked, dtype):
    alignment = synthetic_alignment((2500, 3101))
    logits = make_logits(alignment, 2, kind="infinities", dtype=dtype)
    include = torch.nonzero(alignment.classes[0] >= 0)[-2:, 0]
    got = checked.unite_step(logits, alignment, k=3, score="probs", include=include)
    for row, m in itertools.product(range(2), range(2)):
        infinite = (logits[m][row, : alignment.vocab_sizes[m]] == torch.inf) & (
            alignment.classes[m][: alignment.vocab_sizes[m]] >= 0
        )
        size = int(got.union_size[row])
        ids = got.union_ids[row, :size, m]
        score = (infinite[ids.clamp(min=0)] / infinite.sum()).masked_fill(ids < 0, -torch.inf)
        torch.testing.assert_close(got.member_probs[row, :size, m], score.softmax(dim=0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("score", ["logits", "probs"])
def test_the_schedule_does_not_change_a_bit(plain, score):
    alignment = synthetic_alignment((2500, 3100, 900))
    logits = make_logits(alignment, 2, kind="ties", dtype=torch.bfloat16)
    results = [
        plain.unite_step(
            logits,
            alignment,
            k=20,
            score=score,
            slices=4,
            schedule=Schedule("random", resident=24, seed=seed, preempt=0.5),
        )
        for seed in range(6)
    ]
    for result in results[1:]:
        for name, value in result._asdict().items():
            assert torch.equal(value.view(torch.uint8), getattr(results[0], name).view(torch.uint8)), name


def test_members_without_logits_and_bad_includes_are_told_per_row(checked):
    alignment = synthetic_alignment((300, 400, 200))
    logits = make_logits(alignment, 4)
    logits[1][1] = -torch.inf
    logits[2][1] = torch.nan
    logits[2][2, alignment.classes[2].nonzero().max() + 1 :] = 1e9  # beyond the vocabulary
    ineligible = int(torch.nonzero(alignment.classes[0] < 0)[0])
    got = compare(checked, alignment, logits, k=5, include=torch.tensor([-1, -1, -1, ineligible]))
    assert got.status.tolist() == [0, 2, 0, -1]
    assert got.next_ids[1].tolist() == got.next_ids[3].tolist() == [-1, -1, -1]


def test_one_workspace_serves_launches_of_any_shape(checked):
    """Launches of different shapes on one workspace do not affect each other."""
    shapes = [
        ((2500, 3100), 1, {"k": 10, "slices": (16, 20)}),
        ((300, 280, 310, 290), 3, {"k": 256, "threads": 256, "slices": 1}),
        ((160,) * 8, 2, {"k": 128, "threads": 128, "slices": 1}),
        ((64,), 3, {"k": 1, "slices": 1}),
        ((1000, 900, 2000), 2, {"k": 20, "slices": 3, "score": "probs"}),
    ]
    workspace = torch.zeros(1 << 20, dtype=torch.uint8)
    for turn, number in enumerate([0, 0, 1, 0, 2, 3, 4, 0, 3, 2, 2, 1, 4, 4]):
        sizes, batch, options = shapes[number]
        alignment = synthetic_alignment(sizes)
        logits = make_logits(alignment, batch, dtype=torch.bfloat16, seed=turn)
        schedule = Schedule("random", resident=5, seed=turn, preempt=0.2)
        compare(checked, alignment, logits, workspace=workspace, schedule=schedule, **options)
        assert not workspace[: emulator.COUNTER_BYTES].any()


def test_more_rows_than_one_launch_takes(plain):
    alignment = synthetic_alignment((17,))
    logits = make_logits(alignment, 16384 + 3, dtype=torch.float16)
    compare(plain, alignment, logits, k=2, threads=32, slices=1)


OWN_CASES = {
    "no barrier before the digit": ((9000,), "equal", {"k": 10, "slices": 1}),
    "scan buffer reused": ((900, 800), "gaussian", {"k": 64, "threads": 64}),
    "no barrier before the softmax": ((900, 800), "gaussian", {"k": 40}),  # more slots than a warp has lanes
}


def two_launches(emu, fault: str) -> None:
    """Two steps, on one workspace or in parts."""
    sizes, kind, options = OWN_CASES.get(fault, ((2500, 3101), "gaussian", {"k": 10, "slices": 3}))
    alignment = synthetic_alignment(sizes)
    workspace = torch.zeros(1 << 20, dtype=torch.uint8)
    for turn, name in enumerate(["first launch", "second launch"]):
        logits = make_logits(alignment, 2, kind=kind, dtype=torch.bfloat16, seed=turn, padding=0, strided=True)
        try:
            if FAULTS[fault].file == "core/row_parts.h":
                step = step_in_parts(EmulatedParts(emu), logits, alignment, k=options["k"])
                assert_same_step(step, reference.unite_step(logits, alignment, k=options["k"]))
            else:
                compare(emu, alignment, logits, workspace=workspace, **options)
        except AssertionError as error:
            raise EmulationError(f"the {name} differs from the reference") from error


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_caught(fault):
    faulty = emulator.built("faulty")
    faulty.plant(None)
    two_launches(faulty, fault)  # sound without it
    faulty.plant(fault)
    with pytest.raises(EmulationError, match=FAULTS[fault].found):
        two_launches(faulty, fault)


@pytest.mark.parametrize(
    ("change", "config"),
    [
        ({}, {"threads": 48}),
        ({}, {"threads": 1024}),
        ({}, {"slices": 0}),
        ({}, {"slices": 33}),
        ({}, {"workspace": torch.zeros(emulator.COUNTER_BYTES, dtype=torch.uint8)}),
        ({}, {"workspace": torch.zeros(1 << 20, dtype=torch.uint8)[1:]}),
        ({"k": 257}, {}),
        ({"k": 256}, {"slices": 32}),  # more keys than the merge has room for
        ({"primary": 2}, {}),
    ],
    ids=str,
)
def test_launches_that_cannot_work_are_refused(plain, change, config):
    alignment = synthetic_alignment((9000, 9000))
    logits = make_logits(alignment, 1)
    with pytest.raises(EmulationError, match="returned error"):
        plain.unite_step(logits, alignment, **{"k": 10, **change, **config})


@pytest.mark.parametrize(
    ("batch", "k", "slices"),
    [(1, 10, [15, 18]), (8, 10, [15, 18]), (64, 10, [2, 2]), (128, 10, [1, 1]), (512, 10, [1, 1]), (1, 256, [4, 4])],
)
def test_chosen_launch_on_an_h200(plain, batch, k, slices):
    """Llama-3 and Qwen2 in bf16: about two CTAs per SM, slices of 16 KiB or more, a merge that fits."""
    params = StepParams(batch, 2, k, 0, 2 * k)
    for m, width in enumerate((128256, 151646)):
        params.logits[m] = emulator.MemberLogits(0, width, 0, width, 1)
    config: LaunchConfig = plain.choose_launch(params, 132)
    assert (config.threads, list(config.slices)[:2]) == (512, slices)
    assert emulator.COUNTER_BYTES < plain.workspace_bytes(params, config) < 65 << 20


@pytest.mark.parametrize("members", range(1, 9))
def test_every_chosen_launch_fits_into_shared_memory(plain, members):
    """Without a workspace the launcher refuses at its last check (invalid value), after that of the shape."""
    invalid_value, no_workspace = 1, ctypes.c_void_p(None)
    for k, score, batch in itertools.product(range(1, min(256, 1024 // members) + 1), (0, 1), (1, 64, 1000)):
        params = StepParams(batch, members, k, members - 1, members * k, score)
        for m in range(members):
            params.logits[m] = emulator.MemberLogits(0, 1 << 18, 0, 1 << 18, m % 3)
        config = plain.choose_launch(params, 132)
        refusal = plain.lib.emu_fused_step(ctypes.byref(params), no_workspace, 0, ctypes.byref(config))
        assert refusal == invalid_value, (k, score, batch, list(config.slices))


@pytest.mark.parametrize(("members", "k"), [(1, 1), (2, 10), (4, 256), (8, 128)])
def test_a_workspace_can_be_sized_for_steps_with_and_without_include(plain, members, k):
    sizes = []
    for slots in (members * k, members * k + 1, members * k + 2):
        params = StepParams(5, members, k, 0, slots)
        sizes.append(plain.workspace_bytes(params, emulator.launch_config(params, 128, 1)))
    assert emulator.COUNTER_BYTES < sizes[0] <= sizes[1]
    assert sizes[2] == 0  # no such step
