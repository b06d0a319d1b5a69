"""What measuring on a GPU needs of it: clocks that are up, captured graphs, device time, launchers built by nvcc."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
GRAPH, EAGER = "graph", "eager"


class CudaBackend:
    """What the measuring needs of a device."""

    device = "cuda"

    def __init__(self) -> None:
        self.l2_bytes = torch.cuda.get_device_properties(0).L2_cache_size

    def warm_up(self) -> None:
        """A second of work: an idle GPU runs at a fraction of its clock."""
        x = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
        end = time.perf_counter() + 1
        while time.perf_counter() < end:
            for _ in range(20):
                x @ x
            torch.cuda.synchronize()

    def capture(self, calls: Iterable[Callable[[], Any]]) -> tuple[Callable[[], None], Any]:
        """A replay of all calls, one after another, and the last one's result."""
        torch.cuda.synchronize()
        graph, result, stream = torch.cuda.CUDAGraph(), None, torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph):
                for call in calls:
                    result = call()
        finally:
            torch.cuda.set_stream(stream)  # a capture that fails leaves its own
        return graph.replay, result

    def seconds(self, action: Callable[[], None], mode: str) -> float:
        """How long the device is at it; for eager calls, how long Python keeps it waiting counts as well."""
        torch.cuda.synchronize()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        if mode == GRAPH:
            torch.cuda._sleep(1_000_000)  # half a millisecond, in which the replay is enqueued
        begin.record()
        action()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    def build_launchers(self) -> dict[str, Any]:
        """The launcher over the hash map and over a plain array; without nvcc none."""
        from gpu.conftest import Driver
        from test_nvcc import find_nvcc

        nvcc = find_nvcc()
        if nvcc is None:
            return {}
        arch = "sm_{}{}".format(*torch.cuda.get_device_capability())
        flags = ["-std=c++17", "-O3", f"-arch={arch}", "-Xcompiler", "-fPIC", "-shared"]
        sources = {"hash_map": "tests/gpu/driver.cu", "plain_array": "benchmarks/lib/plain_array.cu"}
        folder = Path(tempfile.mkdtemp())
        builds = [
            subprocess.Popen([nvcc, *flags, ROOT / source, "-o", folder / f"{name}.so"])
            for name, source in sources.items()
        ]
        if any([build.wait() != 0 for build in builds]):  # a list: waits for both
            raise RuntimeError("nvcc does not compile the launchers")
        return {name: Driver(folder / f"{name}.so") for name in sources}
