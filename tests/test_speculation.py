"""Speculation changes how many passes a text takes, and never the text."""

from __future__ import annotations

import pytest
import torch
import toy_tokenizers
from conftest import load_real_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_models import cached_toy_model, toy_model

from unite_ext import GenerationOptions, StepOptions, UniteEnsemble
from unite_ext.decoding.draft_choice import DraftChooser
from unite_ext.decoding.ngrams import NGRAMS, Ngrams
from unite_ext.demo import COMPARABLE, load_member
from unite_ext.demo.problems import problem_set
from unite_ext.testing import Recorder

CLEAR = 1e-5  # a choice between probabilities closer than this may fall either way
PROMPTS = ["James met", "2024 was", "A", "The committee met on the 3rd and, after a long day, agreed", "def main():\n"]
DRAFTERS = [1, 4, 16, "auto", True, "ngram"]


@pytest.fixture(scope="module")
def pair():
    tokenizers = [toy_tokenizers.byte_level(), toy_tokenizers.sentencepiece()]
    models = [toy_model("llama", tokenizers[0], seed=3), toy_model("mistral-window", tokenizers[1], seed=4)]
    return UniteEnsemble(models, tokenizers)


@pytest.fixture(scope="module")
def demo():
    return UniteEnsemble([load_member(name) for name in COMPARABLE])


def assert_same_texts(ensemble, prompts, speculate, **options) -> tuple[int, int]:
    """Ids, ends and records are those of plain decoding, up to near-ties; returns drafted and accepted tokens."""
    plain = ensemble.generate(prompts, return_dict=True, **options)
    fast = ensemble.generate(prompts, return_dict=True, speculate=speculate, **options)
    compared = 0
    for row in range(len(prompts)):
        tops = [sorted(record.union_probs)[-2:] for record in plain.records[row]]
        clear = next((i for i, top in enumerate(tops) if len(top) == 2 and top[1] - top[0] < CLEAR), len(tops))
        for m in range(len(ensemble.members)):
            if m == options.get("primary", 0):
                assert fast.token_ids[row][m][:clear] == plain.token_ids[row][m][:clear]
        if clear == len(tops):
            assert fast.texts[row] == plain.texts[row]
            assert fast.token_ids[row] == plain.token_ids[row]
            assert fast.finish_reasons[row] == plain.finish_reasons[row]
            assert fast.num_steps[row] == plain.num_steps[row]
            for a, b in zip(fast.records[row], plain.records[row], strict=True):
                assert a.union_ids == b.union_ids
                assert a.winner == b.winner
                assert a.union_probs == pytest.approx(b.union_probs, abs=1e-4)
            assert sum(record.drafted for record in fast.records[row]) == fast.accepted[row]
        compared += clear
    assert compared > 10
    assert fast.accepted <= fast.drafted
    assert plain.rounds == [0] * len(prompts)
    return sum(fast.drafted), sum(fast.accepted)


@pytest.mark.parametrize("speculate", DRAFTERS)
def test_demo_problems(demo, speculate):
    prompts = [problem.prompt for problem in problem_set("dev", 3777, 9)][:4]
    drafted, accepted = assert_same_texts(demo, prompts, speculate, max_new_tokens=60)
    if speculate == 4:
        assert accepted > 0.6 * drafted > 20


@pytest.mark.parametrize("speculate", [4, "ngram"])
def test_one_prompt_alone(demo, speculate):
    prompts = [problem_set("dev", 3777, 9)[5].prompt]
    assert_same_texts(demo, prompts, speculate, max_new_tokens=60)


def test_any_member_drafts(demo):
    """Also one that is not the primary, by the end of its name."""
    prompts = [problem.prompt for problem in problem_set("dev", 3777, 9)][:3]
    for name in COMPARABLE:
        drafted, accepted = assert_same_texts(demo, prompts, name, max_new_tokens=40)
        assert drafted >= accepted > 0


@pytest.mark.parametrize("speculate", [1, 5, "ngram", "auto"])
@pytest.mark.parametrize("primary", [0, 1])
def test_random_models_and_windows(pair, speculate, primary):
    """Drafts are hardly ever right, and one member has a window."""
    assert_same_texts(pair, PROMPTS, speculate, max_new_tokens=24, primary=primary)


