"""Decoding with exact boundaries gives the text and the probabilities of the plain statement of the rule."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
import toy_tokenizers
from conftest import load_real_tokenizer
from toy_models import cached_toy_model, toy_model

from unite_ext import UniteEnsemble, reference_exact
from unite_ext.decoding.covers import WalkLimits
from unite_ext.decoding.likelihood import score_continuations

PROMPTS = ["Once upon a time", "2024 was", "def main():\n", "A"]
LOADERS = [("llama", toy_tokenizers.byte_level), ("qwen2", toy_tokenizers.byte_level_digits)]
NOTHING_LEFT_OUT = WalkLimits(
    min_share=1e-6,
    unlikely_share=1e-6,
    merged_share=0.0,
    unlikely_byte=2.0,
    max_lag=1_000_000,
    kept_share=1e-12,
    max_ended=0.0,
)


@pytest.fixture(scope="module")
def two():
    """Two families of byte-level BPE."""
    models = [toy_model(kind, load(), seed=i) for i, (kind, load) in enumerate(LOADERS)]
    return UniteEnsemble(models, [load() for _, load in LOADERS], boundaries="exact")


@pytest.fixture(scope="module")
def three():
    """Three kinds of tokenizers, one with byte fallback, one member with a sliding window."""
    loaders = [*LOADERS, ("mistral-window", toy_tokenizers.sentencepiece)]
    models = [toy_model(kind, load(), seed=i) for i, (kind, load) in enumerate(loaders)]
    return UniteEnsemble(models, [load() for _, load in loaders], boundaries="exact")


def plain_members(ens: UniteEnsemble, prompt: str, allowed=None) -> list[reference_exact.ExactMember]:
    """The ensemble's members as the reference wants them: every path is run anew.

    `allowed` says of a vocabulary and a path which ids may follow, bool [V]; all that are eligible by default.
    """
    found = []
    for member, vocabulary in zip(ens.members, ens.alignment.vocabularies):
        prompt_ids = member.encode_prompt(prompt)
        eligible = torch.from_numpy(vocabulary.eligible)

        @cache
        def next_probs(path, member=member, prompt_ids=prompt_ids, eligible=eligible, vocabulary=vocabulary):
            own = eligible if allowed is None else eligible & allowed(vocabulary, path)
            with torch.no_grad():
                logits = member.model(input_ids=torch.tensor([[*prompt_ids, *path]]), use_cache=False).logits[0, -1]
            return logits[: len(own)].double().masked_fill(~own, -torch.inf).softmax(dim=0).tolist()

        found.append(
            reference_exact.ExactMember(
                vocabulary.token_bytes, vocabulary.eos_token_ids, next_probs, vocabulary.representatives()
            )
        )
    return found


def score(ens: UniteEnsemble, prompt: str, text: str, limits: WalkLimits | None = None) -> float:
    plan = ens.plan({}, generates=False)
    engine = ens.new_engine(plan, max_requests=1)
    engine.runner.exact.limits = limits or WalkLimits()
    ids = ens.alignment.encode_continuation(0, text.encode())
    engine.submit(prompt, plan.token_method, targets=ids)
    [request] = engine.run()
    return math.fsum(score.log_prob for score in request.scores)


def plain_score(ens: UniteEnsemble, prompt: str, text: str, **options) -> float:
    members, data, at, log_prob = plain_members(ens, prompt), text.encode(), 0, 0.0
    while at < len(data):
        steps = reference_exact.walk(members, data[:at], forced=list(data[at:]), **options)
        log_prob += math.fsum(math.log(p) for _, p in steps)
        at += len(steps)
    return log_prob


@pytest.mark.parametrize("text", ["James met", "\n    42", "né 中", "the the"])
def test_every_byte_asked_anew_is_the_byte_level_average(three, text):
    """Nothing left out: the probabilities are those of averaging byte by byte, over all tokenizations."""
    found = score(three, "Once", text, NOTHING_LEFT_OUT)
    assert found == pytest.approx(plain_score(three, "Once", text, max_ended=0.0, min_share=1e-7), abs=1e-4)


@pytest.mark.parametrize("text", ["James met", "\n    42", "né 中"])
def test_what_is_left_out_hardly_matters(three, text):
    found = score(three, "Once", text)
    assert found == pytest.approx(plain_score(three, "Once", text, max_ended=0.0, min_share=1e-7), abs=0.02 * len(text))


@pytest.mark.parametrize("text", ["qe la", "x\ne 9Z", "é~Jzam", "mes m\n\n42et "])
def test_unlikely_bytes_are_asked_about(two, text):
    """What follows a token that hardly anybody would have ended here is known only after asking: it is not 0."""
    found = score(two, "Once upon", text)
    assert found == pytest.approx(plain_score(two, "Once upon", text, max_ended=0.0, min_share=1e-7), abs=0.3)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_text_is_that_of_the_plain_rule(two, prompt):
    [request] = two.generate_each([prompt], max_new_tokens=8)
    members, data, at = plain_members(two, prompt), bytes(request.text), 0
    while at < min(len(data), 12):
        for symbol, p in reference_exact.walk(members, data[:at], max_ended=WalkLimits().max_ended, min_share=1e-4):
            if at < len(data) and symbol != data[at]:
                again = reference_exact.walk(members, data[:at], forced=[data[at]], min_share=1e-4)
                assert p - again[0][1] < 0.01, (data, at)  # too close to compare
                return
            at += 1
    assert at >= 4


def test_a_batch_gives_what_each_prompt_gives_alone(three):
    together = three.generate(PROMPTS, max_new_tokens=10)
    assert together == [three.generate(prompt, max_new_tokens=10) for prompt in PROMPTS]
    assert together == three.generate(PROMPTS, max_new_tokens=10, batch_size=2)
    assert together != three.generate(PROMPTS, max_new_tokens=10, boundaries="plain")


def test_streams_and_stop_strings(two):
    text = two.generate(PROMPTS[0], max_new_tokens=12)
    assert "".join(two.stream(PROMPTS[0], max_new_tokens=12)) == text
    stop = text[3:5]
    assert two.generate(PROMPTS[0], max_new_tokens=12, stop=stop) == text[: text.index(stop)]


def test_ids_are_every_members_own_of_the_text(three):
    output = three.generate(PROMPTS, max_new_tokens=10, return_dict=True)
    for text, own in zip(output.texts, output.token_ids):
        if "\N{REPLACEMENT CHARACTER}" in text:
            continue
        for m, ids in enumerate(own):
            assert ids == three.alignment.encode_continuation(m, text.encode())
        assert len(own[0]) <= 10
    assert set(output.finish_reasons) <= {"eos", "length"}


@pytest.mark.parametrize("primary", [0, 1, 2])
def test_a_walk_over_the_limit_is_cut(three, primary):
    """A step may be several tokens of the primary's."""
    cut = 0
    for limit in (1, 2, 3):
        options = {"max_new_tokens": limit, "primary": primary, "min_new_tokens": limit, "do_sample": True, "seed": 5}
        for request in three.generate_each([*PROMPTS, "中", "\n    "], trace=True, **options):
            assert len(request.ids) <= limit
            assert len(request.byte_records) == len(request.text) + (request.finish_reason == "eos")
            spelled = b"".join([three.alignment.token_bytes(primary, i) for i in request.ids])
            assert spelled == bytes(request.text)
            cut += request.num_steps < limit or request.finish_reason == "length"
    assert cut


