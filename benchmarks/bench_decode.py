"""The decode loop: time per step, and how much of it is spent outside the models' forward passes.

    python benchmarks/bench_decode.py                   appended to results/decode_cpu.csv
    python benchmarks/bench_decode.py --device cuda     the same on a GPU, appended to results/decode_cuda.csv

Members are tiny models with random weights and the real tokenizers of Llama-3, Qwen2 and Mistral-v0.3 (the folder that
UNITE_TEST_TOKENIZERS names), so that the forward passes cost little and the loop shows. Beside the ensemble: the sum of
the members' own Hugging Face `generate`, and the plain oracle of `unite_ext.reference`, which recomputes everything.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lib.measure import RESULTS, append_csv, machine, percentiles

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

from toy_models import toy_model

from unite_ext import UniteEnsemble, reference

MEMBERS = (("llama", "llama-3"), ("qwen2", "qwen2"), ("mistral", "mistral-7b-v0.3"))
LENGTHS = (1, 128, 1024)
BATCHES = (1, 8, 32)
WINDOW = 60  # steps measured from each length on


class ForwardClock:
    """Adds up the seconds spent in the members' forward passes."""

    def __init__(self, ensemble: UniteEnsemble, device: str) -> None:
        self.seconds = 0.0
        for member in ensemble.members:
            member.model.forward = self._timed(member.model.forward, device)

    def _timed(self, forward: Any, device: str) -> Any:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = forward(*args, **kwargs)
            if device == "cuda":
                torch.cuda.synchronize()
            self.seconds += time.perf_counter() - start
            return result

        return timed


def load(members: int, device: str) -> UniteEnsemble:
    """An ensemble of tiny models with real tokenizers."""
    from transformers import AutoTokenizer

    folder = os.environ.get("UNITE_TEST_TOKENIZERS")
    if not folder:
        raise SystemExit("UNITE_TEST_TOKENIZERS must name a folder with the tokenizers llama-3, qwen2, mistral-7b-v0.3")
    tokenizers = [AutoTokenizer.from_pretrained(Path(folder) / name) for _, name in MEMBERS[:members]]
    models = [toy_model(kind, t, seed=i).to(device) for i, ((kind, _), t) in enumerate(zip(MEMBERS, tokenizers))]
    return UniteEnsemble(models, tokenizers)


def prompts_of(batch: int) -> list[str]:
    """Prompts of different lengths."""
    return [f"Once upon a time number {i}" + ", and so on" * (i % 5) for i in range(batch)]


def ensemble_steps(
    ensemble: UniteEnsemble, clock: ForwardClock, batch: int, length: int
) -> dict[int, dict[str, list[float]]]:
    """Per length: seconds of every step in its window, whole and outside the forward passes."""
    steps = length + WINDOW
    plan = ensemble.plan({"max_new_tokens": steps, "min_new_tokens": steps})
    engine = ensemble.new_engine(plan, max_requests=batch)
    for prompt in prompts_of(batch):
        engine.submit(prompt, plan.token_method, plan.generation)
    times = []
    before, forward = time.perf_counter(), clock.seconds
    while engine.has_work:
        engine.step()
        now = time.perf_counter()
        times.append((now - before, now - before - (clock.seconds - forward)))
        before, forward = now, clock.seconds
    return {
        at: {
            "ensemble": [t for t, _ in times[at : at + WINDOW]],
            "outside forwards": [o for _, o in times[at : at + WINDOW]],
        }
        for at in LENGTHS
        if at <= length
    }


def hugging_face_step(ensemble: UniteEnsemble, batch: int, length: int) -> list[float]:
    """Seconds per token of every member's own `generate`, summed over the members."""
    total = 0.0
    for member in ensemble.members:
        ids = torch.ones(batch, 8, dtype=torch.long, device=member.device)
        start = time.perf_counter()
        member.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=length,
            min_new_tokens=length,
            do_sample=False,
            pad_token_id=0,
        )
        total += (time.perf_counter() - start) / length
    return [total]


def oracle_step(ensemble: UniteEnsemble, length: int) -> list[float]:
    """Seconds per step of the oracle at batch 1, averaged over a text of this length."""
    prompt = prompts_of(1)[0]
    ids = [member.encode_prompt(prompt) for member in ensemble.members]
    start = time.perf_counter()
    _, _, steps = reference.generate(
        [m.model for m in ensemble.members], ensemble.alignment, ids, max_new_tokens=length
    )
    return [(time.perf_counter() - start) / len(steps)]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="two members, lengths up to 128")
    parser.add_argument("--out", type=Path, help="CSV file to append to")
    arguments = parser.parse_args()
    facts, rows = machine(arguments.device), []

    def record(members: int, batch: int, length: int, call: str, samples: list[float]) -> None:
        rows.append(facts | {"members": members, "batch": batch, "length": length, "call": call} | percentiles(samples))
        print(
            f"members={members} B={batch:<3} length={length:<5} {call:17} {rows[-1]['p50_us'] / 1e3:10.3f} ms",
            flush=True,
        )

    for members in (2,) if arguments.quick else (2, 3):
        ensemble = load(members, arguments.device)
        for batch in BATCHES:
            record(members, batch, 128, "hf generate", hugging_face_step(ensemble, batch, 128))
        record(members, 1, 128, "oracle", oracle_step(ensemble, 128))
        clock = ForwardClock(ensemble, arguments.device)
        for batch in BATCHES:
            length = 128 if arguments.quick else max(LENGTHS)
            for at, calls in ensemble_steps(ensemble, clock, batch, length).items():
                for call, samples in calls.items():
                    record(members, batch, at, call, samples)
    append_csv(arguments.out or RESULTS / f"decode_{arguments.device}.csv", rows)


if __name__ == "__main__":
    main()