def test_real_tokenizers():
    """Re-tokenization reaches back before a draft's start."""
    loaders = [("llama", "llama-3"), ("qwen2", "qwen2"), ("mistral-window", "mistral-7b-v0.3")]
    models = [cached_toy_model(kind, load_real_tokenizer, name, seed=i) for i, (kind, name) in enumerate(loaders)]
    ensemble = UniteEnsemble(models, [load_real_tokenizer(name) for _, name in loaders])
    assert_same_texts(ensemble, PROMPTS[:3], 4, max_new_tokens=30)
    # The same member twice: every draft of the primary is right.
    member = ensemble.members[0]
    drafted, accepted = assert_same_texts(UniteEnsemble([member, member]), PROMPTS[:3], 4, max_new_tokens=30)
    assert accepted == drafted


def test_fewer_passes(demo):
    """A right draft of four saves passes of every other member."""
    prompts = [problem_set("dev", 3777, 9)[0].prompt]
    counts = []
    for speculate in (False, 4):
        passes = [0] * 3
        handles = [
            member.model.register_forward_pre_hook(lambda *_, m=m, passes=passes: passes.__setitem__(m, passes[m] + 1))
            for m, member in enumerate(demo.members)
        ]
        output = demo.generate(prompts, max_new_tokens=60, speculate=speculate, return_dict=True)
        for handle in handles:
            handle.remove()
        counts.append((passes, output))
    (plain, _), (fast, output) = counts
    assert fast[1] == fast[2] == output.rounds[0]
    assert fast[1] < 0.45 * plain[1]


@pytest.mark.parametrize("length", [1, 2, 5])
def test_stop_strings_inside_a_draft(demo, length):
    prompt = problem_set("dev", 3777, 9)[2].prompt
    full = demo.generate(prompt, max_new_tokens=50)
    for start in range(0, len(full) - length, 11):
        stop = full[start : start + length]
        plain = demo.generate(prompt, max_new_tokens=50, stop=stop, return_dict=True)
        fast = demo.generate(prompt, max_new_tokens=50, stop=stop, return_dict=True, speculate=6)
        assert (fast.texts, fast.finish_reasons, fast.num_steps) == (
            plain.texts, plain.finish_reasons, plain.num_steps,
        )  # fmt: skip
        assert fast.token_ids == plain.token_ids


@pytest.mark.parametrize("limit", range(1, 9))
def test_the_last_token_comes_at_the_same_place(demo, limit):
    prompt = problem_set("dev", 3777, 9)[1].prompt
    plain = demo.generate(prompt, max_new_tokens=limit, return_dict=True)
    fast = demo.generate(prompt, max_new_tokens=limit, return_dict=True, speculate=4)
    assert fast.token_ids == plain.token_ids
    assert fast.finish_reasons == plain.finish_reasons


def test_eos_too_early_is_kept_away(demo):
    """EOS would come after some 30 tokens, inside a draft."""
    prompts = [problem.prompt for problem in problem_set("dev", 3777, 9)][:2]
    ends = demo.generate(prompts, max_new_tokens=80, return_dict=True).num_steps
    assert max(ends) < 75
    assert_same_texts(demo, prompts, 5, max_new_tokens=80)
    assert_same_texts(demo, prompts, 5, max_new_tokens=80, min_new_tokens=min(ends) + 7)


@pytest.mark.parametrize("options", [{"repetition_penalty": 1.3}, {"k": 3, "duplicates": "drop"}, {"score": "probs"}])
def test_options_of_step_and_generation(demo, options):
    prompts = [problem.prompt for problem in problem_set("dev", 3777, 9)][:2]
    assert_same_texts(demo, prompts, 4, max_new_tokens=40, **options)


def test_processors_see_the_ids_of_each_place(demo):
    seen: dict[bool, list[list[int]]] = {False: [], True: []}

    def spy(ids, scores):
        seen[now].append(ids[0].tolist())
        return scores

    prompt = problem_set("dev", 3777, 9)[0].prompt
    for now in (False, True):
        demo.generate(prompt, max_new_tokens=12, logits_processor=[None, spy, None], speculate=3 if now else False)
    assert all(ids in seen[True] for ids in seen[False])


