"""Time `unite serve` under 1 to 64 clients, beside the engine alone.

    python benchmarks/bench_serve.py                               the bundled models
    python benchmarks/bench_serve.py --model A --model B           others, in float32
    python benchmarks/bench_serve.py --quick                       fewer requests and clients
    python benchmarks/bench_serve.py --transformers A              beside `transformers serve` of one model

Appended to results/serve_cpu.csv. The server runs in a process of its own, the clients in this one. The demo's
development problems are asked, every answer in a stream, and every text is compared with that of the engine alone.

Engine and server compute with one thread each; the event loop and the clients have the other core. Closed loop: every
client asks again as soon as it is answered. The engine alone runs the same prompts, as many side by side as there are
clients, in the same minute; `ratio` is the server's tokens per second over the engine's, the median of the rounds.
Poisson: requests arrive at random, at 0.8 of the rate that the engine alone finished; the time to the first token is
from the moment a request arrives. Time per token is that of one text after its first piece. Memory is the server's,
before the first request and after the last.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch
from bench_engine import poisson
from lib.measure import RESULTS, append_csv, machine
from lib.serve_client import Answer, Server, post, serving

from unite_ext import UniteEnsemble
from unite_ext.demo import COMPARABLE, load_member
from unite_ext.demo.problems import problem_set
from unite_ext.demo.run import DEV_SEED

CLIENTS = (1, 8, 32, 64)
POISSON = 0.8
POISSON_RUNS = 3
MAX_TOKENS = 64
PER_CLIENT = 24
"""Requests of one client in a run: more would only take longer."""
LEAST = 48
"""Requests of a run."""


def alone(ensemble: UniteEnsemble, prompts: Sequence[str], rows: int) -> tuple[float, int, list[str]]:
    """The engine without a server, `rows` requests side by side: seconds, tokens and texts."""
    plan = ensemble.plan({"max_new_tokens": MAX_TOKENS})
    engine = ensemble.new_engine(plan, max_requests=rows)
    start = time.perf_counter()
    requests = [engine.submit(prompt, plan.token_method, plan.generation) for prompt in prompts]
    for _ in engine.run():
        pass
    return time.perf_counter() - start, sum(len(r.ids) for r in requests), [r.decoded() for r in requests]


async def ask(port: int, prompt: str, model: str) -> Answer:
    """One streamed answer."""
    body = {"model": model, "prompt": prompt, "max_tokens": MAX_TOKENS, "temperature": 0, "stream": True}
    answer = await post(port, "/v1/completions", body)
    if answer.status != 200 or answer.error or not answer.done:
        raise SystemExit(f"a request failed: {answer.status} {answer.error}")
    return answer


async def closed_loop(port: int, prompts: Sequence[str], clients: int, model: str) -> list[Answer]:
    """Every client asks again when it is answered."""
    answers: list[Answer | None] = [None] * len(prompts)
    left = iter(range(len(prompts)))

    async def client() -> None:
        for i in left:
            answers[i] = await ask(port, prompts[i], model)

    await asyncio.gather(*[client() for _ in range(clients)])
    return [answer for answer in answers if answer is not None]


async def arrivals(port: int, prompts: Sequence[str], times: Sequence[float], model: str) -> list[Answer]:
    """Every prompt at its time."""
    start = time.perf_counter()

    async def client(prompt: str, at: float) -> Answer:
        await asyncio.sleep(max(0.0, start + at - time.perf_counter()))
        return await ask(port, prompt, model)

    return await asyncio.gather(*[client(prompt, at) for prompt, at in zip(prompts, times)])


def figures(answers: Sequence[Answer], seconds: float, tokens: int) -> dict[str, float]:
    """The figures of one run."""
    first = sorted(answer.times[0] - answer.started_at for answer in answers if answer.times)
    each = sorted(
        (answer.times[-1] - answer.times[0]) / (len(answer.times) - 1) for answer in answers if len(answer.times) > 1
    )

    def at(values: list[float], share: float) -> float:
        return round(1000 * values[min(len(values) - 1, int(share * len(values)))], 2)

    return {
        "requests_per_s": round(len(answers) / seconds, 2), "tokens_per_s": round(tokens / seconds, 1),
        "first_p50_ms": at(first, 0.5), "first_p99_ms": at(first, 0.99),
        "token_p50_ms": at(each, 0.5), "token_p99_ms": at(each, 0.99),
    }  # fmt: skip


def measure(
    server: Server, ensemble: UniteEnsemble, prompts: list[str], clients: int, rounds: int
) -> list[dict[str, float | str]]:
    """One number of clients: the engine alone and the server in turn, then arrivals at random."""
    found: dict[str, list[dict[str, float]]] = {}
    for turn in range(rounds):
        seconds, tokens, texts = alone(ensemble, prompts, clients)
        base = {"requests_per_s": round(len(prompts) / seconds, 2), "tokens_per_s": round(tokens / seconds, 1)}
        found.setdefault("engine alone", []).append(base | {"ratio": 1.0})
        start = time.perf_counter()
        answers = asyncio.run(closed_loop(server.port, prompts, clients, "unite"))
        own = figures(answers, time.perf_counter() - start, tokens)
        found.setdefault("closed loop", []).append(
            own | {"ratio": round(own["tokens_per_s"] / base["tokens_per_s"], 3)}
        )
        check(answers, texts)
        if turn >= POISSON_RUNS:
            continue
        times = poisson(len(prompts), POISSON * len(prompts) / seconds, turn)
        start = time.perf_counter()
        answers = asyncio.run(arrivals(server.port, prompts, times, "unite"))
        found.setdefault(f"Poisson at {POISSON:g}", []).append(figures(answers, time.perf_counter() - start, tokens))
        check(answers, texts)
    rows: list[dict[str, float | str]] = []
    for case, runs in found.items():
        middle = dict(sorted(runs, key=lambda run: run["tokens_per_s"])[len(runs) // 2])
        if "ratio" in middle:
            middle["ratio"] = median(run["ratio"] for run in runs)
        rows.append({"case": case, "clients": clients, "requests": len(prompts), **middle})
    return rows


def check(answers: Sequence[Answer], texts: Sequence[str]) -> None:
    """The server's texts are the engine's, but for near-ties."""
    if sum(answer.texts[0] != text for answer, text in zip(answers, texts)) > len(texts) // 50:
        raise SystemExit("the server changed texts: more than near-ties explain")


def beside_transformers(
    model: str, prompts: list[str], clients: Sequence[int], log: Path
) -> list[dict[str, float | str]]:
    """The same closed loop with `transformers serve` of one model; its texts are its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["transformers", "serve", "--port", str(port), "--host", "127.0.0.1", "--force-model", model]
    with log.open("a") as file:
        process = subprocess.Popen(
            [str(Path(sys.executable).parent / command[0]), *command[1:]], stdout=file, stderr=file
        )
    rows: list[dict[str, float | str]] = []
    try:
        from lib.serve_client import wait_until_ready

        wait_until_ready(port, process, log)
        for count in clients:
            start = time.perf_counter()
            answers = asyncio.run(closed_loop(port, prompts, count, model))
            tokens = sum(len(answer.times) for answer in answers)  # it sends a token a piece
            own = figures(answers, time.perf_counter() - start, tokens)
            rows.append({"case": "transformers serve", "clients": count, "requests": len(prompts), **own})
    finally:
        process.terminate()
        process.wait(30)
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help="a member, once per member; the bundled three by default")
    parser.add_argument("--requests", type=int, default=384, help="of every run, at most")
    parser.add_argument("--clients", type=int, nargs="+", default=CLIENTS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="64 requests, 1 and 8 clients, one round")
    parser.add_argument("--transformers", metavar="MODEL", help="measure `transformers serve` of this model as well")
    parser.add_argument("--out", type=Path, help="CSV file to append to")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # the server's as well: the other core is the event loop's and the clients'
    log = Path(tempfile.mkstemp(prefix="bench-serve-", suffix=".log")[1])
    names = arguments.model or list(COMPARABLE)
    if arguments.model:
        ensemble = UniteEnsemble.from_pretrained(names, dtype="float32")
    else:
        ensemble = UniteEnsemble([load_member(name) for name in names])
    options = ["--demo"]
    if arguments.model:
        options = ["--dtype", "float32", *(part for name in arguments.model for part in ("--model", name))]
    prompts = [problem.prompt for problem in problem_set("dev", DEV_SEED, 360)]
    count = 64 if arguments.quick else arguments.requests
    prompts = (prompts * (count // len(prompts) + 1))[:count]
    clients = CLIENTS[:2] if arguments.quick else arguments.clients
    members = " + ".join(Path(name).name for name in names)
    facts = machine() | {"members": members}
    fields = (
        "case", "clients", "requests", "requests_per_s", "tokens_per_s", "ratio", "first_p50_ms", "first_p99_ms",
        "token_p50_ms", "token_p99_ms", "memory_before_mb", "memory_after_mb",
    )  # fmt: skip
    empty = dict.fromkeys(fields, "")

    def keep(rows: Sequence[dict[str, float | str]]) -> None:
        """Write rows as they come: a run takes half an hour."""
        for row in rows:
            print(_line(row), flush=True)
        append_csv(arguments.out or RESULTS / "serve_cpu.csv", [facts | empty | row for row in rows])

    with serving([*options, "--log-level", "warning"], log) as server:
        alone(ensemble, prompts[:16], 8)  # warms up
        asyncio.run(closed_loop(server.port, prompts[:16], 8, "unite"))
        before = round(server.memory)
        for number in clients:
            asked = prompts[: max(LEAST, PER_CLIENT * number)]
            rows = measure(server, ensemble, asked, number, 1 if arguments.quick else arguments.rounds)
            memory = {"memory_before_mb": before, "memory_after_mb": round(server.memory)}
            keep([row | memory for row in rows])
    if arguments.transformers:
        name = {"members": Path(arguments.transformers).name}
        keep([row | name for row in beside_transformers(arguments.transformers, prompts, clients, log)])


def _line(row: dict[str, float | str]) -> str:
    shown = f"{row['case']:20} {row['clients']:3} clients {row['tokens_per_s']:9} tokens/s"
    if "ratio" in row:
        shown += f"  {row['ratio']:5} of the engine's"
    if "first_p50_ms" in row:
        first, each = (f"{row[f'{name}_p50_ms']} / {row[f'{name}_p99_ms']} ms" for name in ("first", "token"))
        shown += f"  first token {first}, then {each} (p50 / p99)"
    return shown


if __name__ == "__main__":
    main()
