"""Scoring of given continuations: in one pass, by a step per token, and as lm-evaluation-harness does member by member.

    python benchmarks/bench_scoring.py --models FOLDER --benchmarks FOLDER      appended to results/scoring_cpu.csv

Texts: two answers to each of four questions, by the bundled models, and with --models by two and three real ones
(folders smollm2, gemma3 and qwen25-coder); with --benchmarks PIQA's solutions too. All ways run in turn over the same
texts, and the first two have to agree. The harness's `hf` models score every member by itself: its time is summed over
them.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median

import torch
from lib.measure import RESULTS, append_csv, machine
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from unite_ext import Member, UniteEnsemble
from unite_ext.decoding.likelihood import score_continuations
from unite_ext.demo import COMPARABLE, load_member

SENTENCES = (
    "To open a jar that is stuck,", "To keep bread fresh,", "To dry wet shoes,", "To clean a window,",
)  # fmt: skip
ENDINGS = (
    " hold it under warm water for a minute, and then turn the lid with a dry cloth.",
    " put it into the oven at the highest temperature and wait until it begins to melt.",
)


def piqa_pairs(benchmarks: Path, count: int) -> list[tuple[str, str]]:
    """The first of PIQA's questions, each with both solutions."""
    lines = (benchmarks / "piqa" / "validation.jsonl").read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines[:count]]
    return [(f"Question: {row['question']}\nAnswer:", f" {row[option]}") for row in rows for option in "AB"]


def score_by_harness(models: list[HFLM], pairs: list[tuple[str, str]]) -> None:
    """What lm-evaluation-harness does for every member by itself."""
    for model in models:
        model.loglikelihood([Instance("loglikelihood", {}, pair, n) for n, pair in enumerate(pairs)], disable_tqdm=True)


def measure(name: str, ensemble: UniteEnsemble, rounds: int, pairs: list[tuple[str, str]]) -> list:
    """Scoring continuations in one pass, by generating one token per step, and as the harness does member by member."""
    encode = ensemble.alignment.encode_continuation
    requests = [(prompt, encode(0, text.encode())) for prompt, text in pairs]
    tokens = sum(len(ids) for _, ids in requests)
    times: dict[str, list[float]] = {"one pass": [], "a step per token": [], "lm_eval's hf, summed": []}
    alone = [HFLM(pretrained=member.model, tokenizer=member.tokenizer, batch_size=8) for member in ensemble.members]
    for _ in range(rounds):
        start = time.perf_counter()
        score_by_harness(alone, pairs)
        times["lm_eval's hf, summed"].append(time.perf_counter() - start)
        start = time.perf_counter()
        whole = {f.index: f.log_prob for f in score_continuations(ensemble, requests, batch_size=8)}
        times["one pass"].append(time.perf_counter() - start)
        start = time.perf_counter()
        steps = step_per_token(ensemble, requests)
        times["a step per token"].append(time.perf_counter() - start)
        if max(abs(whole[i] - steps[i]) for i in whole) > 1e-2:
            raise SystemExit(f"{name}: the two ways of scoring differ")
    rows = []
    for kind, found in times.items():
        figure = median(a / b for a, b in zip(times["a step per token"], found))
        rows.append(
            {
                "case": name, "members": len(ensemble.members), "batch": 8, "way": kind,
                "tokens_per_s": round(tokens / median(found), 2), "gain": round(figure, 3),
            }
        )  # fmt: skip
        print(f"{name:14} {kind}: {tokens / median(found):.2f} tokens/s, {figure:.2f}x", flush=True)
    return rows


def step_per_token(ensemble: UniteEnsemble, requests: list) -> dict[int, float]:
    """Log-probabilities with one target at a time: every token is a step of its own."""
    plan = ensemble.plan({})
    engine = ensemble.new_engine(plan, max_requests=8)
    engine.runner.targets.max_places = 1
    made = [
        engine.submit(prompt, plan.token_method, plan.generation, index=i, targets=ids)
        for i, (prompt, ids) in enumerate(requests)
    ]
    for _ in engine.run():
        pass
    return {request.index: sum(score.log_prob for score in request.scores) for request in made}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, help="folder with smollm2, gemma3 and qwen25-coder")
    parser.add_argument("--benchmarks", type=Path, help="folder with piqa/validation.jsonl")
    parser.add_argument("--questions", type=int, default=12, help="of PIQA")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "scoring_cpu.csv")
    arguments = parser.parse_args()
    facts = machine()
    short = [(sentence, ending) for sentence in SENTENCES for ending in ENDINGS]

    def save(rows: list) -> None:
        """Append a case as soon as it has been measured: what ends early loses the rest only."""
        append_csv(arguments.out, [facts | row for row in rows])

    bundled = UniteEnsemble([load_member(name) for name in COMPARABLE])
    save(measure("bundled", bundled, arguments.rounds, short))
    if arguments.models is None:
        return
    loaded = {
        name: Member.from_pretrained(str(arguments.models / name), dtype=torch.float32)
        for name in ("qwen25-coder", "smollm2", "gemma3")
    }
    for names in (("qwen25-coder", "smollm2"), ("qwen25-coder", "smollm2", "gemma3")):
        ensemble = UniteEnsemble([loaded[name] for name in names])
        save(measure("real", ensemble, arguments.rounds, short))
        if arguments.benchmarks is not None:
            pairs = piqa_pairs(arguments.benchmarks, arguments.questions)
            save(measure("real, PIQA", ensemble, arguments.rounds, pairs))


if __name__ == "__main__":
    main()
