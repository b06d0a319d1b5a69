"""Compare requests that arrive one by one with one offline batch; time a long prompt among running requests.

    python benchmarks/bench_engine.py            appended to results/engine_cpu.csv
    python benchmarks/bench_engine.py --parts prompt

Arrivals: the bundled models solve the demo's development problems, all at once as one offline batch, and arriving by a
Poisson process whose mean rate is a multiple of what the batch finished per second. The figure is generated tokens per
second, from the first arrival to the last token. At the batch's own rate the last request arrives when the batch would
have been done, so that runs are long beside one request. Every run of arrivals has the batch run before it, and `ratio`
is the median of the turns. `steps` is how many steps of the engine the same tokens took, which no other load of the
machine changes: a request that arrives late leaves rows empty.

Long prompt: 32 requests run on tiny models with real tokenizers (the folder that UNITE_TEST_TOKENIZERS names) when one
with 2,000 ids in its prompt arrives. The figure is how long the others wait for a step, with the prompt read in chunks
and in one pass.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from bench_decode import load
from lib.measure import RESULTS, append_csv, machine, percentiles

from unite_ext import Engine, GenerationOptions, Request, UniteEnsemble
from unite_ext.demo import COMPARABLE, load_member
from unite_ext.demo.problems import problem_set
from unite_ext.demo.run import DEV_SEED, MAX_NEW_TOKENS

PARTS = ("arrivals", "prompt")
ROWS = 32
LOADS = (0.8, 1.0, 2.0)  # arrivals per second, in requests that the offline batch finished per second
PROMPT = 2000
STEPS = 120


class Run(NamedTuple):
    """Requests that have been answered."""

    tokens_per_s: float
    """From the first arrival to the last token."""
    steps: int
    requests: list[Request]


def arrive(ensemble: UniteEnsemble, prompts: list[str], times: list[float]) -> Run:
    """Submit every prompt at its time, and run until all are done."""
    plan = ensemble.plan({"max_new_tokens": MAX_NEW_TOKENS})
    engine = ensemble.new_engine(plan, max_requests=ROWS)
    requests: list[Request] = []
    steps = 0
    start = time.perf_counter()
    while len(requests) < len(prompts) or engine.has_work:
        now = time.perf_counter() - start
        while len(requests) < len(prompts) and times[len(requests)] <= now:
            requests.append(engine.submit(prompts[len(requests)], plan.token_method, plan.generation))
        if engine.has_work:
            engine.step()
            steps += 1
        elif len(requests) < len(prompts):
            time.sleep(max(0.0, times[len(requests)] - (time.perf_counter() - start)))
    return Run(sum(r.num_steps for r in requests) / (time.perf_counter() - start), steps, requests)


def poisson(count: int, rate: float, seed: int) -> list[float]:
    """Arrival times of a Poisson process, the first at 0."""
    rng, now, times = random.Random(seed), 0.0, []
    for _ in range(count):
        times.append(now)
        now += rng.expovariate(rate)
    return times


def measure_arrivals(count: int, rounds: int) -> list[dict[str, float | str]]:
    """The offline batch and arrivals in turn; texts must agree."""
    ensemble = UniteEnsemble([load_member(name) for name in COMPARABLE])
    prompts = [problem.prompt for problem in problem_set("dev", DEV_SEED, 360)]
    prompts = (prompts * (count // len(prompts) + 1))[:count]
    at_once = [0.0] * count
    first = arrive(ensemble, prompts, at_once)  # warms up, and gives the rate
    rate = first.tokens_per_s * count / sum(r.num_steps for r in first.requests)
    runs: dict[str, list[Run]] = {}
    ratios: dict[str, list[float]] = {"offline batch": [1.0]}
    for turn in range(rounds):
        for load_factor in LOADS:
            batch = arrive(ensemble, prompts, at_once)
            own = arrive(ensemble, prompts, poisson(count, load_factor * rate, turn))
            if sum(a.text != b.text for a, b in zip(own.requests, first.requests)) > count // 50:
                raise SystemExit("arrivals changed texts: more than near-ties explain")
            name = f"arrivals at {load_factor:g} x the batch's rate"
            runs.setdefault("offline batch", []).append(batch)
            runs.setdefault(name, []).append(own)
            ratios.setdefault(name, []).append(own.tokens_per_s / batch.tokens_per_s)
    return [
        {
            "case": name, "requests": count, "steps": round(median(run.steps for run in found)),
            "tokens_per_s": round(median(run.tokens_per_s for run in found), 1),
            "ratio": round(median(ratios[name]), 3),
        }
        for name, found in runs.items()
    ]  # fmt: skip


def steps_beside(ensemble: UniteEnsemble, chunk: int | None) -> list[float]:
    """Seconds of the steps of 32 running requests, while a long prompt is read in chunks (None: no prompt)."""
    plan = ensemble.plan({"max_new_tokens": 4 * STEPS, "min_new_tokens": 4 * STEPS})
    engine = Engine(ensemble.members, ensemble.alignment, max_requests=ROWS + 1, prefill_chunk=chunk or 512)
    for i in range(ROWS):
        engine.submit(f"Once upon a time number {i}", plan.token_method, plan.generation)
    for _ in range(20):
        engine.step()
    if chunk is not None:
        ids = [[7 + i % 90 for i in range(PROMPT)] for _ in ensemble.members]
        engine.submit(ids, plan.token_method, GenerationOptions(max_new_tokens=STEPS))
    times = []
    for _ in range(STEPS):
        start = time.perf_counter()
        engine.step()
        times.append(time.perf_counter() - start)
    return times


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer requests, one round")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure; both by default")
    parser.add_argument("--out", type=Path, default=RESULTS / "engine_cpu.csv", help="CSV file to append to")
    arguments = parser.parse_args()
    fields = ("requests", "steps", "tokens_per_s", "ratio", "p10_us", "p50_us", "p90_us", "worst_us")
    empty: dict[str, float | str] = dict.fromkeys(fields, "")
    if "arrivals" in arguments.parts:
        torch.set_num_threads(1)  # the bundled models gain nothing from a second thread
        facts = machine()
        found = measure_arrivals(64 if arguments.quick else 360, 1 if arguments.quick else 5)
        append_csv(arguments.out, [facts | {"case": ""} | empty | row for row in found])
        for row in found:
            print(
                f"{row['case']:40} {row['tokens_per_s']:10} tokens/s  {row['ratio']} of the batch, {row['steps']} steps"
            )
    if "prompt" in arguments.parts:
        torch.set_num_threads(2)
        facts, ensemble = machine(), load(2, "cpu")
        for chunk in (None, 512, 128, PROMPT):
            times = steps_beside(ensemble, chunk)
            name = "32 requests" if chunk is None else f"32 requests, a prompt of {PROMPT} in chunks of {chunk}"
            numbers = percentiles(times) | {"worst_us": round(max(times) * 1e6, 1)}
            append_csv(arguments.out, [facts | {"case": name} | empty | numbers])
            print(f"{name:52} p50 {numbers['p50_us'] / 1e3:8.2f} ms  worst {numbers['worst_us'] / 1e3:8.2f} ms")


if __name__ == "__main__":
    main()
