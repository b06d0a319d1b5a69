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
import functools
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from dictionary_step import DictionaryStep
from measure import RESULTS, append_csv, interleaved, machine, percentiles

from unite_ext import VocabAlignment, reference, unite_step

WIDTHS = (128_256, 152_064)
BATCHES = (1, 8, 64)
RIVALS = ("amax", "unite_step", "topk", "reference", "dictionary")
CLEAN_TOKENS = 40
SLOW = {"reference": 8, "dictionary": 64}  # the largest batch worth waiting for


@functools.cache
def load() -> tuple[list, VocabAlignment]:
    """Tokenizers and alignment."""
    from transformers import AutoTokenizer

    folder = os.environ.get("UNITE_TEST_TOKENIZERS")
    if not folder:
        raise SystemExit("UNITE_TEST_TOKENIZERS must name a folder with the tokenizers llama-3 and qwen2")
    tokenizers = [AutoTokenizer.from_pretrained(Path(folder) / name) for name in ("llama-3", "qwen2")]
    return tokenizers, VocabAlignment.from_tokenizers(tokenizers)


def clean_logits(alignment: VocabAlignment, tokenizers: list, batch: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Gaussian logits whose best are CLEAN_TOKENS tokens per row that both vocabularies spell alike.

    On such rows a dictionary of surface strings is right, so that it can be compared.
    """
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(batch, width, generator=generator) for width in WIDTHS]
    first, second = (tokenizer.get_vocab() for tokenizer in tokenizers)
    ids = torch.tensor(
        [
            (i, second[token])
            for token, i in first.items()
            if token in second
            and "Ċ" not in token
            and alignment.class_of(0, i) == alignment.class_of(1, second[token]) > 0
        ]
    )
    for row in range(batch):
        chosen = ids[torch.randint(len(ids), (CLEAN_TOKENS,), generator=generator)]
        for m in range(2):
            logits[m][row, chosen[:, m]] += 10 + 2 * torch.randn(CLEAN_TOKENS, generator=generator)
    return [x.to(dtype) for x in logits]


def rivals(batch: int, dtype: torch.dtype = torch.float32, k: int = 10) -> dict[str, Callable[[], object]]:
    """What is timed, by name; the results have been compared."""
    tokenizers, alignment = load()
    logits = clean_logits(alignment, tokenizers, batch, dtype)
    dictionary = DictionaryStep(tokenizers)
    expected = reference.unite_step(logits, alignment, k=k).next_ids
    if not torch.equal(unite_step(logits, alignment, k=k).next_ids, expected):
        raise AssertionError("unite_step and the reference disagree")
    clean = k <= CLEAN_TOKENS // 2
    if clean and dictionary(logits, k) != expected.tolist():
        raise AssertionError("the dictionary implementation and the reference disagree on clean rows")
    calls = {
        "amax": lambda: [x.amax(dim=1) for x in logits],
        "unite_step": lambda: unite_step(logits, alignment, k=k),
        "topk": lambda: [x.topk(k) for x in logits],
        "reference": lambda: reference.unite_step(logits, alignment, k=k),
    }
    if clean:
        calls["dictionary"] = lambda: dictionary(logits, k)
    return {name: call for name, call in calls.items() if batch <= SLOW.get(name, batch)}


@pytest.mark.parametrize("rival", RIVALS)
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
