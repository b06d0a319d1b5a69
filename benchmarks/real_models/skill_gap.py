"""How a gap in skill decides what an ensemble gives: a real model with partners that lose layer after layer.

    python benchmarks/real_models/skill_gap.py --models FOLDER --benchmarks FOLDER    (results/skill_gap.csv)

The paper's Takeaway I says that members within 10 points of the best improve it and weaker ones harm it. Here the
partner of a whole model is another one without its last layers, so that its skill can be chosen. PIQA's two solutions
are scored by the mean of the members' own probabilities (`likelihood="full"`), alone and together: which one is
likelier, and bits per byte of the right one, which says more from as few problems. Intervals are for the difference to
the whole model, 95 %, over problems by bootstrap.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # to find lib

import torch
from lib.measure import RESULTS, append_csv, machine
from lib.real_models import FOLDERS, interval
from transformers import AutoModelForCausalLM, AutoTokenizer

from unite_ext import Member, UniteEnsemble
from unite_ext.decoding.likelihood import score_continuations

LAYERS = {"gemma": (18, 17, 16, 15, 13, 10), "smol": (30, 29, 28, 26, 23, 18)}


class Scored(NamedTuple):
    """What came of every problem."""

    right: list[bool]
    bits: list[float]
    """Of the right solution."""


def load_problems(benchmarks: Path, count: int) -> list[tuple[str, list[str], int]]:
    """Question, solutions and which one is right."""
    lines = (benchmarks / "piqa" / "validation.jsonl").read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines[:count] if line]
    return [
        (f"Question: {r['question']}\nAnswer:", [" " + r["A"], " " + r["B"]], "AB".index(r["answer"])) for r in rows
    ]


def load(folder: Path, name: str, layers: int | None, dtype: torch.dtype) -> Member:
    """A member without its last layers."""
    path = str(folder / FOLDERS[name])
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    if layers is not None:
        model.model.layers = model.model.layers[:layers]
        model.config.num_hidden_layers = layers
        if getattr(model.config, "layer_types", None):
            model.config.layer_types = model.config.layer_types[:layers]
    return Member(model, AutoTokenizer.from_pretrained(path), name=name)


def score(members: list[Member], problems: list[tuple[str, list[str], int]]) -> Scored:
    """Every problem's solutions under these members together."""
    ensemble = UniteEnsemble(members)
    asked = [
        (question, ensemble.alignment.encode_continuation(0, solution.encode()))
        for question, solutions, _ in problems
        for solution in solutions
    ]
    found = sorted(score_continuations(ensemble, asked, batch_size=16, likelihood="full"), key=lambda own: own.index)
    pairs = [(a.log_prob, b.log_prob) for a, b in zip(found[::2], found[1::2])]
    return Scored(
        [pair[right] > pair[1 - right] for pair, (_, _, right) in zip(pairs, problems)],
        [-pair[right] / math.log(2) for pair, (_, _, right) in zip(pairs, problems)],
    )


def main() -> None:
    """Measure the whole model alone, then every partner alone and beside it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help="folder of shared/models/get_models.py's models")
    parser.add_argument("--benchmarks", type=Path, required=True, help="folder with piqa/validation.jsonl")
    parser.add_argument("--whole", choices=FOLDERS, default="qwen")
    parser.add_argument("--partners", nargs="+", choices=LAYERS, default=list(LAYERS))
    parser.add_argument("--problems", type=int, default=300)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--out", type=Path, default=RESULTS / "skill_gap.csv")
    arguments = parser.parse_args()
    problems, dtype = load_problems(arguments.benchmarks, arguments.problems), getattr(torch, arguments.dtype)
    sizes = [len(solutions[right].encode()) for _, solutions, right in problems]
    whole = load(arguments.models, arguments.whole, None, dtype)
    best, facts = score([whole], problems), machine()

    def note(members: str, layers: int | str, found: Scored) -> None:
        bits = interval([own - ref for own, ref in zip(found.bits, best.bits)], sizes)
        right = interval([float(own) - ref for own, ref in zip(found.right, best.right)], [1] * len(problems))
        row = {
            "dtype": arguments.dtype, "members": members, "layers": layers, "problems": len(problems),
            "accuracy": round(sum(found.right) / len(problems), 4),
            "accuracy_low": round(right[0], 4), "accuracy_high": round(right[1], 4),
            "bits_per_byte": round(sum(found.bits) / sum(sizes), 4),
            "bits_low": round(bits[0], 4), "bits_high": round(bits[1], 4),
        }  # fmt: skip
        append_csv(arguments.out, [facts | row])
        print(
            members, layers, row["accuracy"], row["bits_per_byte"], f"{time.perf_counter() - start:.0f} s", flush=True
        )

    start = time.perf_counter()
    note(arguments.whole, "", best)
    for name in arguments.partners:
        for layers in LAYERS[name]:
            partner = load(arguments.models, name, layers, dtype)
            note(name, layers, score([partner], problems))
            note(f"{arguments.whole}+{name}", layers, score([whole, partner], problems))


if __name__ == "__main__":
    main()
