"""The step in parts on CUDA tensors: the fused step bit for bit, one launch each, nothing waits."""

from __future__ import annotations

import pytest
import torch
from gpu.conftest import on_gpu
from test_cuda_on_cpu import real_widths
from test_step import AXES, DTYPES, SIZES, name_of, pairwise_cover
from test_step_parts import fused, operator_calls, options_of

from unite_ext import exchange, reference, step_parts, unite_step
from unite_ext.testing import (
    LOGIT_KINDS,
    assert_bitwise_equal,
    assert_same_step,
    make_logits,
    step_in_parts,
    synthetic_alignment,
)


@pytest.mark.parametrize("case", pairwise_cover(AXES, seed=1), ids=name_of)
def test_parts_are_the_fused_step(case):
    alignment = synthetic_alignment(SIZES[case["members"]])
    logits = make_logits(alignment, case["batch"], kind=case["kind"], dtype=case["dtype"], strided=case["strided"])
    options = options_of(case, alignment)
    want = reference.unite_step(logits, alignment, **options)
    if "include" in options:
        options["include"] = options["include"].cuda()
    on_device, device_logits = alignment.to("cuda"), [on_gpu(x) for x in logits]
    got = step_in_parts(step_parts, device_logits, on_device, **options)
    assert_bitwise_equal(got, fused(device_logits, on_device, **options))
    assert_same_step(got, want)


@pytest.mark.parametrize("score", ["logits", "probs"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", LOGIT_KINDS)
@pytest.mark.parametrize("batch", [1, 8, 130])
def test_real_widths(kind, dtype, batch, score):
    """Alone a member's rows are cut into other slices than beside the other member's."""
    alignment = real_widths()
    logits = [on_gpu(x) for x in make_logits(alignment, batch, kind=kind, dtype=dtype, padding=414, strided=batch == 8)]
    on_device = alignment.to("cuda")
    k = (10, 64, 256)[LOGIT_KINDS.index(kind) % 3]
    assert_bitwise_equal(
        step_in_parts(step_parts, logits, on_device, k=k, score=score), unite_step(logits, on_device, k=k, score=score)
    )


def test_devices_make_the_same_keys_and_slots():
    """Members on a GPU and on a CPU can be united."""
    alignment = synthetic_alignment((2500, 3100))
    logits = make_logits(alignment, 4, kind="ties", dtype=torch.bfloat16)
    here = torch.stack([step_parts.top_k_keys(x, alignment, m)[0] for m, x in enumerate(logits)], dim=1)
    on_device = alignment.to("cuda")
    there = torch.stack([step_parts.top_k_keys(x.cuda(), on_device, m)[0] for m, x in enumerate(logits)], dim=1)
    assert torch.equal(there.cpu(), here)
    for a, b in zip(step_parts.unite_keys(there, on_device), step_parts.unite_keys(here, alignment)):
        assert torch.equal(a.cpu(), b)


def test_one_kernel_each_and_no_synchronisation():
    alignment = real_widths()
    logits = [x.cuda() for x in make_logits(alignment, 4, dtype=torch.bfloat16)]
    on_device = alignment.to("cuda")
    keys, log_sums = zip(*(step_parts.top_k_keys(x, on_device, m) for m, x in enumerate(logits)))
    stacked = torch.stack(keys, dim=1)
    union = step_parts.unite_keys(stacked, on_device)
    column = union.slots[:, :, 0]
    values = step_parts.gather_logits(logits[0], column)
    probs = torch.rand(union.slots.shape, device="cuda")
    rules = {"score": "logits", "duplicates": "drop"}
    calls = [
        lambda: step_parts.top_k_keys(logits[0], on_device, 0),
        lambda: step_parts.unite_keys(stacked, on_device),
        lambda: step_parts.gather_logits(logits[0], column),
        lambda: step_parts.score_slots(
            values, column, union.union_size, keys[0], union.key_slots[:, 0], log_sums[0], **rules
        ),
        lambda: step_parts.combine_slots(probs, union),
    ]
    torch.cuda.synchronize()
    mode = torch.cuda.get_sync_debug_mode()
    for call in calls:
        torch.cuda.set_sync_debug_mode("error")
        try:
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
                call()
        finally:
            torch.cuda.set_sync_debug_mode(mode)
        on_device_events = [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        assert len(on_device_events) == 1, [e.name for e in on_device_events]


def test_captured_into_a_graph():
    alignment = synthetic_alignment((2500, 3100))
    on_device = alignment.to("cuda")
    logits = [x.cuda() for x in make_logits(alignment, 2)]
    graph = torch.cuda.CUDAGraph()
    step_in_parts(step_parts, logits, on_device)
    with torch.cuda.graph(graph):
        step = step_in_parts(step_parts, logits, on_device)
    for seed in range(5):
        for target, x in zip(logits, make_logits(alignment, 2, seed=seed)):
            target.copy_(x)
        graph.replay()
        assert_bitwise_equal(step, unite_step(logits, on_device))


def test_keys_from_a_network():
    alignment = synthetic_alignment((40, 60))
    keys = torch.randint(-(2**63), 2**63 - 1, (4, 2, 8), generator=torch.Generator().manual_seed(0))
    got = step_parts.unite_keys(keys.cuda(), alignment.to("cuda"))
    for a, b in zip(got, reference.unite_keys(keys, alignment)):
        assert torch.equal(a.cpu(), b)
    assert isinstance(got, exchange.UnionSlots)


@pytest.mark.parametrize("name", ["top_k_keys", "unite_keys", "gather_logits", "score_slots", "combine_slots"])
def test_opcheck(name):
    for arguments in operator_calls("cuda")[name]:
        torch.library.opcheck(getattr(torch.ops.unite_ext, name).default, arguments)
