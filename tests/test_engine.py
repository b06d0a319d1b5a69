"""Requests that join and leave at any step give the results that each gives alone, and free all memory."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
import toy_tokenizers
from conftest import load_real_tokenizer
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from toy_models import cached_toy_model, toy_model

from unite_ext import Engine, GenerationOptions, StepOptions, UniteEnsemble
from unite_ext.decoding.engine import Advanced, Failed, Finished
from unite_ext.members import context as contexts
from unite_ext.members.context import common_length
from unite_ext.methods.unite import Unite
from unite_ext.testing import Recorder

CLEAR = 1e-5  # a choice between probabilities closer than this may fall either way
HEADER = "Question: how many?\nAnswer: " + "one and two and three, " * 4
PROMPTS = (
    "James met", "A", "2024 was a year of", "The committee met on the 3rd and, after a long day, agreed",
    HEADER + "so four.", HEADER + "so five, said James.", "x" * 40, "Once upon a time, " * 9,
)  # fmt: skip
LENGTHS = (1, 5, 12)


@pytest.fixture(scope="module")
def pair():
    tokenizers = [toy_tokenizers.byte_level(), toy_tokenizers.sentencepiece()]
    models = [toy_model("llama", tokenizers[0], seed=3), toy_model("mistral-window", tokenizers[1], seed=4)]
    return UniteEnsemble(models, tokenizers)


def new_engine(ensemble, **options) -> Engine:
    return Engine(ensemble.members, ensemble.alignment, **options)


def run(engine: Engine) -> list:
    """All events until nothing is left to do."""
    events = []
    while engine.has_work:
        events += engine.step()
    return events


def unite(ensemble, **options) -> Unite:
    return Unite(ensemble.alignment, ensemble.members, StepOptions(**options))


def alone(ensemble, prompt, options, method):
    """The request on an engine of its own, and how many of its tokens can be compared."""
    engine = new_engine(ensemble, max_requests=1)
    request = engine.submit(prompt, method, replace(options, gate=None), index=0, keeps_records=True)
    run(engine)
    for i, record in enumerate(request.records):
        top = sorted(record.union_probs)[-2:]
        if len(top) == 2 and top[1] - top[0] < CLEAR:
            return request, i
    return request, len(request.records)


def assert_same(got, expected, clear: int) -> None:
    assert got.ids[:clear] == expected.ids[:clear]
    if clear == len(expected.records):
        assert bytes(got.text) == bytes(expected.text)
        assert got.ids == expected.ids
        assert got.finish_reason == expected.finish_reason
        assert got.num_steps == expected.num_steps


def assert_empty(engine: Engine) -> None:
    """Check that no request has left anything in the engine."""
    assert not engine.has_work
    for context in engine.contexts:
        assert context._batch.ids == []
        assert context._batch.kv is None
        assert (context._newcomers, context._row_of, context._order, context._unread) == ({}, {}, [], set())


class RandomArrivals(RuleBasedStateMachine):
    """Submit, step, cancel, fail and run out of memory in any order."""

    ensemble: UniteEnsemble
    known: dict

    def __init__(self) -> None:
        super().__init__()
        self.engine = new_engine(self.ensemble, max_requests=3, prefill_chunk=24)
        self.methods = [unite(self.ensemble), unite(self.ensemble, k=3, weights=[1, 2])]
        self.requests: list = []
        self.cancelled: set[int] = set()

    @rule(
        prompt=st.sampled_from(PROMPTS), length=st.sampled_from(LENGTHS), method=st.integers(0, 1),
        stop=st.sampled_from(["", "e"]),
    )  # fmt: skip
    def submit(self, prompt, length, method, stop):
        options = GenerationOptions(max_new_tokens=length, stop=stop or None)
        request = self.engine.submit(prompt, self.methods[method], options)
        self.requests.append((request, (prompt, length, method, stop)))

    @precondition(lambda self: self.engine.has_work)
    @rule(steps=st.integers(1, 4))
    def step(self, steps):
        for _ in range(steps):
            self.engine.step()

    @precondition(lambda self: any(not r.done for r, _ in self.requests))
    @rule(data=st.data())
    def cancel(self, data):
        going = [r for r, _ in self.requests if not r.done and r.key not in self.cancelled]
        if going:
            request = data.draw(st.sampled_from(going))
            self.engine.cancel(request)
            self.cancelled.add(request.key)

    @precondition(lambda self: self.engine.num_running > 1)
    @rule(member=st.integers(0, 1))
    def run_out_of_memory(self, member):
        """At the next pass of a member, whatever it is for."""
        model = self.ensemble.members[member].model
        handle = model.register_forward_pre_hook(_out_of_memory)
        try:
            self.engine.step()
        finally:
            handle.remove()

    @invariant()
    def room_is_kept(self):
        assert self.engine.num_running <= 3

    def teardown(self):
        run(self.engine)
        for request, case in self.requests:
            if request.key in self.cancelled:
                continue
            prompt, length, method, stop = case
            if case not in self.known:
                options = GenerationOptions(max_new_tokens=length, stop=stop or None)
                self.known[case] = alone(self.ensemble, prompt, options, self.methods[method])
            assert request.error is None
            assert_same(request, *self.known[case])
        assert_empty(self.engine)


def _out_of_memory(*_):
    raise torch.OutOfMemoryError("out of memory, as a test wants it")


def test_random_arrivals(pair):
    case = type("Case", (RandomArrivals,), {"ensemble": pair, "known": {}}).TestCase
    case.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
    case().runTest()


def test_arrivals_on_real_tokenizers():
    """Three families, one with a window; `test_random_arrivals` draws many more orders with small vocabularies."""
    loaders = [("llama", "llama-3"), ("qwen2", "qwen2"), ("mistral-window", "mistral-7b-v0.3")]
    models = [cached_toy_model(kind, load_real_tokenizer, name, seed=i) for i, (kind, name) in enumerate(loaders)]
    ensemble = UniteEnsemble(models, [load_real_tokenizer(name) for _, name in loaders])
    rng = random.Random(0)
    engine = new_engine(ensemble, max_requests=4, prefill_chunk=16)
    method = unite(ensemble)
    waiting = [(p, GenerationOptions(max_new_tokens=rng.choice((3, 8, 20)))) for p in rng.sample(PROMPTS, 6)]
    requests = []
    while waiting or engine.has_work:
        if waiting and rng.random() < 0.3:
            requests.append((engine.submit(waiting[0][0], method, waiting[0][1]), *waiting.pop(0)))
        engine.step()
    compared = 0
    for request, prompt, options in requests:
        expected, clear = alone(ensemble, prompt, options, method)
        assert_same(request, expected, clear)
        compared += clear
    assert compared > 30
    assert_empty(engine)


def test_events_tell_what_happened(pair):
    engine = new_engine(pair)
    request = engine.submit("James met", unite(pair), GenerationOptions(max_new_tokens=3))
    events = run(engine)
    assert [type(event) for event in events] == [Advanced, Advanced, Finished]
    assert all(event.request is request for event in events)
    assert engine.step() == []


def test_each_request_has_its_own_options(pair):
    """Other k and weights in one engine: as in ensembles of their own."""
    engine = new_engine(pair)
    cases = [{}, {"k": 2}, {"weights": [1, 5]}, {"duplicates": "drop"}, {"score": "probs"}]
    requests = [
        engine.submit("James met", unite(pair, **case), GenerationOptions(max_new_tokens=6 + i))
        for i, case in enumerate(cases)
    ]
    run(engine)
    for i, (case, request) in enumerate(zip(cases, requests)):
        assert request.decoded() == pair.generate("James met", max_new_tokens=6 + i, **case)


def count_fed_ids(member) -> tuple[list[int], object]:
    """How many ids each pass of a member takes, and what ends the counting."""
    fed: list[int] = []

    def note(_, arguments, keywords):
        fed.append(keywords["input_ids"].shape[0] * keywords["input_ids"].shape[1])

    return fed, member.model.register_forward_pre_hook(note, with_kwargs=True)


def test_a_long_prompt_is_read_in_chunks_beside_the_others(pair):
    engine = new_engine(pair, prefill_chunk=16)
    method = unite(pair)
    first = engine.submit("A", method, GenerationOptions(max_new_tokens=60, min_new_tokens=60))
    while not first.ids:
        engine.step()
    long = engine.submit("Once upon a time, " * 20, method, GenerationOptions(max_new_tokens=2))
    steps = len(pair.members[0].encode_prompt("Once upon a time, " * 20)) // 16
    fed, handle = count_fed_ids(pair.members[0])
    try:
        before = first.num_steps
        while not long.ids:
            engine.step()
    finally:
        handle.remove()
    assert max(fed) <= 16
    assert first.num_steps - before >= steps - 1
    run(engine)
    assert_same(long, *alone(pair, "Once upon a time, " * 20, GenerationOptions(max_new_tokens=2), method))


@pytest.mark.parametrize("max_requests", [2, 6])
def test_a_shared_beginning_is_read_once(pair, max_requests):
    prompts = [HEADER * 3 + f"so {i}." for i in range(6)]
    lengths = [len(pair.members[0].encode_prompt(prompt)) for prompt in prompts]
    options = GenerationOptions(max_new_tokens=4)
    engine = new_engine(pair, max_requests=max_requests)
    requests = [engine.submit(prompt, unite(pair), options) for prompt in prompts]
    fed, handle = count_fed_ids(pair.members[0])
    try:
        run(engine)
    finally:
        handle.remove()
    assert sum(fed) < 2 * max(lengths)  # one of them, the others' ends, and what was generated
    for request, prompt in zip(requests, prompts):
        assert_same(request, *alone(pair, prompt, options, unite(pair)))


def test_a_request_whose_method_cannot_start_ends_alone(pair, monkeypatch):
    def refuse(prompt_ids):
        raise ValueError("no start from here")

    method = unite(pair)
    monkeypatch.setattr(method, "start", refuse)
    engine = new_engine(pair)
    bad = engine.submit("A", method, GenerationOptions(max_new_tokens=3))
    good = engine.submit("James met", unite(pair), GenerationOptions(max_new_tokens=3))
    events = run(engine)
    assert [event.request for event in events if isinstance(event, Failed)] == [bad]
    assert str(bad.error) == "no start from here"
    assert bad.ids == []
    assert_same(good, *alone(pair, "James met", GenerationOptions(max_new_tokens=3), unite(pair)))
    assert_empty(engine)


def test_a_failing_request_ends_alone(pair):
    """A member without a finite logit for one request: the others go on, and generate says whose it was."""
    marked = pair.members[1].encode_prompt("zzz")[-1]

    def spoil(module, arguments, keywords, output):
        for row, ids in enumerate(keywords["input_ids"].tolist()):
            if marked in ids:
                output.logits[row] = float("nan")

    options = GenerationOptions(max_new_tokens=5)
    expected = [alone(pair, prompt, options, unite(pair)) for prompt in ("A", "James met")]
    handle = pair.members[1].model.register_forward_hook(spoil, with_kwargs=True)
    try:
        engine = new_engine(pair)
        good = [engine.submit(prompt, unite(pair), options) for prompt in ("A", "James met")]
        bad = engine.submit("zzz", unite(pair), options)
        events = run(engine)
        assert [event.request for event in events if isinstance(event, Failed)] == [bad]
        with pytest.raises(ValueError, match=r"prompt 2, step 1: MistralForCausalLM has no eligible logit above -inf"):
            raise bad.error
        for request, (reference, clear) in zip(good, expected):
            assert_same(request, reference, clear)
        assert_empty(engine)
        finished = []
        with pytest.raises(ValueError, match="prompt 0, step 1: Mistral"):
            finished.extend(r.index for r in pair.generate_each(["zzz", "A"], max_new_tokens=3))
    finally:
        handle.remove()


def test_cancelling_leaves_nothing(pair):
    engine = new_engine(pair, max_requests=2, prefill_chunk=8)
    method = unite(pair)
    requests = [engine.submit(prompt, method) for prompt in PROMPTS[:5]]
    for _ in range(6):
        engine.step()
    assert engine.num_waiting > 0
    for request in requests:
        engine.cancel(request)
        engine.cancel(request)  # again: nothing happens
    assert_empty(engine)
    assert not any(request.done for request in requests)


def test_out_of_memory_sends_the_newer_half_back(pair, caplog):
    """A member that takes two rows at most: all texts come, in passes of two."""
    options = GenerationOptions(max_new_tokens=8)
    expected = [alone(pair, prompt, options, unite(pair)) for prompt in PROMPTS[:5]]

    def at_most_two(_, arguments, keywords):
        if keywords["input_ids"].shape[0] > 2:
            raise torch.OutOfMemoryError("out of memory, as a test wants it")

    handle = pair.members[0].model.register_forward_pre_hook(at_most_two, with_kwargs=True)
    try:
        engine = new_engine(pair)
        requests = [engine.submit(prompt, unite(pair), options) for prompt in PROMPTS[:5]]
        run(engine)
    finally:
        handle.remove()
    for request, (reference, clear) in zip(requests, expected):
        assert request.error is None
        assert_same(request, reference, clear)
    assert "LlamaForCausalLM is out of memory on cpu with 5 requests" in caplog.text
    assert "2 go on, the others wait" in caplog.text
    assert_empty(engine)


def test_what_ended_before_a_lack_of_memory_has_ended(pair):
    """Requests of several kinds are asked in turn: one that drafts has ended when the plain ones run out of memory."""
    options = GenerationOptions(max_new_tokens=4)
    expected = [alone(pair, prompt, options, unite(pair)) for prompt in PROMPTS[:2]]
    first = alone(pair, "A", GenerationOptions(max_new_tokens=1), unite(pair))[0]
    engine = new_engine(pair)
    plain = [engine.submit(prompt, unite(pair), options) for prompt in PROMPTS[:2]]
    drafting = engine.submit("A", unite(pair), GenerationOptions(max_new_tokens=1, speculate=1))
    scoring = engine.submit("A", unite(pair), targets=pair.alignment.encode_continuation(0, b" the"))
    calls = [0]

    def third_pass_fails(*_):
        calls[0] += 1
        if calls[0] == 3:
            raise torch.OutOfMemoryError("out of memory, as a test wants it")

    handle = pair.members[0].model.register_forward_pre_hook(third_pass_fails)
    try:
        events = run(engine)
    finally:
        handle.remove()
    assert calls[0] > 3
    assert drafting.ids == first.ids
    for request in (drafting, scoring):
        assert [type(event) for event in events if event.request is request] == [Finished]
    for request, (reference, clear) in zip(plain, expected):
        assert_same(request, reference, clear)
    assert_empty(engine)


def test_requests_wait_for_cache_memory(pair):
    options = GenerationOptions(max_new_tokens=6)
    lengths = [max(len(m.encode_prompt(p)) for m in pair.members) + 6 for p in PROMPTS[:4]]
    room = 2 * max(lengths) * sum(member.bytes_per_token for member in pair.members)
    engine = new_engine(pair, cache_memory=room)
    requests = [engine.submit(prompt, unite(pair), options) for prompt in PROMPTS[:4]]
    most = 0
    while engine.has_work:
        engine.step()
        most = max(most, engine.num_running)
    assert 1 < most < 4
    for request, prompt in zip(requests, PROMPTS):
        assert_same(request, *alone(pair, prompt, options, unite(pair)))


def test_a_request_that_can_never_fit_fails_with_the_figure(pair):
    engine = new_engine(pair, cache_memory=20_000)
    wide = engine.submit("A", unite(pair), GenerationOptions(max_new_tokens=3000))
    small = engine.submit("A", unite(pair), GenerationOptions(max_new_tokens=2))
    run(engine)
    assert small.finish_reason
    with pytest.raises(RuntimeError, match=r"prompt 0 needs up to 0\.\d\d GB for caches on cpu, where"):
        raise wide.error


def test_bytes_per_token_are_those_of_the_cache(pair):
    for member in pair.members:
        context = member.new_context(max_requests=1)
        context.join(0, [1, 2, 3, 4, 5])
        context.prefill(100)
        context.evaluate([0])
        layers = context._batch.kv.layers
        held = sum(t.numel() * t.element_size() for layer in layers for t in (layer.keys, layer.values))
        assert held == 5 * member.bytes_per_token


@pytest.mark.parametrize("options", [{}, {"score": "probs", "duplicates": "drop", "k": 4}, {"weights": [3, 1]}])
def test_a_second_kind_of_member_fits(pair, options):
    """Recorded members offer no whole logits, so the step runs in parts, and every number is the same."""
    recorders = [Recorder(member) for member in pair.members]
    recording = UniteEnsemble(recorders, alignment=pair.alignment)
    prompts = list(PROMPTS[:3])
    expected = recording.generate(prompts, max_new_tokens=10, return_dict=True, **options)
    assert expected.texts == pair.generate(prompts, max_new_tokens=10, **options)
    for whole in ([False, False], [True, False], [True, True]):
        members = [recorder.recorded(whole=w) for recorder, w in zip(recorders, whole)]
        got = UniteEnsemble(members, alignment=pair.alignment).generate(
            prompts, max_new_tokens=10, return_dict=True, **options
        )
        assert got == expected
    with pytest.raises(ValueError, match="has no recording of the prompt 'B'"):
        UniteEnsemble(members, alignment=pair.alignment).generate("B")


def test_bad_engines_and_requests(pair):
    with pytest.raises(ValueError, match="max_requests must be from 1"):
        new_engine(pair, max_requests=0)
    with pytest.raises(ValueError, match="prefill_chunk must be from 1"):
        new_engine(pair, prefill_chunk=0)
    engine = new_engine(pair)
    with pytest.raises(ValueError, match="prompt must hold one list of ids per member, 2, got 1"):
        engine.submit([[1, 2]], unite(pair))
    with pytest.raises(ValueError, match="targets must hold at least one id"):
        engine.submit("A", unite(pair), targets=[])
    assert not engine.has_work


@pytest.mark.parametrize("n", range(9))
def test_common_length(n):
    a = list(range(8))
    assert common_length(a, a[:n] + [99] * (8 - n)) == n
    assert common_length(a[:n], a) == n
    assert contexts.MIN_SHARED > 8
