"""Time a step of members on two ranks, beside one process and beside an exchange of whole vocabularies.

    python benchmarks/bench_ranks.py            two processes on this machine, appended to results/ranks_cpu.csv

Members are the tiny models of `bench_decode.py` with the tokenizers of Llama-3 and Qwen2 (the folder that
UNITE_TEST_TOKENIZERS names), so that what is outside the forward passes shows. Measured are whole steps of 1 and 32
requests: in one process; with the members on two ranks; and on two ranks that send each other whole rows of logits, as
methods without a union have to. All three must give the same ids. `bench_hosts.py` runs it on several hosts.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from bench_decode import load, prompts_of
from lib.measure import RESULTS, append_csv, machine, percentiles
from torch import Tensor

from unite_ext import StepOptions, StepResult, UniteEnsemble, VocabAlignment
from unite_ext.members.base import Scores
from unite_ext.members.ranks import SpreadScores
from unite_ext.methods import unite
from unite_ext.ops import fused_step

BATCHES = (1, 32)
WARM_UP = 10


def run(ensemble: UniteEnsemble, batch: int, steps: int) -> tuple[list[float], list[list[int]]]:
    """Seconds of every step after some to warm up, and the requests' ids."""
    plan = ensemble.plan({"max_new_tokens": steps + WARM_UP, "min_new_tokens": steps + WARM_UP})
    engine = ensemble.new_engine(plan, max_requests=batch)
    requests = [engine.submit(prompt, plan.token_method, plan.generation) for prompt in prompts_of(batch)]
    times = []
    while engine.has_work:
        start = time.perf_counter()
        engine.step()
        times.append(time.perf_counter() - start)
    return times[WARM_UP : WARM_UP + steps], [request.token_ids(0) for request in requests]


def send_whole_rows(ensemble: UniteEnsemble) -> None:
    """From now on let the ranks exchange whole rows of logits, and each take the fused step."""
    ranks = ensemble.ranks
    assert ranks is not None
    sizes = [member.num_logits for member in ensemble.members]

    def step(
        scores: Sequence[Scores], alignment: VocabAlignment, options: StepOptions, include: Tensor | None = None
    ) -> StepResult:
        own = scores[ranks.group.rank]
        assert isinstance(own, SpreadScores)
        assert own.own.logits is not None
        logits = own.own.logits.float()
        padded = torch.nn.functional.pad(logits, (0, max(sizes) - logits.shape[1]))
        found = ranks.group.gather(padded)
        return fused_step([found[m][:, :size] for m, size in enumerate(sizes)], alignment, options, include=include)

    unite.step_in_parts = step


def measure_rank(folder: Path, label: str, steps: int, out: Path) -> None:
    """In one of two processes: rank 0 checks the ids and writes the rows."""
    torch.set_num_threads(1)
    ensemble = UniteEnsemble.from_pretrained([str(folder / str(m)) for m in range(2)], ranks="auto", rank_timeout=120)
    assert ensemble.ranks is not None
    expected, rows = json.loads((folder / "ids.json").read_text()), []
    for exchange in ("top k", "whole vocabularies"):
        if exchange != "top k":
            send_whole_rows(ensemble)
        for batch in BATCHES:
            before = ensemble.ranks.group.sent_bytes
            times, ids = run(ensemble, batch, steps)
            if ids != expected[str(batch)]:
                raise SystemExit(f"{exchange}, batch {batch}: the ids are not those of one process")
            sent = (ensemble.ranks.group.sent_bytes - before) / (steps + WARM_UP)
            rows.append(row(label, f"2 ranks, {exchange}", batch, times, round(sent)))
    if ensemble.ranks.group.rank == 0:
        append_csv(out, rows)
    ensemble.close()


def row(label: str, call: str, batch: int, times: list[float], sent: int) -> dict[str, object]:
    """A row of the results."""
    return {"network": label, "call": call, "batch": batch, "sent_bytes": sent, **percentiles(times), **machine()}


def measure_one(folder: Path, label: str, steps: int, out: Path) -> None:
    """In one process, which writes down the members and the ids that the ranks have to give."""
    torch.set_num_threads(1)
    ensemble = load(2, "cpu")
    for m, member in enumerate(ensemble.members):
        member.model.save_pretrained(folder / str(m))
        member.tokenizer.save_pretrained(folder / str(m))
    ids, rows = {}, []
    for batch in BATCHES:
        times, ids[batch] = run(ensemble, batch, steps)
        rows.append(row(label, "one process", batch, times, 0))
    (folder / "ids.json").write_text(json.dumps(ids))
    append_csv(out, rows)


def start_ranks(commands: Sequence[Sequence[str]], environment: dict[str, str], arguments: Sequence[str]) -> None:
    """Start this script once per rank, each behind the words of a command, and wait."""
    processes = [
        subprocess.Popen(
            [*words, sys.executable, __file__, *arguments],
            env=os.environ | environment | {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0"},
        )
        for rank, words in enumerate(commands)
    ]
    codes = [process.wait() for process in processes]
    if any(codes):
        raise SystemExit(f"the ranks ended with {codes}")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "ranks_cpu.csv")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--network", default="loopback", help="what to call the network in the results")
    return parser.parse_args()


def main() -> None:
    options = parse()
    if "UNITE_BENCH_RANKS" in os.environ:  # a rank that this script has started
        measure_rank(Path(os.environ["UNITE_BENCH_RANKS"]), options.network, options.steps, options.out)
        return
    with tempfile.TemporaryDirectory() as folder, socket.socket() as found:
        measure_one(Path(folder), options.network, options.steps, options.out)
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
        found.close()
        start_ranks(
            [[], []],
            {"UNITE_BENCH_RANKS": folder, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_WORLD_SIZE": "2"},
            sys.argv[1:],
        )


if __name__ == "__main__":
    main()
