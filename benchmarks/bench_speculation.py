"""Speculation against plain decoding.

    python benchmarks/bench_speculation.py --models FOLDER      appended to results/speculation_cpu.csv
    python benchmarks/bench_speculation.py --exact ...          with exact boundaries, to results/exact_drafts_cpu.csv

Texts: the bundled models on the demo's development problems, and with --models real ones (folders smollm2, gemma3 and
qwen25-coder) on word problems and code, with two and three members. Plain decoding and every kind of draft run in turn,
over the same prompts; their ids are compared, up to the first near-tie. Besides tokens of the primary per second:
passes of a member other than it per token, what was drafted and accepted, and what the gain would be if a pass over
several places cost no more than one over a single place, from the passes alone.

Four texts side by side end with the slowest of them, so that what others gain is lost in part; "both" has eight texts
for four rows, where the next takes the place of one that is done, and "auto" alone is measured.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median

import torch
from lib.measure import RESULTS, append_csv, machine

from unite_ext import Member, UniteEnsemble
from unite_ext.demo import COMPARABLE, load_member
from unite_ext.demo.problems import problem_set
from unite_ext.demo.run import DEV_SEED
from unite_ext.members.names import short_names

KINDS = (2, 4, 8, "auto", "ngram")
CLEAR = 1e-5
CODE = (
    'def mean(values):\n    """The mean of a list of numbers."""\n',
    "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):\n",
    "import csv\n\n\ndef read_rows(path):\n",
    "for i in range(10):\n    if i % 2 == 0:\n",
)
WORD_PROBLEMS = (
    "Question: Tom has 12 boxes with 8 pens each. He gives away 20 pens. How many pens are left?\nAnswer: Tom has",
    "Question: A train goes 60 miles an hour for 3 hours. How far does it go?\nAnswer: The train",
    "Question: Ann reads 15 pages a day. How many days does she need for 120 pages?\nAnswer: She needs",
    "Question: A shirt costs 20 dollars and is 25 percent off. What does it cost now?\nAnswer: The",
)


class PassClock:
    """Counts the passes of every member, and adds up their seconds."""

    def __init__(self, ensemble: UniteEnsemble) -> None:
        self.passes = [0] * len(ensemble.members)
        self._handles = [
            member.model.register_forward_pre_hook(lambda *_, m=m: self._count(m))
            for m, member in enumerate(ensemble.members)
        ]

    def _count(self, m: int) -> None:
        self.passes[m] += 1

    def close(self) -> None:
        """Stop counting."""
        for handle in self._handles:
            handle.remove()


def same_up_to_ties(plain, fast) -> bool:
    """Whether all ids agree, up to each text's first step that is too close to compare; with exact boundaries all."""
    if any(plain.byte_records) or not any(plain.records):
        return fast.texts == plain.texts
    for row, records in enumerate(plain.records):
        tops = [sorted(record.union_probs)[-2:] for record in records]
        clear = next((i for i, top in enumerate(tops) if len(top) == 2 and top[1] - top[0] < CLEAR), len(tops))
        if fast.token_ids[row][0][:clear] != plain.token_ids[row][0][:clear]:
            return False
    return True


