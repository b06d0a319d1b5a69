"""`unite_step` on CUDA tensors does what the reference does, bit for bit the same every time, and in one launch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gpu.conftest import on_gpu
from test_cuda_on_cpu import real_widths
from test_step import AXES, DTYPES, SIZES, drawn_weights, name_of, pairwise_cover

from unite_ext import reference, step_workspace, unite_step
from unite_ext.testing import LOGIT_KINDS, assert_bitwise_equal, assert_same_step, make_logits, synthetic_alignment

WORKSPACE_BYTES = 65 << 20  # enough for any shape


def expected(logits, alignment, **options):
    if options.get("include") is not None:
        options["include"] = options["include"].cpu()
    return reference.unite_step(logits, alignment, **options)


@pytest.mark.parametrize("case", pairwise_cover(AXES), ids=name_of)
def test_matrix(case):
    sizes = SIZES[case["members"]]
    alignment = synthetic_alignment(sizes)
    logits = make_logits(alignment, case["batch"], kind=case["kind"], dtype=case["dtype"], strided=case["strided"])
    rng = np.random.default_rng(0)
    primary = int(rng.integers(len(sizes)))
    options = {name: case[name] for name in ("k", "score", "duplicates", "combine")}
    options |= {"primary": primary, "weights": drawn_weights(rng, len(sizes), primary, case["combine"])}
    if case["with_include"]:
        options["include"] = torch.nonzero(alignment.classes[primary] >= 0)[-1, 0].repeat(case["batch"])
    want = expected(logits, alignment, **options)
    if case["with_include"]:
        options["include"] = options["include"].cuda()
    assert_same_step(unite_step([on_gpu(x) for x in logits], alignment.to("cuda"), **options), want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", LOGIT_KINDS)
@pytest.mark.parametrize("batch", [1, 8, 130])
def test_real_widths(kind, dtype, batch):
    alignment = real_widths()
    logits = make_logits(alignment, batch, kind=kind, dtype=dtype, padding=414, strided=batch == 8)
    k = (10, 64, 256)[LOGIT_KINDS.index(kind) % 3]
    step = unite_step([on_gpu(x) for x in logits], alignment.to("cuda"), k=k)
    rows = slice(0, 8)  # the reference sorts whole rows
    want = expected([x[rows] for x in logits], alignment, k=k)
    assert_same_step(type(step)(*(value[rows] for value in step)), want)


def test_members_may_differ_in_dtype_and_rows_may_fail():
    alignment = synthetic_alignment((300, 400, 200))
    logits = [make_logits(alignment, 4, dtype=dtype)[m] for m, dtype in enumerate(DTYPES)]
    logits[1][2] = -torch.inf
    step = unite_step([x.cuda() for x in logits], alignment.to("cuda"), k=5)
    assert_same_step(step, expected(logits, alignment, k=5))
    with pytest.raises(ValueError, match=r"logits\[1\] has no eligible logit above -inf in row 2"):
        step.check()


def test_offsets_beyond_32_bits():
    alignment = synthetic_alignment((1000, 1200))
    stride = (1 << 30) + 7
    if torch.cuda.mem_get_info()[0] < 3 * stride * 2 * 2:
        pytest.skip("needs 13 GB of free device memory")
    logits = make_logits(alignment, 3, dtype=torch.bfloat16)
    wide = []
    for x in logits:
        buffer = torch.empty(2 * stride + x.shape[1], dtype=x.dtype, device="cuda")
        wide.append(buffer.as_strided(x.shape, (stride, 1)).copy_(x))
    assert_same_step(unite_step(wide, alignment.to("cuda")), expected(logits, alignment))


def test_more_rows_than_one_launch_takes():
    alignment = synthetic_alignment((17,))
    logits = make_logits(alignment, 16384 + 3)
    assert_same_step(
        unite_step([x.cuda() for x in logits], alignment.to("cuda"), k=2), expected(logits, alignment, k=2)
    )


def test_one_kernel_and_no_synchronisation():
    alignment = real_widths()
    logits = [x.cuda() for x in make_logits(alignment, 4, dtype=torch.bfloat16)]
    on_device = alignment.to("cuda")
    unite_step(logits, on_device)  # allocates the stream's workspace
    torch.cuda.synchronize()
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            unite_step(logits, on_device)
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    on_device_events = [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    assert len(on_device_events) == 1, [e.name for e in on_device_events]


def test_every_run_gives_the_same_bits():
    """While other kernels keep the GPU busy on another stream."""
    alignment = real_widths()
    logits = [x.cuda() for x in make_logits(alignment, 3, kind="ties", dtype=torch.bfloat16)]
    on_device = alignment.to("cuda")
    noise, side = torch.randn(2048, 2048, device="cuda"), torch.cuda.Stream()
    for score in ("logits", "probs"):
        first = unite_step(logits, on_device, k=20, score=score)
        for i in range(200):
            with torch.cuda.stream(side):
                noise[: 64 * (i % 30 + 1)] @ noise
            assert_bitwise_equal(unite_step(logits, on_device, k=20, score=score), first)


def test_streams_do_not_disturb_each_other():
    alignment = synthetic_alignment((2500, 3100))
    on_device = alignment.to("cuda")
    inputs = [[x.cuda() for x in make_logits(alignment, 2 + i, seed=i)] for i in range(4)]
    want = [unite_step(x, on_device) for x in inputs]
    streams = [torch.cuda.Stream() for _ in inputs]
    torch.cuda.synchronize()
    results = [[] for _ in inputs]
    for _ in range(200):
        for i, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                results[i].append(unite_step(inputs[i], on_device))
    torch.cuda.synchronize()
    for i, steps in enumerate(results):
        for step in steps:
            assert_bitwise_equal(step, want[i])


def test_two_graphs_replay_at_once_while_the_eager_cache_grows():
    alignment = synthetic_alignment((2500, 3100, 900))
    on_device = alignment.to("cuda")
    graphs = []
    for i in range(2):  # both captured on one stream
        logits = [x.cuda() for x in make_logits(alignment, 2 + i, seed=i)]
        workspace = torch.zeros(1 << 20, dtype=torch.uint8, device="cuda")
        want = unite_step(logits, on_device, k=20, workspace=workspace)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step = unite_step(logits, on_device, k=20, workspace=workspace)
        graphs.append((graph, step, want, logits, workspace))
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    torch.cuda.synchronize()
    for turn in range(300):
        for stream, (graph, *_) in zip(streams, graphs):
            with torch.cuda.stream(stream):
                graph.replay()
        if turn % 50 == 0:  # larger and larger workspaces on the default stream
            big = [x.cuda() for x in make_logits(alignment, 8 * (turn // 50 + 1))]
            unite_step(big, on_device, k=256)
        torch.cuda.synchronize()
        for _, step, want, *_ in graphs:
            assert_bitwise_equal(step, want)
            for value in step:
                value.view(torch.uint8).fill_(0x5A)


def test_eos_is_told_inside_a_graph():
    alignment = synthetic_alignment((2500, 3100))
    on_device = alignment.to("cuda")
    logits = [x.cuda() for x in make_logits(alignment, 8)]
    logits[0][::2, alignment.eos_ids[0]] = 90.0
    workspace = step_workspace(logits, on_device)
    unite_step(logits, on_device, primary=1, workspace=workspace)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        is_eos = unite_step(logits, on_device, primary=1, workspace=workspace).is_eos(on_device)
    graph.replay()
    assert is_eos[::2].all()
    assert torch.equal(is_eos, reference.unite_step(logits, on_device, primary=1).is_eos(on_device))


def test_a_replay_reads_new_logits():
    alignment = synthetic_alignment((2500, 3100))
    on_device = alignment.to("cuda")
    logits = [x.cuda() for x in make_logits(alignment, 2)]
    workspace = torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step = unite_step(logits, on_device, workspace=workspace)
    for seed in range(5):
        fresh = make_logits(alignment, 2, seed=seed)
        for target, x in zip(logits, fresh):
            target.copy_(x)
        graph.replay()
        assert_same_step(step, expected(fresh, alignment))


def test_graphs_captured_without_a_workspace_have_their_own():
    alignment = synthetic_alignment((2500, 3100))
    on_device = alignment.to("cuda")
    logits = [x.cuda() for x in make_logits(alignment, 2)]
    want = unite_step(logits, on_device)
    graphs, steps = [torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()], []
    for graph in graphs:
        with torch.cuda.graph(graph):
            steps.append(unite_step(logits, on_device))
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    torch.cuda.synchronize()
    for _ in range(100):
        for stream, graph in zip(streams, graphs):
            with torch.cuda.stream(stream):
                graph.replay()
        unite_step(logits, on_device)
        torch.cuda.synchronize()
        for step in steps:
            assert_bitwise_equal(step, want)


def test_the_workspace_made_for_a_step_is_large_enough():
    alignment = synthetic_alignment((300, 280, 310, 290))
    on_device = alignment.to("cuda")
    logits = [x.cuda() for x in make_logits(alignment, 3)]
    for k, score in [(1, "logits"), (256, "logits"), (256, "probs")]:
        workspace = step_workspace(logits, on_device, k=k, score=score)
        for include in (None, torch.full((3,), -1, device="cuda")):
            options = {"k": k, "score": score, "include": include}
            step = unite_step(logits, on_device, workspace=workspace, **options)
            assert_bitwise_equal(step, unite_step(logits, on_device, **options))


def test_a_refused_call_leaves_nothing_behind():
    alignment = synthetic_alignment((300, 400))
    on_device = alignment.to("cuda")
    logits = make_logits(alignment, 2)
    on_gpu_logits = [x.cuda() for x in logits]
    for bad in ({"k": 257}, {"workspace": torch.zeros(8, dtype=torch.uint8, device="cuda")}):
        with pytest.raises((ValueError, RuntimeError)):
            unite_step(on_gpu_logits, on_device, **bad)
        torch.cuda.synchronize()
        assert_same_step(unite_step(on_gpu_logits, on_device), expected(logits, alignment))


def test_compiles_into_one_graph():
    alignment = synthetic_alignment((300, 400))
    on_device = alignment.to("cuda")
    logits = [x.cuda() for x in make_logits(alignment, 2)]

    def step(logits):
        result = unite_step(logits, on_device, k=5)
        return result.next_ids + 1, result.union_probs

    next_ids, probs = torch.compile(step, fullgraph=True)(logits)
    want = unite_step(logits, on_device, k=5)
    assert torch.equal(next_ids, want.next_ids + 1)
    assert torch.equal(probs, want.union_probs)


def test_opcheck():
    alignment = synthetic_alignment((300, 400)).to("cuda")
    logits = [x.cuda() for x in make_logits(synthetic_alignment((300, 400)), 2)]
    tensors = (alignment.table, alignment.class_ids, alignment.eligible)
    sizes = (list(alignment.eligible_offsets), list(alignment.vocab_sizes))
    torch.library.opcheck(
        torch.ops.unite_ext.fused_step.default, (logits, *tensors, *sizes, 5, 0, [0.5, 0.5], "logits", "repeat", "mean")
    )


def test_cpu_tensors_keep_working():
    alignment = synthetic_alignment((300, 400))
    logits = make_logits(alignment, 2)
    on_device = unite_step([x.cuda() for x in logits], alignment.to("cuda"))
    assert_same_step(on_device, unite_step(logits, alignment))
