"""What ensembles are asked for in one process and in several, and what they say: as JSON, with all bits of numbers."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import toy_tokenizers
from toy_models import toy_model

from unite_ext import GenerationOptions, UniteEnsemble
from unite_ext.decoding.likelihood import score_continuations
from unite_ext.decoding.prompt_ids import EncodedPrompt, encode_prompt

PROMPTS = ["James met", "A", "Once upon a time, " * 4, "x" * 40, "2024 was a year of the"]
LONG = "the committee met and agreed, " * 30


def bits(value: Any) -> Any:
    """JSON with every float by its bits."""
    if isinstance(value, float):
        return struct.pack("<d", value).hex()
    if isinstance(value, (list, tuple)):
        return [bits(v) for v in value]
    return value


def request_said(request: Any) -> Any:
    """A request's ids in all members, why it ended, and its steps."""
    return [
        request.index, [request.token_ids(m) for m in range(len(request.syncs))], request.finish_reason,
        request.num_steps, request.gated_steps, repr(request.error),
        [bits([r.union_ids, r.union_probs, r.member_probs, r.winner, r.gated, r.drafted]) for r in request.records],
    ]  # fmt: skip


def generated(**options: Any) -> Callable[[UniteEnsemble], Any]:
    """Generate from all prompts."""

    def run(ensemble: UniteEnsemble) -> Any:
        torch.manual_seed(11)  # rank 0's is taken where none is given
        given = {"max_new_tokens": 12, "trace": True, **options}
        found = ensemble.generate_each(PROMPTS, **given)
        return [request_said(r) for r in sorted(found, key=lambda r: r.index)]

    return run


def drafts_of_the_other(ensemble: UniteEnsemble) -> Any:
    """The second member drafts three tokens in every round."""
    plan = ensemble.plan({"speculate": "B", "max_new_tokens": 12})
    engine = ensemble.new_engine(plan, max_requests=8)
    requests = [engine.submit(p, plan.token_method, plan.generation, keeps_records=True) for p in PROMPTS]
    for request in requests:
        request.draft_length = 3  # else what is measured to be fastest, which differs from run to run
    while engine.has_work:
        engine.step()
    return [request_said(request) for request in requests]


def scored(**options: Any) -> Callable[[UniteEnsemble], Any]:
    """Score two continuations."""

    def run(ensemble: UniteEnsemble) -> Any:
        primary = options.get("primary", 0)
        pairs = [
            (prompt, ensemble.alignment.encode_continuation(primary, text))
            for prompt, text in (("James met", b" Jam at the Jamboree"), ("A", b"naive \xd0\xbc\xd0\xb8\xd1\x80 42"))
        ]
        found = sorted(score_continuations(ensemble, pairs, **options), key=lambda one: one.index)
        return [bits([one.index, one.log_prob, one.is_greedy]) for one in found]

    return run


_KEPT: list[Any] = []


def kept_engine(ensemble: UniteEnsemble) -> Any:
    """An engine that some process keeps when the others have let go of it is nobody else's affair."""
    plan = ensemble.plan({"max_new_tokens": 4})
    engine = ensemble.new_engine(plan, max_requests=1)
    engine.submit("A", plan.token_method, plan.generation)
    texts = [request.decoded() for request in engine.run()]
    if ensemble.ranks is not None and ensemble.ranks.group.rank:
        _KEPT.append(engine)
    del engine
    return [*texts, ensemble.generate("James met", max_new_tokens=4)]


def arrivals(ensemble: UniteEnsemble) -> Any:
    """Requests that come late, one of them long, and some that are cancelled, waiting or running; k differs."""
    plan, other = ensemble.plan({}), ensemble.plan({"k": 3, "weights": [1.0] * (len(ensemble.members) - 1) + [2.0]})
    engine = ensemble.make_engine(primary=0, max_requests=3, prefill_chunk=16)
    options = GenerationOptions(max_new_tokens=14)

    def submit(prompt: str, chosen: Any = plan) -> Any:
        return engine.submit(prompt, chosen.token_method, options, keeps_records=True)

    requests = [submit("James met"), submit("A", other)]
    for _ in range(4):
        engine.step()
    requests += [submit(LONG), submit("x" * 20), submit("never runs")]
    engine.cancel(requests[4])
    for _ in range(3):
        engine.step()
    engine.cancel(requests[0])
    requests.append(submit("the the", other))
    while engine.has_work:
        engine.step()
    return [request_said(request) for request in requests]


def start_state(ensemble: UniteEnsemble) -> Any:
    """B writes a space before its text, the others do not: each leads, drafts, and is asked how likely a text is."""
    starts = tuple(member.name.endswith("B") for member in ensemble.members)
    vocabularies = ensemble.alignment.vocabularies
    prompts = [EncodedPrompt(encode_prompt(ensemble.members, vocabularies, p).ids, starts) for p in PROMPTS]
    found: list[Any] = []
    for options in ({}, {"primary": 1}, {"speculate": 2}):
        plan = ensemble.plan({"max_new_tokens": 8, **options})
        engine = ensemble.new_engine(plan, max_requests=8)
        requests = [engine.submit(p, plan.token_method, plan.generation, keeps_records=True) for p in prompts]
        while engine.has_work:
            engine.step()
        found += [[request_said(r), [record.starts for record in r.records]] for r in requests]
    for likelihood in ("union", "full"):
        pairs = [(prompt, ensemble.alignment.encode_continuation(0, b"Jam at the 42")) for prompt in prompts[:2]]
        scores = sorted(score_continuations(ensemble, pairs, likelihood=likelihood), key=lambda one: one.index)
        found += [bits([one.index, one.log_prob, one.is_greedy]) for one in scores]
    return found


