"""The launcher itself: every launch shape, 50,000 launches with arrivals stirred up, errors."""

from __future__ import annotations

import pytest
import torch
from cuda_on_cpu.emulator import COUNTER_BYTES, launch_config, step_params

from unite_ext import reference
from unite_ext.testing import LOGIT_KINDS, assert_same_step, make_logits, synthetic_alignment

LAUNCHES = 50_000


@pytest.fixture
def workspace():
    return torch.zeros(1 << 20, dtype=torch.uint8, device="cuda")


@pytest.mark.parametrize("threads", [32, 128, 256, 512])
@pytest.mark.parametrize("slices", [1, 3, (7, 32)], ids=str)
@pytest.mark.parametrize("k", [1, 16, 17, 50])
def test_every_launch_shape_gives_the_same_step(driver, workspace, threads, slices, k):
    alignment = synthetic_alignment((9000, 7001))
    on_device = alignment.to("cuda")
    for seed, kind in enumerate(LOGIT_KINDS):
        logits = make_logits(alignment, 2, kind=kind, dtype=torch.bfloat16, seed=seed)
        device_logits = [x.cuda() for x in logits]
        params, result = step_params(device_logits, on_device, k=k)
        assert driver.launch(params, workspace, launch_config(params, threads, slices)) == 0
        assert_same_step(result, reference.unite_step(logits, alignment, k=k))
        assert not workspace[:COUNTER_BYTES].any()


def test_fifty_thousand_launches(driver, workspace):
    """Two shapes in turn on one workspace; the device itself counts what differs from the first launch."""
    cases = []
    for seed, sizes in enumerate([(2500, 3100), (900, 700, 1100)]):
        alignment = synthetic_alignment(sizes)
        on_device = alignment.to("cuda")
        logits = make_logits(alignment, 2, seed=seed)
        device_logits = [x.cuda() for x in logits]
        params, result = step_params(device_logits, on_device)
        config = launch_config(params, 128, 5)
        assert driver.launch(params, workspace, config) == 0
        assert_same_step(result, reference.unite_step(logits, alignment))
        cases.append((params, config, result, result.union_ids.clone(), result.union_probs.clone(), device_logits))
    differing = torch.zeros((), dtype=torch.int64, device="cuda")
    for i in range(LAUNCHES):
        params, config, result, ids, probs, _ = cases[i % 2]
        result.union_ids.fill_(-7)
        assert driver.launch(params, workspace, config) == 0
        differing += (result.union_ids != ids).sum() + (result.union_probs != probs).sum()
    assert differing.item() == 0
    assert not workspace[:COUNTER_BYTES].any()


def test_refused_launches_return_an_error_and_leave_none_behind(driver, workspace):
    alignment = synthetic_alignment((9000, 9000))
    on_device = alignment.to("cuda")
    logits = make_logits(alignment, 1)
    device_logits = [x.cuda() for x in logits]
    params, result = step_params(device_logits, on_device, k=256)
    good = driver.chosen(params)
    for config, memory in [
        (launch_config(params, 48, 1), workspace),
        (launch_config(params, 512, 32), workspace),
        (good, workspace[:100]),
    ]:
        assert driver.launch(params, memory, config) != 0
        assert driver.lib.gpu_last_error() == 0
    assert driver.launch(params, workspace, good) == 0
    assert_same_step(result, reference.unite_step(logits, alignment, k=256))
