"""Time a step in which one request leaves a batch and another joins, beside one in which nobody does.

    python benchmarks/bench_leaving.py            appended to results/leaving_cpu.csv
    python benchmarks/bench_leaving.py --quick    one case

Models with random weights in the shapes of SmolLM2-135M and Qwen2.5-0.5B, float32. All rows have read as many ids; the
newcomer's prompt, which is a little shorter, has been read in advance. "Copied" does what was done before: rows that
stay are gathered into new memory, and all are concatenated with the newcomer's. Both ways run in turn, and their logits
are compared.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch
from bench_passes import SHAPES
from lib.measure import RESULTS, append_csv, machine
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from unite_ext.members.attention import use_grouped_attention
from unite_ext.members.few_rows import use_few_rows_linear
from unite_ext.members.growing_cache import GrowingLayer
from unite_ext.members.kv_cache import RaggedCache, new_cache

CASES = ((4, 200), (16, 200), (16, 1000), (64, 200))
PASSES = 3


class CopyingLayer(GrowingLayer):
    """Rows are gathered and concatenated."""

    def keep_rows(self, rows: Sequence[int]) -> None:
        """See `GrowingLayer.keep_rows`."""
        index = torch.tensor(rows)
        self.keys, self.values = self.keys.index_select(0, index), self.values.index_select(0, index)

    def add_rows(self, count: int, keys: Tensor | None, values: Tensor | None) -> None:
        """See `GrowingLayer.add_rows`."""
        self.keys, self.values = (
            torch.cat([old, torch.cat([old.new_zeros((count, *room_like(old, new))), new], dim=2)])
            for old, new in ((self.keys, keys), (self.values, values))
        )


def room_like(old: Tensor, new: Tensor) -> tuple[int, int, int]:
    """The shape of what a row that is `new` lacks beside those that are `old`."""
    return old.shape[1], old.shape[2] - new.shape[2], old.shape[3]


def batch_of(prompt: RaggedCache, layer: type[GrowingLayer], rows: int) -> RaggedCache:
    """So many rows that have all read the same."""
    ids = prompt.ids[0]
    batch = RaggedCache(prompt.model, rows, reuse="holes")
    batch.kv = new_cache()
    batch.kv.layer_class_to_replicate = layer
    for n, own in enumerate(prompt.kv.layers):
        batch.kv.update(own.keys.repeat(rows, 1, 1, 1), own.values.repeat(rows, 1, 1, 1), n)
    batch.width = len(ids)
    batch.ids = [list(ids) for _ in range(rows)]
    batch.columns = [list(range(len(ids))) for _ in range(rows)]
    batch.mask = prompt.mask[:1, : len(ids)].repeat(rows, axis=0)
    return batch


@torch.no_grad()
def measure(model: PreTrainedModel, rows: int, context: int, rounds: int) -> dict[str, float]:
    """Milliseconds of a step without and with a change of rows, in both ways: medians of rounds that alternate."""
    prompt = RaggedCache(model, 1, reuse="holes")
    prompt.edit(0, 0, [n % 1000 for n in range(context)])
    prompt.next_logits()
    steady: list[float] = []
    changed: dict[type[GrowingLayer], list[float]] = {CopyingLayer: [], GrowingLayer: []}
    for turn in range(rounds + 1):
        logits = {}
        for layer, found in changed.items():
            batch = batch_of(prompt, layer, rows)
            for n in range(2 * PASSES):
                for row in range(rows):
                    batch.edit(row, 0, [n])
                newcomer = prompt.take(0, context - 9)
                newcomer.edit(0, 0, [1])
                start = time.perf_counter()
                if n >= PASSES:
                    gap = rows // 2
                    batch.select([*range(gap), rows - 1, *range(gap + 1, rows - 1)])
                    batch.absorb(newcomer)
                logits[layer] = batch.next_logits()
                seconds = time.perf_counter() - start
                if turn and n:  # the first pass makes room, the first turn warms up
                    (steady if n < PASSES else found).append(seconds)
        torch.testing.assert_close(logits[CopyingLayer], logits[GrowingLayer], rtol=0, atol=1e-3)
    step, copied, ours = (1000 * median(found) for found in (steady, changed[CopyingLayer], changed[GrowingLayer]))
    return {
        "step_ms": round(step, 2), "copied_ms": round(copied, 2), "ours_ms": round(ours, 2),
        "ratio": round(copied / ours, 2),
    }  # fmt: skip


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one model and one case, one round")
    parser.add_argument("--out", type=Path, help="CSV file to append to")
    arguments = parser.parse_args()
    facts, out = machine(), arguments.out or RESULTS / "leaving_cpu.csv"
    for name, config in list(SHAPES.items())[: 1 if arguments.quick else None]:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        use_grouped_attention(model)
        use_few_rows_linear(model)
        for rows, context in CASES[:1] if arguments.quick else CASES:
            row = {"model": name, "rows": rows, "context": context}
            row |= measure(model, rows, context, 1 if arguments.quick else 3)
            print(*(f"{key} {value}" for key, value in row.items()), flush=True)
            append_csv(out, [facts | row])


if __name__ == "__main__":
    main()
