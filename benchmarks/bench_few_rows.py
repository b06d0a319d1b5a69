"""Time a linear layer for a handful of rows, as members on CPUs run it and as torch does, beside reading its weight.

    python benchmarks/bench_few_rows.py            appended to results/few_rows_cpu.csv
    python benchmarks/bench_few_rows.py --quick    one shape, few rows, short samples

Shapes are those of SmolLM2-135M and Qwen2.5-0.5B, and the head of Pythia-14M, which is narrow. A call runs as many
layers as do not fit a cache. The floor is the largest number of every weight, which needs the same bytes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median

import torch
from lib.measure import RESULTS, append_csv, interleaved, machine
from torch import nn

from unite_ext.members.few_rows import use_few_rows_linear

SHAPES = {
    "576 to 1536": (576, 1536),
    "128 to 50304": (128, 50304),
    "896 to 4864": (896, 4864),
    "4864 to 896": (4864, 896),
    "896 to 151936": (896, 151936),
}
ROWS = (1, 2, 3, 4, 6, 8, 16, 32, 64)
DTYPES = (torch.float32, torch.bfloat16)
CALL_BYTES = 100e6


@torch.no_grad()
def measure(width: int, outs: int, rows: int, dtype: torch.dtype, seconds: float) -> dict[str, float]:
    """Milliseconds of a layer, medians of calls that alternate."""
    count = max(1, round(CALL_BYTES / (width * outs * dtype.itemsize)))
    torch.manual_seed(0)
    theirs = nn.ModuleList(nn.Linear(width, outs, bias=False, dtype=dtype) for _ in range(count))
    ours = nn.ModuleList(nn.Linear(width, outs, bias=False, dtype=dtype) for _ in range(count))
    for own, their in zip(ours, theirs):
        own.weight = their.weight
    use_few_rows_linear(ours)
    given = torch.randn(rows, width, dtype=dtype)
    torch.testing.assert_close(ours[0](given), theirs[0](given), rtol=0, atol=1e-4 if dtype == torch.float32 else 2e-2)
    samples = interleaved(
        {
            "torch": lambda: [layer(given) for layer in theirs],
            "ours": lambda: [layer(given) for layer in ours],
            "floor": lambda: [layer.weight.amax() for layer in theirs],
        },
        seconds=seconds,
    )
    per_layer = {name: 1000 * median(times) / count for name, times in samples.items()}
    return {f"{name}_ms": round(ms, 4) for name, ms in per_layer.items()} | {
        "ratio": round(per_layer["torch"] / per_layer["ours"], 2)
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one shape, few rows, short samples")
    parser.add_argument("--out", type=Path, help="CSV file to append to")
    arguments = parser.parse_args()
    facts, out = machine(), arguments.out or RESULTS / "few_rows_cpu.csv"
    for dtype in DTYPES[: 1 if arguments.quick else None]:
        for name, (width, outs) in list(SHAPES.items())[: 1 if arguments.quick else None]:
            for rows in ROWS[: 2 if arguments.quick else None]:
                case = {"layer": name, "dtype": str(dtype).removeprefix("torch."), "rows": rows}
                row = case | measure(width, outs, rows, dtype, 0.05 if arguments.quick else 0.5)
                print(*(f"{key} {value}" for key, value in row.items()), flush=True)
                append_csv(out, [facts | row])


if __name__ == "__main__":
    main()
