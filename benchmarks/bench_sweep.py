"""How the step's time on the CPU grows with batch, vocabulary, members and k, one of them at a time.

    python benchmarks/bench_sweep.py             a few minutes, appended to results/sweep_cpu.csv
    python benchmarks/bench_sweep.py --quick     few values, short samples

The base point is two members with as many logits as Llama-3 and Qwen2 (128,256 and 152,064), float32, k = 10; all but
the batch axis are measured at B = 1 and B = 8. More members alternate the two sizes, each with a vocabulary of its own;
along the vocabulary axis both members have the same number of logits. The column `vocabulary` is the mean number of
logits per member. Vocabularies are made up, no tokenizer is needed. Calls and checks are those of bench_step.py; where
the reference would take seconds it is left out.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from lib.measure import RESULTS, append_csv, interleaved, machine, percentiles
from lib.step_calls import CALLS, CLEAN_TOKENS, checked_calls, clean_logits
from lib.vocabularies import Family, made_up_family

WIDTHS = (128_256, 152_064)
PADDING = 128  # logits of a member that stand for no token
BATCHES = (1, 2, 4, 8, 16, 32, 64)
BASE_BATCHES = (1, 8)
VOCABULARIES = (8_192, 16_384, 32_768, 65_536, 131_072, 262_144)
MEMBERS = (1, 2, 3, 4, 5, 6, 7, 8)
KS = (1, 10, 20, 64, 128, 256)
REFERENCE_MAX_LOGITS = 9_000_000  # B = 32 at the base point, or eight members at B = 8
QUICK_SECONDS = 0.03


@dataclass(frozen=True)
class Case:
    """One shape of input, on the axis that it is measured for."""

    axis: str
    batch: int
    widths: tuple[int, ...]
    k: int = 10

    def __str__(self) -> str:
        return f"{self.axis:10} B={self.batch:<2} V={self.vocabulary:<6} M={len(self.widths)} k={self.k:<3}"

    @property
    def vocabulary(self) -> int:
        """Mean number of logits per member."""
        return sum(self.widths) // len(self.widths)


def all_cases(quick: bool = False) -> list[Case]:
    """Cases with the same vocabularies follow each other: these take longer to make than to measure."""
    every = 3 if quick else 1
    cases = [Case("batch", batch, WIDTHS) for batch in BATCHES[::every]]
    cases += [Case("k", batch, WIDTHS, k) for k in KS[::every] for batch in BASE_BATCHES]
    for members in MEMBERS[::every]:
        widths = (WIDTHS * members)[:members]
        cases += [Case("members", batch, widths) for batch in BASE_BATCHES]
    cases += [Case("vocabulary", batch, (v, v)) for v in VOCABULARIES[::every] for batch in BASE_BATCHES]
    return cases


@functools.lru_cache(maxsize=1)
def load_family(widths: tuple[int, ...]) -> Family:
    """Made-up vocabularies for members with so many logits; only the last ones are kept, they are large."""
    return made_up_family(widths, PADDING)


def measure_case(case: Case, facts: dict, seconds: float) -> list[dict]:
    """One row per call."""
    family = load_family(case.widths)
    names = set(CALLS)
    if case.batch * sum(case.widths) > REFERENCE_MAX_LOGITS:
        names.remove("reference")
    # The dictionary is right where the top-k are clean tokens.
    logits = clean_logits(family, case.batch, torch.float32, tokens=max(CLEAN_TOKENS, 2 * case.k))
    samples = interleaved(checked_calls(family, logits, case.k, names), seconds=seconds)
    shape = {"axis": case.axis, "batch": case.batch, "vocabulary": case.vocabulary, "members": len(case.widths)}
    return [
        facts | shape | {"k": case.k, "dtype": "float32", "call": name} | percentiles(values)
        for name, values in samples.items()
    ]


def measure(
    *, quick: bool = False, seconds: float = 0.5, save: Callable[[list[dict]], None] = lambda rows: None
) -> list[dict]:
    """One row per case and call; `save` gets those of each case as soon as they are measured."""
    facts, rows, start = machine(), [], time.perf_counter()
    for case in all_cases(quick):
        measured = measure_case(case, facts, seconds)
        save(measured)
        rows += measured
        print(case, "  ".join(f"{row['call']} {row['p50_us']:.1f}" for row in measured), "µs", flush=True)
    print(f"{len(rows)} rows in {time.perf_counter() - start:.0f} s")
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, help=f"time per call and case (default: 0.5, quick {QUICK_SECONDS})")
    parser.add_argument("--quick", action="store_true", help="every third value of each axis, short samples")
    parser.add_argument("--out", type=Path, default=RESULTS / "sweep_cpu.csv", help="CSV file to append to")
    arguments = parser.parse_args()
    seconds = arguments.seconds or (QUICK_SECONDS if arguments.quick else 0.5)
    measure(quick=arguments.quick, seconds=seconds, save=lambda rows: append_csv(arguments.out, rows))


if __name__ == "__main__":
    main()
