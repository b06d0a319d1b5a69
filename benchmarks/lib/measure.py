"""Interleaved timing on the CPU, facts about the machine, and append-only CSV files."""

from __future__ import annotations

import csv
import datetime
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch

RESULTS = Path(__file__).resolve().parents[1] / "results"


def interleaved(
    calls: dict[str, Callable[[], object]], *, seconds: float, min_rounds: int = 7
) -> dict[str, list[float]]:
    """Seconds per call of each, taken in turn so that a drifting machine hits all alike.

    Each call gets about `seconds` in all, in rounds; a fast one is repeated within a round, and the repetition's mean
    counts as one sample.
    """
    repeats = {}
    for name, call in calls.items():
        call()
        start = time.perf_counter()
        call()
        once = time.perf_counter() - start
        repeats[name] = max(1, int(0.002 / max(once, 1e-7)))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    start = time.perf_counter()
    while time.perf_counter() - start < seconds * len(calls) or min(map(len, samples.values())) < min_rounds:
        for name, call in calls.items():
            begin = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            samples[name].append((time.perf_counter() - begin) / repeats[name])
    return samples


def percentiles(samples: list[float]) -> dict[str, float]:
    """p10, p50 and p90 in microseconds."""
    values = torch.tensor(samples, dtype=torch.float64).quantile(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64))
    return {name: round(value * 1e6, 3) for name, value in zip(("p10_us", "p50_us", "p90_us"), values.tolist())}


def machine(device: str = "cpu") -> dict[str, str]:
    """What a figure depends on besides the code."""
    here = Path(__file__).resolve().parents[2]
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=here
    ).stdout.strip()
    # Results pile up while they are measured; what counts is the code.
    if subprocess.run(
        ["git", "diff", "--quiet", "HEAD", "--", "csrc", "unite_ext"], cwd=here, capture_output=True
    ).returncode:
        commit += "-dirty"
    if device == "cpu":
        try:
            lines = Path("/proc/cpuinfo").read_text().splitlines()
            name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
        except (OSError, StopIteration):
            name = platform.processor() or platform.machine()
        threads = torch.get_num_threads()
        name += f", {threads} thread" + "s" * (threads > 1)
        driver = cuda = ""
    else:
        name = torch.cuda.get_device_name()
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True).stdout.strip().split("\n")[0]
        cuda = torch.version.cuda or ""
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit,
        "machine": name,
        "driver": driver,
        "cuda": cuda,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def append_csv(path: Path, rows: list[dict]) -> None:
    """Add rows to a CSV file; its header is written once and must not change."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exists = path.exists()
    if exists:
        with path.open() as file:
            header = next(csv.reader(file))
        if header != list(rows[0]):
            raise ValueError(f"{path} has the columns {header}, the new rows have {list(rows[0])}")
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        if not exists:
            writer.writeheader()
        writer.writerows(rows)
