"""Time passes over a few ids beside a long cache, as members take them and as transformers does.

    python benchmarks/bench_passes.py            appended to results/passes_cpu.csv
    python benchmarks/bench_passes.py --quick    one case

Models with random weights in the shapes of SmolLM2-135M and Qwen2.5-0.5B, float32. Passes feed every row 1, 2 or 5
ids, or the rows in turn 1 to 4, with a mask that has a hole, as ragged batches and drafts do. transformers' attention
("sdpa") with its cache, which concatenates, and torch's linear layers run in turn with what members use in their place,
a few passes at a time; their logits are compared.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path
from statistics import median

import torch
from lib.measure import RESULTS, append_csv, machine
from torch import nn
from transformers import AutoModelForCausalLM, Cache, DynamicCache, LlamaConfig, PreTrainedModel, Qwen2Config

from unite_ext.members.attention import GROUPED, SDPA, use_grouped_attention
from unite_ext.members.few_rows import FewRowsLinear, leaving_out, use_few_rows_linear
from unite_ext.members.forward import cache_argument
from unite_ext.members.kv_cache import new_cache

SHAPES = {
    "SmolLM2-135M": LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True,
    ),
    "Qwen2.5-0.5B": Qwen2Config(
        vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
        num_key_value_heads=2, tie_word_embeddings=True,
    ),
}  # fmt: skip
RAGGED = "1 to 4"
CASES = [
    (rows, context, ids)
    for rows, context in ((1, 1000), (16, 200), (16, 1000))
    for ids in (1, 2, 5, RAGGED)
    if rows > 1 or ids != RAGGED
]
PASSES = 4


def run(model: PreTrainedModel, cache: Cache, rows: int, context: int, new: list[int]) -> tuple[float, torch.Tensor]:
    """Seconds of a pass of `rows` rows that have read the same, the mean of several in a row, and the last's logits.

    The rows have `new` ids to feed in turn, at the right end.
    """
    cache = copy.deepcopy(cache)
    if rows > 1:
        cache.batch_repeat_interleave(rows)
    seconds, ids = 0.0, max(new)
    fed = torch.arange(ids) >= ids - torch.tensor(new * (rows // len(new)))[:, None]
    for n in range(PASSES + 1):
        before = context + n * ids
        mask = torch.cat([torch.ones(rows, context, dtype=torch.bool), *[fed] * (n + 1)], dim=1)
        mask[:, context // 2] = False
        arguments = {
            "input_ids": torch.arange(rows * ids).view(rows, ids) + n,
            "position_ids": torch.arange(before, before + ids).expand(rows, ids),
            cache_argument(model): cache,
        }
        start = time.perf_counter()
        with leaving_out(fed.numpy()):
            logits = model(attention_mask=mask, logits_to_keep=1, **arguments).logits
        if n:  # the first makes room
            seconds += time.perf_counter() - start
    return seconds / PASSES, logits


def set_ways(model: PreTrainedModel, name: str) -> None:
    """Members' attention and linear layers, or transformers' and torch's."""
    model.set_attn_implementation(name)
    if name == GROUPED:
        use_few_rows_linear(model)
    for part in model.modules() if name == SDPA else ():
        if type(part) is FewRowsLinear:
            part.__class__ = nn.Linear


@torch.no_grad()
def measure(model: PreTrainedModel, rows: int, context: int, ids: int | str, rounds: int) -> dict[str, float]:
    """Milliseconds of both, medians of rounds that alternate."""
    new = [1, 2, 3, 4] if isinstance(ids, str) else [ids]
    caches = {SDPA: DynamicCache(), GROUPED: new_cache()}
    for cache in caches.values():
        model(input_ids=torch.arange(context)[None], logits_to_keep=1, **{cache_argument(model): cache})
    found: dict[str, list[float]] = {SDPA: [], GROUPED: []}
    logits = {}
    for turn in range(rounds + 1):
        for name, cache in caches.items():
            set_ways(model, name)
            seconds, logits[name] = run(model, cache, rows, context, new)
            if turn:  # the first warms up
                found[name].append(seconds)
    torch.testing.assert_close(logits[SDPA], logits[GROUPED], rtol=0, atol=1e-3)
    theirs, ours = (median(found[name]) for name in (SDPA, GROUPED))
    return {
        "transformers_ms": round(1000 * theirs, 2), "ours_ms": round(1000 * ours, 2), "ratio": round(theirs / ours, 2)
    }  # fmt: skip


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one model and one case, one round")
    parser.add_argument("--out", type=Path, help="CSV file to append to")
    arguments = parser.parse_args()
    facts, out = machine(), arguments.out or RESULTS / "passes_cpu.csv"
    for name, config in list(SHAPES.items())[: 1 if arguments.quick else None]:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        use_grouped_attention(model)
        for rows, context, ids in CASES[:1] if arguments.quick else CASES:
            case = {"model": name, "rows": rows, "context": context, "ids": ids}
            row = case | measure(model, rows, context, ids, 1 if arguments.quick else 3)
            print(*(f"{key} {value}" for key, value in row.items()), flush=True)
            append_csv(out, [facts | row])


if __name__ == "__main__":
    main()
