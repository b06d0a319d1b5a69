"""When a ragged KV cache should be gathered together: rules compared on the edits of a real text.

    python benchmarks/bench_holes.py        appended to results/holes_cpu.csv

The member reads what Llama-3's tokenizer says of this project's documents with the tokenizer of Mistral-v0.3 (the
folder that UNITE_TEST_TOKENIZERS names), every row at another place. Its model is nearly all attention, so that columns
that nobody uses cost as much as they can. A rule is `share` (gather when holes are more than this share of the
columns), `cost` (gather when the holes that passes have read since the last time are more than so many times the
columns), each with the fewest holes that are worth it, or `own`, that of `members.kv_cache`. Of several rounds
in opposite order each rule's faster one counts.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import time
from pathlib import Path
from statistics import mean

import torch
from lib.measure import RESULTS, append_csv, machine, percentiles
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from unite_ext import VocabAlignment
from unite_ext.members import kv_cache
from unite_ext.members.kv_cache import RaggedCache
from unite_ext.vocab.text_sync import TextSync, append_all

ROOT = Path(__file__).resolve().parent.parent
IDS = 1000  # the model's vocabulary: what it says does not matter
PROMPT, STEPS = 256, 512
RULES = [
    ("own", kv_cache.MOVE_COST, kv_cache.MIN_HOLES),
    ("never", 0.0, 0),
    *(("share", s, 64) for s in (0.1, 0.25, 0.5)),
]
RULES += [("cost", c, 64) for c in (0.5, 1.0, 4.0)] + [("cost", kv_cache.MOVE_COST, 8)]
ROUNDS = 2

Edit = tuple[int, list[int]]


class RuledCache(RaggedCache):
    """A cache with a rule of its own for when to gather."""

    def __init__(self, model: torch.nn.Module, rows: int, rule: str, value: float, least: int) -> None:
        super().__init__(model, rows, reuse="holes")
        self.rule, self.value, self.least = rule, value, least
        self.read = self.moved = 0

    def has_to_move(self) -> bool:
        if self.rule == "own":
            return super().has_to_move()
        holes = self.width - max(map(len, self.columns), default=0)
        self.read += holes
        many = {
            "never": False,
            "share": holes > self.value * self.width,
            "cost": self.read > self.value * self.width,
        }[self.rule]
        return many and holes > self.least

    def compact(self) -> None:
        self.read = 0
        self.moved += 1
        super().compact()


def edits_of(rows: int) -> list[list[Edit]]:
    """Per step every row's edit."""
    folder = os.environ.get("UNITE_TEST_TOKENIZERS")
    if not folder:
        raise SystemExit("UNITE_TEST_TOKENIZERS must name a folder with the tokenizers llama-3 and mistral-7b-v0.3")
    tokenizers = [AutoTokenizer.from_pretrained(Path(folder) / name) for name in ("llama-3", "mistral-7b-v0.3")]
    first, second = VocabAlignment.from_tokenizers(tokenizers).vocabularies
    text = "".join(p.read_text(encoding="utf-8") for p in sorted((ROOT / "docs").glob("*.md")))
    ids = tokenizers[0](text, add_special_tokens=False).input_ids
    places = [row * (len(ids) - STEPS) // rows for row in range(rows)]
    syncs = [TextSync(second) for _ in places]
    return [append_all(syncs, [first.token_bytes[ids[at + step]] for at in places]) for step in range(STEPS)]


def seconds_of(cache: RuledCache, edits: list[list[Edit]]) -> list[float]:
    """Of every step."""
    rng = torch.Generator().manual_seed(0)
    for row in range(len(cache.ids)):
        cache.edit(row, 0, torch.randint(IDS, (PROMPT,), generator=rng).tolist())
    cache.next_logits()
    times = []
    for step in edits:
        for row, (drop, append) in enumerate(step):
            cache.edit(row, drop, [i % IDS for i in append])
        start = time.perf_counter()
        cache.next_logits()
        times.append(time.perf_counter() - start)
    return times


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "holes_cpu.csv", help="CSV file to append to")
    out = parser.parse_args().out
    # A cache grows by being copied. Left alone, the C library gives large blocks back to the system at every step, and
    # fresh pages cost more than anything measured here; allocators for GPUs keep them.
    libc = ctypes.CDLL(None)
    for setting in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
        libc.mallopt(setting, 2**30)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=IDS, hidden_size=256, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=4096,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    facts = machine()
    for batch in (8, 32):
        edits, rows = edits_of(batch), {}
        seconds_of(RuledCache(model, batch, *RULES[0]), edits)  # warms up
        for order in range(ROUNDS):
            for rule, value, least in RULES[:: -1 if order % 2 else 1]:
                cache = RuledCache(model, batch, rule, value, least)
                times = seconds_of(cache, edits)
                row = (
                    facts
                    | {"batch": batch, "rule": rule, "value": value, "least": least, "gathered": cache.moved}
                    | {"columns": cache.width, "used": max(map(len, cache.ids))}
                    | percentiles(times)
                    | {"mean_us": round(1e6 * mean(times), 3)}
                )
                print(
                    f"B={batch:<3} {rule:5} {value:<5} least {least:<3} gathered {cache.moved:3} "
                    f"columns {row['columns']:5} of {row['used']:5}  mean {row['mean_us'] / 1e3:8.3f} ms",
                    flush=True,
                )
                if (rule, value, least) not in rows or row["mean_us"] < rows[rule, value, least]["mean_us"]:
                    rows[rule, value, least] = row
        append_csv(out, [rows[rule] for rule in RULES])


if __name__ == "__main__":
    main()
