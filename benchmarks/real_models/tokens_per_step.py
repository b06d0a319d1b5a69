"""How many tokens a step of UNITE handles with real models, and what a token takes beside the members' own.

    python benchmarks/real_models/tokens_per_step.py --models FOLDER --benchmarks FOLDER

The paper's Table 5 compares methods by the tokens handled per step: the mean size of the union here. Time is per token
of the first member, prompts included, for one text or several at a time: of the ensemble's plain steps, of exact
boundaries, and of every member alone, all in turn. Medians over rounds. Rows go to results/tokens_per_step.csv.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import mean, median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # to find lib

import torch
from lib.measure import RESULTS, append_csv, machine
from lib.real_models import ensembles, load

from unite_ext import UniteEnsemble


def load_prompts(benchmarks: Path, count: int) -> list[str]:
    """The first of GSM8K's development questions."""
    lines = (benchmarks / "gsm8k" / "dev.jsonl").read_text(encoding="utf-8").split("\n")
    return [f"Question: {json.loads(line)['question']}\nAnswer:" for line in lines[:count]]


def main() -> None:
    """Measure every pair and all three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help="folder of shared/models/get_models.py's models")
    parser.add_argument("--benchmarks", type=Path, required=True, help="folder with gsm8k/dev.jsonl")
    parser.add_argument("--members", nargs="+", help="only these ensembles, such as qwen+gemma")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--prompts", type=int, default=6, help="two batches at least")
    parser.add_argument("--tokens", type=int, default=48, help="per text")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--out", type=Path, default=RESULTS / "tokens_per_step.csv")
    arguments = parser.parse_args()
    try:
        wanted = [names for names in ensembles(arguments.members) if len(names) > 1]
    except ValueError as error:
        parser.error(str(error))
    texts = load_prompts(arguments.benchmarks, max(arguments.prompts, 2 * max(arguments.batch_sizes)))
    members, facts = load(arguments.models, wanted, getattr(torch, arguments.dtype)), machine()
    for names in wanted:
        ensemble = UniteEnsemble([members[name] for name in names])
        calls = {"plain": (ensemble, {}), "exact": (ensemble, {"boundaries": "exact"})}
        calls |= {name: (UniteEnsemble([members[name]]), {}) for name in names}
        for size in arguments.batch_sizes:
            prompts = texts[: max(arguments.prompts, 2 * size)]
            own = {"batch_size": size, "max_new_tokens": arguments.tokens}
            output = ensemble.generate(prompts, return_dict=True, **own)
            union = mean(len(record.union_ids) for records in output.records for record in records)
            times: dict[str, list[float]] = {name: [] for name in calls}
            for _ in range(arguments.rounds):
                for name, (asked, options) in calls.items():
                    start = time.perf_counter()
                    requests = list(asked.generate_each(prompts, **own, **options))
                    seconds = time.perf_counter() - start
                    times[name].append(1000 * seconds / sum(len(request.ids) for request in requests))
            found = {name: median(values) for name, values in times.items()}
            row = {
                "dtype": arguments.dtype, "members": "+".join(names), "batch_size": size, "prompts": len(prompts),
                "k": 10, "tokens_per_step": round(union, 2),
                "plain_ms": round(found["plain"], 2), "exact_ms": round(found["exact"], 2),
                "alone_ms": " ".join(f"{name} {found[name]:.2f}" for name in names),
                "plain_to_sum": round(found["plain"] / sum(found[name] for name in names), 3),
                "exact_to_sum": round(found["exact"] / sum(found[name] for name in names), 3),
            }  # fmt: skip
            append_csv(arguments.out, [facts | row])
            print(*(f"{name} {row[name]}" for name in list(row)[1:]), flush=True)


if __name__ == "__main__":
    main()