def test_draws_are_those_of_the_seed(two):
    options = {"max_new_tokens": 8, "do_sample": True, "seed": 3}
    drawn = two.generate(PROMPTS, **options)
    assert drawn == two.generate(PROMPTS, batch_size=1, **options)
    assert drawn != two.generate(PROMPTS, **options | {"seed": 4})
    assert two.generate(PROMPTS, top_k=1, **options) == two.generate(PROMPTS, max_new_tokens=8)


def test_no_end_before_min_new_tokens(two):
    eager = two.generate(PROMPTS, max_new_tokens=6, min_new_tokens=6, return_dict=True)
    assert set(eager.finish_reasons) == {"length"}


def test_one_member_sums_over_its_tokenizations(two):
    """The text's probability is at least that of its own tokenization, and close to it or above."""
    alone = two.alone(0)
    text = " James met Jam"
    ids = alone.alignment.encode_continuation(0, text.encode())
    [path] = score_continuations(alone, [("Once", ids)], boundaries="plain", k=256)
    logits = alone.members[0].model(input_ids=torch.tensor([[*alone.members[0].encode_prompt("Once"), *ids]])).logits
    start = logits.shape[1] - len(ids) - 1
    eligible = torch.from_numpy(alone.alignment.vocabularies[0].eligible)
    values = logits[0, start:-1, : len(eligible)].double().masked_fill(~eligible, -torch.inf).log_softmax(dim=1)
    own = values.gather(1, torch.tensor(ids)[:, None]).sum().item()
    [found] = score_continuations(alone, [("Once", ids)], boundaries="exact")
    assert found.log_prob >= own - 0.05
    assert path.log_prob >= own  # normalised over the union


def test_a_full_context_ends_the_text():
    tokenizer = toy_tokenizers.byte_level()
    ens = UniteEnsemble([toy_model("llama", tokenizer, context=24)], [tokenizer], boundaries="exact")
    output = ens.generate("James met Jam", max_new_tokens=60, min_new_tokens=60, return_dict=True)
    assert output.finish_reasons == ["length"]
    assert 0 < len(output.token_ids[0][0]) < 60


def test_real_tokenizers():
    loaders = [("llama", "llama-3"), ("qwen2", "qwen2"), ("mistral-window", "mistral-7b-v0.3")]
    models = [cached_toy_model(kind, load_real_tokenizer, name, seed=i) for i, (kind, name) in enumerate(loaders)]
    ens = UniteEnsemble(models, [load_real_tokenizer(name) for _, name in loaders], boundaries="exact")
    together = ens.generate(PROMPTS[:2], max_new_tokens=4)
    assert together == [ens.generate(prompt, max_new_tokens=4) for prompt in PROMPTS[:2]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gate": 0.9}, "gate must be None"),
        ({"method": "gac"}, "boundaries must be 'plain' with method 'gac'"),
        ({"boundaries": "bytes"}, "boundaries must be one of 'plain', 'exact', got 'bytes'"),
    ],
)
def test_what_does_not_go_together_is_said(two, options, message):
    with pytest.raises(ValueError, match=message):
        two.generate("A", max_new_tokens=2, **options)
