"""How threads per CTA and slices per row change the fused step: one row per launch shape, appended to a CSV.

    python benchmarks/bench_launch.py [--out FILE]

Calls the launcher itself (tests/gpu/driver.cu), so that shapes other than choose_launch's can be timed. Every shape is
checked against the chosen one first. Times are CUDA-graph replays, cold: over input sets of five times the L2.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from cuda_on_cpu.emulator import launch_config, step_params  # noqa: E402
from gpu.conftest import Driver  # noqa: E402
from lib.measure import RESULTS, append_csv, machine, percentiles  # noqa: E402
from test_cuda_on_cpu import real_widths  # noqa: E402
from test_nvcc import find_nvcc  # noqa: E402

from unite_ext.testing import assert_same_step  # noqa: E402

WIDTHS = (128_256, 152_064)
BATCHES = (1, 8, 64, 128, 256)
TARGET_US = {1: 8, 64: 15, 256: 40}
SLICES = {1: (4, 8, 16, 24, 32), 8: (4, 8, 16, 32), 64: (1, 2, 3, 4), 128: (1, 2), 256: (1, 2)}
THREADS = (128, 256, 512)
REPLAYS = 30


def build_driver() -> Driver:
    library = Path(tempfile.mkdtemp()) / "driver.so"
    arch = "sm_{}{}".format(*torch.cuda.get_device_capability())
    flags = ["-std=c++17", "-O3", f"-arch={arch}", "-Xcompiler", "-fPIC", "-shared"]
    subprocess.run([find_nvcc(), *flags, ROOT / "tests" / "gpu" / "driver.cu", "-o", library], check=True)
    return Driver(library)


def time_shape(driver: Driver, sets: list, config, workspace: torch.Tensor) -> list[float]:
    """Seconds per launch of each replay of a graph that runs through all input sets."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for params, _ in sets:
            if driver.launch(params, workspace, config) != 0:
                raise RuntimeError("a launch was refused")
    graph.replay()
    samples = []
    for _ in range(REPLAYS):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        samples.append(begin.elapsed_time(end) / 1e3 / len(sets))
    return samples


def measure_batch(driver: Driver, alignment, batch: int, k: int, dtype: torch.dtype) -> list[dict]:
    set_bytes = batch * sum(WIDTHS) * torch.empty((), dtype=dtype).element_size()
    cold_bytes = 5 * torch.cuda.get_device_properties(0).L2_cache_size
    inputs, sets = [], []
    for _ in range(max(2, -(-cold_bytes // set_bytes))):
        inputs.append([torch.randn(batch, width, device="cuda").to(dtype) for width in WIDTHS])
        sets.append(step_params(inputs[-1], alignment, k=k))
    params, result = sets[0]
    workspace = torch.zeros(65 << 20, dtype=torch.uint8, device="cuda")
    chosen = driver.chosen(params)
    assert driver.launch(params, workspace, chosen) == 0
    want = type(result)(*(value.clone() for value in result))
    shapes = [("chosen", chosen)]
    shapes += [(f"{t}x{s}", launch_config(params, t, s)) for t in THREADS for s in SLICES[batch] if t >= 2 * k]
    rows = []
    for name, config in shapes:
        assert driver.launch(params, workspace, config) == 0
        assert_same_step(result, want)
        times = percentiles(time_shape(driver, sets, config, workspace))
        gb_per_s = round(set_bytes / times["p50_us"] / 1e3, 1)
        print(
            f"B={batch:<3} k={k} {config.threads:>4} threads, {list(config.slices)[:2]} slices {name:9}"
            f" {times['p50_us']:8.2f} µs {gb_per_s:7.1f} GB/s  target {TARGET_US.get(batch, '-')}",
            flush=True,
        )
        rows.append(
            machine("cuda")
            | {"batch": batch, "k": k, "dtype": str(dtype).removeprefix("torch."), "shape": name}
            | {"threads": config.threads, "slices": "/".join(map(str, list(config.slices)[:2]))}
            | times
            | {"gb_per_s": gb_per_s}
        )
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "launches.csv", help="CSV file to append to")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("needs a CUDA device and a CUDA build of torch")
    driver, alignment = build_driver(), real_widths().to("cuda")
    for batch in BATCHES:
        append_csv(arguments.out, measure_batch(driver, alignment, batch, 10, torch.bfloat16))


if __name__ == "__main__":
    main()