@pytest.mark.parametrize("method", ["gac", "packllm", "eva"])
def test_other_methods_speculate_too(demo, method):
    prompts = [problem.prompt for problem in problem_set("dev", 3777, 9)][:2]
    plain = demo.generate(prompts, max_new_tokens=30, method=method, return_dict=True)
    fast = demo.generate(prompts, max_new_tokens=30, method=method, return_dict=True, speculate=4)
    assert fast.texts == plain.texts
    assert sum(fast.accepted) > 10


def test_a_full_context_ends_the_text_at_the_same_place():
    tokenizers = [toy_tokenizers.byte_level(), toy_tokenizers.sentencepiece()]
    for contexts in ((4096, 20), (20, 4096)):
        models = [
            toy_model(kind, t, seed=i, context=context)
            for i, (kind, t, context) in enumerate(zip(("llama", "qwen2"), tokenizers, contexts))
        ]
        ensemble = UniteEnsemble(models, tokenizers)
        options = {"max_new_tokens": 60, "min_new_tokens": 60, "return_dict": True}
        plain = ensemble.generate(["James", "A"], **options)
        fast = ensemble.generate(["James", "A"], speculate=5, **options)
        assert (fast.token_ids, fast.finish_reasons) == (plain.token_ids, plain.finish_reasons)
        assert plain.finish_reasons == ["length", "length"]


def test_members_without_trees_and_members_elsewhere(demo):
    """One place at a time, and scores by parts: slower, and the same."""
    prompts = [problem_set("dev", 3777, 9)[0].prompt]
    expected = demo.generate(prompts, max_new_tokens=30)
    recorders = [Recorder(member) for member in demo.members]
    recording = UniteEnsemble(recorders, alignment=demo.alignment)
    assert recording.generate(prompts, max_new_tokens=30, speculate=4) == expected
    replayed = UniteEnsemble([r.recorded() for r in recorders], alignment=demo.alignment)
    assert replayed.generate(prompts, max_new_tokens=30, speculate=4) == expected


def test_plain_and_drafted_requests_share_an_engine(demo):
    plan = demo.plan({"max_new_tokens": 40})
    engine = demo.new_engine(plan, max_requests=6)
    prompts = [problem.prompt for problem in problem_set("dev", 3777, 9)][:6]
    kinds = [False, 4, "ngram", "auto", COMPARABLE[1], 2]
    requests = [
        engine.submit(p, plan.token_method, GenerationOptions(max_new_tokens=40, speculate=kind))
        for p, kind in zip(prompts, kinds)
    ]
    while engine.has_work:
        engine.step()
    assert [request.decoded() for request in requests] == demo.generate(prompts, max_new_tokens=40)
    assert requests[0].rounds == 0
    assert all(request.rounds for request in requests[1:])


def test_out_of_memory_in_a_round(demo):
    plan = demo.plan({"max_new_tokens": 30, "speculate": 4})
    prompts = [problem.prompt for problem in problem_set("dev", 3777, 9)][:6]
    expected = demo.generate(prompts, max_new_tokens=30)
    engine = demo.new_engine(plan, max_requests=6)
    requests = [engine.submit(p, plan.token_method, plan.generation) for p in prompts]
    calls = [0]

    def sometimes(*_):
        calls[0] += 1
        if calls[0] in (9, 25):
            raise torch.OutOfMemoryError("out of memory, as a test wants it")

    handles = [member.model.register_forward_pre_hook(sometimes) for member in demo.members[:2]]
    try:
        while engine.has_work:
            engine.step()
    finally:
        for handle in handles:
            handle.remove()
    assert calls[0] > 25
    assert [request.decoded() for request in requests] == expected


# Drafts


@pytest.mark.parametrize(
    ("ids", "length", "draft"),
    [
        ([1, 2, 3, 9, 1, 2, 3], 2, [9, 1]),
        ([5, 1, 2, 7, 8, 1, 2, 9, 4, 1, 2], 3, [9, 4, 1]),  # the last place counts
        ([3, 4, 1, 2, 7, 1, 2, 9, 3, 4, 1, 2], 1, [7]),  # the longer match counts
        ([1, 2, 3, 4], 4, []),
        ([1, 1, 1, 1], 4, [1]),  # what follows may be short
        ([1, 2, 3, 9, 1, 2, 3], 0, []),
        ([], 4, []),
    ],
)
def test_ngrams(ids, length, draft):
    assert Ngrams(ids).following(length) == draft


