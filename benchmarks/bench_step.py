"""The step against its floor and its rivals, on the same logits.

    pytest benchmarks/bench_step.py                      side by side, by pytest-benchmark (CPU)
    python benchmarks/bench_step.py                      interleaved, appended to results/step_cpu.csv
    python benchmarks/bench_step.py --device cuda        the same on a GPU, appended to results/step_cuda.csv

Needs UNITE_TEST_TOKENIZERS, a folder with the tokenizers llama-3 and qwen2; on a GPU made-up vocabularies of the same
sizes do without (bench_step_cuda.py). Members are Llama-3 (128,256 logits) and Qwen2 (152,064, a padded head). Every
rival is checked against the reference before it is timed.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lib.measure import RESULTS, append_csv, interleaved, machine, percentiles
from lib.step_calls import CALLS, CLEAN_TOKENS, checked_calls, clean_logits
from lib.vocabularies import load_family

BATCHES = (1, 8, 64)
SLOW = {"reference": 8, "dictionary": 64}  # the largest batch worth waiting for


def rivals(batch: int, dtype: torch.dtype = torch.float32, k: int = 10) -> dict[str, Callable[[], object]]:
    """What is timed, by name; the results have been compared."""
    if not os.environ.get("UNITE_TEST_TOKENIZERS"):
        raise SystemExit("UNITE_TEST_TOKENIZERS must name a folder with the tokenizers llama-3 and qwen2")
    family = load_family(2)
    names = {name for name in CALLS if batch <= SLOW.get(name, batch)}
    if k > CLEAN_TOKENS // 2:
        names.discard("dictionary")
    return checked_calls(family, clean_logits(family, batch, dtype), k, names)


@pytest.mark.parametrize("rival", CALLS)
@pytest.mark.parametrize("batch", BATCHES)
def test_step(benchmark, batch, rival):
    calls = rivals(batch)
    if rival not in calls:
        pytest.skip(f"{rival} takes seconds at this batch")
    benchmark.group = f"B={batch}, float32, k=10, Llama-3 + Qwen2"
    benchmark(calls[rival])


def measure_cpu(seconds: float) -> list[dict]:
    """One CSV row per batch, dtype, k and rival."""
    facts, rows = machine(), []
    for dtype, k, batches in (
        (torch.float32, 10, BATCHES),
        (torch.bfloat16, 10, BATCHES),
        (torch.float16, 10, BATCHES),
        (torch.float32, 64, BATCHES),
        (torch.float32, 256, BATCHES),
    ):
        for batch in batches:
            samples = interleaved(rivals(batch, dtype, k), seconds=seconds)
            floor = percentiles(samples["amax"])["p50_us"]
            for name, values in samples.items():
                times = percentiles(values)
                rows.append(
                    facts
                    | {"members": 2, "batch": batch, "k": k, "dtype": str(dtype).removeprefix("torch."), "call": name}
                    | times
                    | {"over_amax": round(times["p50_us"] / floor, 3)}
                )
                case = f"B={batch:<3} k={k:<3} {dtype!s:15} {name:11}"
                print(f"{case} {times['p50_us']:>11.1f} µs {rows[-1]['over_amax']:>9.2f}")
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seconds", type=float, default=1.0, help="time per call and case, CPU (default: 1)")
    parser.add_argument("--quick", action="store_true", help="CUDA: only the most telling cases")
    parser.add_argument("--budget", type=float, help="CUDA: no case is started after this many seconds")
    parser.add_argument("--out", type=Path, help="CSV file to append to")
    arguments = parser.parse_args()
    out = arguments.out or RESULTS / f"step_{arguments.device}.csv"
    if arguments.device == "cuda":
        from bench_step_cuda import measure_cuda

        measure_cuda(quick=arguments.quick, budget=arguments.budget, save=lambda rows: append_csv(out, rows))
    else:
        append_csv(out, measure_cpu(arguments.seconds))


if __name__ == "__main__":
    main()