def measure_texts(
    name: str, ensemble: UniteEnsemble, prompts: list[str], batch: int, length: int, rounds: int, auto_rounds: int = 0
) -> list:
    """One row per kind of draft, plain decoding first; after the rounds of all kinds some of "auto" and it alone."""
    plain = ensemble.generate(prompts, max_new_tokens=length, batch_size=batch, return_dict=True)
    kinds: tuple = KINDS
    if ensemble.plan({}).step.boundaries == "exact":
        kinds = (2, 4, 8, "ngram", short_names([member.name for member in ensemble.members])[1])
    samples: dict[object, list[float]] = {}
    gains: dict[object, list[float]] = {}
    counted: dict[object, tuple] = {}
    for tried in (*(kinds,) * rounds, *(("auto",),) * auto_rounds):
        for kind in (False, *tried):
            clock = PassClock(ensemble)
            start = time.perf_counter()
            output = ensemble.generate(
                prompts, max_new_tokens=length, batch_size=batch, speculate=kind, return_dict=True
            )
            tokens = sum(len(ids[0]) for ids in output.token_ids)
            samples.setdefault(kind, []).append(tokens / (time.perf_counter() - start))
            gains.setdefault(kind, []).append(samples[kind][-1] / samples[False][-1])
            clock.close()
            if not same_up_to_ties(plain, output):
                raise SystemExit(f"{name}: speculate={kind} changed a text")
            counted[kind] = (output, clock.passes)
    rows = []
    members = len(ensemble.members)
    for kind, found in samples.items():
        output, passes = counted[kind]
        tokens, others = sum(len(ids[0]) for ids in output.token_ids), passes[1:] or passes
        _, plain_passes = counted[False]
        rows.append(
            {
                "case": name,
                "members": members,
                "batch": batch,
                "draft": "none" if kind is False else str(kind),
                "tokens_per_s": round(median(found), 2),
                "gain": round(median(gains[kind]), 3),
                "passes_per_token": round(sum(others) / len(others) / tokens, 3),
                "drafted": sum(output.drafted),
                "accepted": sum(output.accepted),
                "free_places_gain": round(sum(plain_passes) / sum(passes), 3),
            }
        )
        shown = " ".join(f"{key} {value}" for key, value in rows[-1].items() if key != "case")
        print(f"{name:22} {shown}", flush=True)
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, help="folder with smollm2, gemma3 and qwen25-coder")
    parser.add_argument("--rounds", type=int, default=3, help="of the bundled models")
    parser.add_argument("--real-rounds", type=int, default=3, help="of the real ones")
    parser.add_argument("--auto-rounds", type=int, default=0, help='of the real ones, further ones with "auto" alone')
    parser.add_argument("--exact", action="store_true", help="with exact boundaries")
    parser.add_argument("--batch", type=int, nargs="+", default=(1, 4), help="texts side by side")
    parser.add_argument("--length", type=int, default=96, help="tokens per text of the real models")
    parser.add_argument("--out", type=Path, help="CSV file to append to")
    arguments = parser.parse_args()
    default = "exact_drafts_cpu.csv" if arguments.exact else "speculation_cpu.csv"
    facts, out = machine(), arguments.out or RESULTS / default
    boundaries = "exact" if arguments.exact else "plain"

    def save(rows: list) -> None:
        """Append a case as soon as it has been measured: what ends early loses the rest only."""
        append_csv(out, [facts | row for row in rows])

    demo = UniteEnsemble([load_member(name) for name in COMPARABLE], boundaries=boundaries)
    problems = [problem.prompt for problem in problem_set("dev", DEV_SEED, 360)[:8]]
    for batch in arguments.batch:
        save(measure_texts("bundled, problems", demo, problems, batch, 90, arguments.rounds))
    if arguments.models:
        loaded = {
            name: Member.from_pretrained(str(arguments.models / name), dtype=torch.float32)
            for name in ("qwen25-coder", "smollm2", "gemma3")
        }
        for names in (("qwen25-coder", "smollm2"), ("qwen25-coder", "smollm2", "gemma3")):
            ensemble = UniteEnsemble([loaded[name] for name in names], boundaries=boundaries)
            rounds = arguments.real_rounds, 0 if arguments.exact else arguments.auto_rounds
            for case, prompts in (("real, word problems", WORD_PROBLEMS), ("real, code", CODE)):
                for batch in arguments.batch:
                    save(measure_texts(case, ensemble, list(prompts), batch, arguments.length, *rounds))
            if not arguments.exact:
                both = [text for pair in zip(WORD_PROBLEMS, CODE) for text in pair]
                batch = max(arguments.batch)
                save(measure_texts("real, both", ensemble, both, batch, arguments.length, 0, sum(rounds)))


if __name__ == "__main__":
    main()