def out_of_memory(**options: Any) -> Callable[[UniteEnsemble], Any]:
    """The last member runs out of memory in its third pass: half of the requests read their prompts again."""

    def run(ensemble: UniteEnsemble) -> Any:
        model = getattr(ensemble.members[-1], "model", None)  # of this process, or of another
        passes = []

        def fail(*_: object) -> None:
            passes.append(0)
            if len(passes) == 3:
                raise torch.OutOfMemoryError("as a test wants it")

        handle = None if model is None else model.register_forward_pre_hook(fail)
        try:
            return generated(trace=False, **options)(ensemble)
        finally:
            if handle is not None:
                assert len(passes) > 3
                handle.remove()

    return run


CASES: dict[str, Callable[[UniteEnsemble], Any]] = {
    "plain": generated(),
    "batches": generated(batch_size=2),
    "primary": generated(primary=1),
    "weights": generated(weights=[1, 3], k=4),
    "probs": generated(score="probs"),
    "drop": generated(duplicates="drop"),
    "product": generated(combine="product", weights=[1.0, -0.5]),
    "sampling": generated(do_sample=True, temperature=0.8, top_p=0.9, seed=3),
    "own seed": generated(do_sample=True),
    "gate": generated(gate=0.3),
    "gate of the other": generated(gate=0.3, primary=1, batch_size=3),
    "penalty": generated(repetition_penalty=1.3, min_new_tokens=12),
    "stop": generated(stop=["e", "the"]),
    "drafts": generated(speculate=3),
    "drafts of the other": drafts_of_the_other,
    "n-grams": generated(speculate="ngram"),
    "auto drafts": generated(speculate="auto", max_new_tokens=24, trace=False),
    "expression": generated(regex="[a-z ]{3,9}", speculate=2),
    "voting": generated(method="voting", trace=False),
    "likelihood": scored(),
    "likelihood by the other": scored(primary=1, score="probs"),
    "full likelihood": scored(likelihood="full"),
    "start state": start_state,
    "arrivals": arrivals,
    "engines of different lives": kept_engine,
    "out of memory": out_of_memory(),
    "out of memory, its scores being changed": out_of_memory(repetition_penalty=1.3, primary=1),
    "out of memory in a gate": out_of_memory(gate=0.3, primary=1),
}
OF_THREE = (
    "plain", "probs", "own seed", "gate of the other", "drafts of the other", "full likelihood", "start state",
    "arrivals",
)  # fmt: skip
"""Those that are run with three members as well."""
LED = (
    "plain", "start state", "own seed", "gate", "auto drafts", "voting", "full likelihood", "arrivals", "out of memory",
)  # fmt: skip
"""Those that rank 0 alone is asked for as well."""
MEMBERS = {"A": ("llama", "byte_level"), "B": ("mistral-window", "sentencepiece"), "C": ("qwen2", "byte_level")}


def save_members(folder: Path) -> list[Path]:
    """Write small models, one with a window and two with the same tokenizer, into folders A, B and C."""
    for name, (kind, tokenizer) in MEMBERS.items():
        loaded = getattr(toy_tokenizers, tokenizer)()
        toy_model(kind, loaded, seed=ord(name)).save_pretrained(folder / name)
        loaded.save_pretrained(folder / name)
    return [folder / name for name in MEMBERS]


def load(folders: list[Path], **options: Any) -> UniteEnsemble:
    """An ensemble of saved models; the members are called by the last letter of their folders."""
    return UniteEnsemble.from_pretrained([str(folder) for folder in folders], **options)


def run_all(ensemble: UniteEnsemble, names: Any) -> dict[str, Any]:
    """What an ensemble says in these cases, as JSON gives it back."""
    return {name: json.loads(json.dumps(CASES[name](ensemble))) for name in names}


def run_rank(rank: int, folders: list[Path], names: list[str], led: Sequence[str], out: Path) -> None:
    """In one process of several: every rank is asked for these cases, then rank 0 alone for the led ones."""
    ensemble = load(folders, ranks="auto", rank_timeout=120)
    found: dict[str, Any] = {"auto": run_all(ensemble, names), "cost": cost(ensemble)}
    ensemble.close()
    if led:
        ensemble = load(folders, ranks="led", rank_timeout=120)
        if rank:
            ensemble.follow()
        else:
            found["led"] = run_all(ensemble, led)
        ensemble.close()
    (out / f"{rank}.json").write_text(json.dumps(found))


def cost(ensemble: UniteEnsemble) -> Any:
    """Bytes that this process sends and exchanges that it takes part in, per step, at three and one requests."""
    assert ensemble.ranks is not None
    group, found = ensemble.ranks.group, []
    for prompts in (["A", "James met", "x"], ["A"]):
        plan = ensemble.plan({"max_new_tokens": 50, "min_new_tokens": 50})
        engine = ensemble.new_engine(plan, max_requests=4)
        for prompt in prompts:
            engine.submit(prompt, plan.token_method, plan.generation)
        for _ in range(3):
            engine.step()
        before = group.sent_bytes, group.num_exchanges
        for _ in range(10):
            engine.step()
        found.append([(group.sent_bytes - before[0]) / 10, (group.num_exchanges - before[1]) / 10])
    return found
