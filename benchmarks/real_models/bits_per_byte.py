"""Bits per byte of real texts under ensembles of real models, and under every member alone.

    python benchmarks/real_models/bits_per_byte.py --models FOLDER --benchmarks FOLDER    (results/bits_per_byte.csv)

Rules: `alone`, one member, asked at every byte, over all its tokenizations (covers below 1e-3 of its probability are
left out); `average`, the mean of the members' `alone` at every byte, which is what an ensemble of texts means;
`exact`, the same as `boundaries="exact"` asks the members, seldom; `repeat` and `drop`, the paper's step with its
`duplicates`, by either member leading. The paper's step spreads each member's probability over the union alone, which
flatters its figures.

The texts: `texts.jsonl` beside this file, written for it, and solutions of GSM8K's development problems. The first half
of each set decided the defaults; `--half second` is the other one. Intervals are 95 %, over texts by bootstrap.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # to find lib

from lib.measure import RESULTS, append_csv, machine
from lib.real_models import ensembles, interval, load, orders

from unite_ext import Member, UniteEnsemble
from unite_ext.decoding.covers import WalkLimits

EVERY_BYTE = WalkLimits(min_share=1e-3, max_ended=0.0, unlikely_byte=2.0, max_lag=1_000_000, kept_share=1e-8)
RULES = ("alone", "average", "exact", "repeat", "drop")


def load_texts(benchmarks: Path | None, half: str) -> dict[str, list[tuple[str, str]]]:
    """Per set its (prompt, text) pairs; the prompt is not scored."""
    sets: dict[str, list[tuple[str, str]]] = {}
    for line in (Path(__file__).parent / "texts.jsonl").read_text(encoding="utf-8").split("\n"):
        if line and (row := json.loads(line))["half"] == half:
            text = row["text"]
            cut = text.index("\n") if row["set"] == "code" else max(1, len(text) // 6)
            sets.setdefault(row["set"], []).append((text[:cut], text[cut:]))
    if benchmarks is not None:
        lines = (benchmarks / "gsm8k" / "dev.jsonl").read_text(encoding="utf-8").split("\n")
        rows = [json.loads(line) for line in lines if line]
        rows = rows[:8:2] if half == "first" else rows[1:8:2]
        sets["gsm8k"] = [(f"Question: {row['question']}\nAnswer:", " " + row["answer"]) for row in rows]
    return sets


class PassCount:
    """Counts the forward passes of an ensemble's members."""

    def __init__(self, members: list[Member]) -> None:
        self.passes = 0
        self._handles = [member.model.register_forward_pre_hook(self._count) for member in members]

    def _count(self, *_: object) -> None:
        self.passes += 1

    def close(self) -> int:
        """Stop counting; how many there were."""
        for handle in self._handles:
            handle.remove()
        return self.passes


class Measured(NamedTuple):
    """What came of the texts of one set."""

    bits: list[float]
    """Per text."""
    steps: int
    byte_log_probs: list[list[float]]
    """Per text and byte, by rules that walk; natural logarithms."""


def measure(ensemble: UniteEnsemble, texts: list[tuple[str, str]], rule: str) -> Measured:
    """Score every text."""
    walks = rule in ("alone", "exact")
    options = {"boundaries": "exact"} if walks else {"boundaries": "plain", "duplicates": rule}
    plan = ensemble.plan(options, generates=False)
    engine = ensemble.new_engine(plan, max_requests=len(texts))
    if rule == "alone":
        engine.runner.exact.limits = EVERY_BYTE
    for prompt, text in texts:
        targets = ensemble.alignment.encode_continuation(0, text.encode())
        engine.submit(prompt, plan.token_method, targets=targets)
    requests = sorted(engine.run(), key=lambda request: request.index)
    bits = [-math.fsum(s.log_prob for s in request.scores) / math.log(2) for request in requests]
    by_byte = [request.exact.log_probs if request.exact else [] for request in requests]
    return Measured(bits, sum(request.num_steps for request in requests), by_byte)


def averaged(alone: list[Measured]) -> Measured:
    """The mean of several members' probabilities of every byte."""
    by_byte = [
        [math.log(sum(map(math.exp, at)) / len(at)) for at in zip(*texts)]
        for texts in zip(*(own.byte_log_probs for own in alone))
    ]
    return Measured([-math.fsum(own) / math.log(2) for own in by_byte], sum(map(len, by_byte)), by_byte)


def main() -> None:
    """Measure every set with every pair of members, and all three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help="folder of shared/models/get_models.py's models")
    parser.add_argument("--benchmarks", type=Path, help="folder with gsm8k/dev.jsonl")
    parser.add_argument("--half", choices=("first", "second"), default="first")
    parser.add_argument("--sets", nargs="+", help="only these")
    parser.add_argument("--rules", nargs="+", choices=RULES, default=RULES)
    parser.add_argument("--members", nargs="+", help="only these members and ensembles, such as qwen+gemma")
    parser.add_argument("--texts", type=int, help="only so many texts of every set")
    parser.add_argument("--out", type=Path, default=RESULTS / "bits_per_byte.csv")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    sets = load_texts(arguments.benchmarks, arguments.half)
    try:
        wanted = ensembles(arguments.members)
    except ValueError as error:
        parser.error(str(error))
    if "average" in arguments.rules and "alone" not in arguments.rules:
        parser.error("--rules: average is made of alone, which has to run as well")
    members = load(arguments.models, wanted)
    facts = machine()
    alone: dict[tuple[str, str], Measured] = {}
    for kind, texts in sets.items():
        if arguments.sets and kind not in arguments.sets:
            continue
        texts = texts[: arguments.texts]
        sizes = [len(text.encode()) for _, text in texts]
        for names in wanted:
            for rule in RULES:
                if (rule == "alone") != (len(names) == 1) or rule not in arguments.rules:
                    continue
                for order in orders(names, rule):
                    start, counter = time.perf_counter(), PassCount([members[name] for name in order])
                    if rule == "average":
                        found = averaged([alone[kind, name] for name in order])
                    else:
                        found = measure(UniteEnsemble([members[name] for name in order]), texts, rule)
                    if rule == "alone":
                        alone[kind, names[0]] = found
                    passes, seconds = counter.close(), time.perf_counter() - start
                    low, high = interval(found.bits, sizes)
                    row = {
                        "half": arguments.half, "set": kind, "members": "+".join(order), "rule": rule,
                        "texts": len(texts), "bytes": sum(sizes),
                        "bits_per_byte": round(sum(found.bits) / sum(sizes), 4),
                        "low": round(low, 4), "high": round(high, 4),
                        "steps_per_byte": round(found.steps / sum(sizes), 4), "passes": passes,
                    }  # fmt: skip
                    append_csv(arguments.out, [facts | row])
                    shown = " ".join(
                        str(row[name])
                        for name in ("set", "members", "rule", "bits_per_byte", "low", "high", "steps_per_byte")
                    )
                    print(f"{shown} {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