def looked_for(ids: list[int], length: int) -> list[int]:
    """The same, by looking through the whole text every time."""
    for n in NGRAMS:
        for at in range(len(ids) - n - 1, -1, -1):
            if ids[at : at + n] == ids[-n:]:
                return ids[at + n : at + n + length]
    return []


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=40), st.lists(st.integers(0, 3), max_size=20), st.integers(0, 8))
def test_the_index_finds_what_looking_finds(ids, more, length):
    index = Ngrams(ids)
    for n in range(len(more) + 1):
        assert index.following(length) == looked_for(ids + more[:n], length)
        index.extend(more[n : n + 1])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"speculate": 0}, ValueError, "speculate must be from 1 to 16, got 0"),
        ({"speculate": 17}, ValueError, "speculate must be from 1 to 16, got 17"),
        ({"speculate": 2.5}, TypeError, "speculate must be an int"),
        ({"speculate": "gpt"}, ValueError, r"speculate must be a number, 'auto', 'ngram' or a member \(.*qwen2"),
        ({"speculate": 4, "do_sample": True}, ValueError, "speculate must be False with do_sample"),
        ({"speculate": 4, "gate": 0.9}, ValueError, "speculate must be False with a gate"),
        ({"speculate": 4, "method": "mbr"}, ValueError, "speculate must be False with method 'mbr'"),
    ],
)
def test_what_cannot_be_speculated_is_refused_before_any_pass(demo, options, error, message, monkeypatch):
    monkeypatch.setattr(demo.members[0].model, "forward", lambda **_: pytest.fail("a model ran"))
    with pytest.raises(error, match=message):
        demo.generate("Mia has 12 pens.", **options)


def test_step_options_are_not_touched(demo):
    assert demo.plan({"speculate": 4, "k": 3}).step == StepOptions(k=3)


def test_the_primary_drafts_as_far_as_it_is_told_and_says_how_sure_it_was(demo):
    plan = demo.plan({"max_new_tokens": 20})
    engine = demo.new_engine(plan, max_requests=1)
    request = engine.submit(
        "Lucy has 36 apples and gets 5 new ones. How many has Lucy now?\n", plan.token_method, plan.generation
    )
    engine.step()
    asked: list[list[list[float]]] = []

    def goes_on(sure):
        asked.append([list(own) for own in sure])
        return [len(own) < 4 for own in sure]

    drafts = engine.runner.drafter.draft([request], 0, [16], goes_on)
    assert len(drafts.ids[0]) == 3
    assert [i for i, _ in drafts.guesses[0]][:3] == drafts.ids[0]
    sure = [one for _, one in drafts.guesses[0]]
    assert asked == [[sure[:n]] for n in range(1, 5)]
    assert all(0.5 <= one <= 1 for one in sure)
    assert max(sure) > 0.9


def test_where_nothing_is_worth_drafting_auto_asks_as_often_as_plain_decoding_and_learns(demo, monkeypatch):
    prompt, passes, learned = "Lucy has 36 apples and gets 5 new ones. How many has Lucy now?\n", [0], []
    demo.generate([prompt], max_new_tokens=4, speculate="auto")  # the first use tries what the models can
    handle = demo.members[0].model.register_forward_pre_hook(lambda *_: passes.__setitem__(0, passes[0] + 1))
    monkeypatch.setattr(DraftChooser, "goes_on", lambda self, size, sure: [False] * len(sure))
    monkeypatch.setattr(DraftChooser, "worthwhile", lambda self, requests, repeats: [[] for _ in requests])
    monkeypatch.setattr(DraftChooser, "learn", lambda self, guesses, taken: learned.append((len(guesses), list(taken))))
    try:
        plain = demo.generate([prompt], max_new_tokens=30, return_dict=True)
        alone, passes[0] = passes[0], 0
        auto = demo.generate([prompt], max_new_tokens=30, speculate="auto", return_dict=True)
    finally:
        handle.remove()
    assert auto.token_ids == plain.token_ids
    assert passes[0] == alone
    assert sum(count for count, _ in learned) >= 20
    assert [i for _, taken in learned for i in taken] == auto.token_ids[0][0][-sum(len(t) for _, t in learned) :]
