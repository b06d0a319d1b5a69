"""A member that stays away: what is tried again, what ends, what goes on without it, and what is never shown."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections import Counter

import pytest
from fastapi.responses import JSONResponse
from stub_servers import Stub, cut_off, running_stub
from test_http_members import OPENER, OTHER, PROMPTS, beside, local, member_of, unite

from unite_ext import Engine, Trace, UniteEnsemble
from unite_ext.decoding.engine import Failed, Finished
from unite_ext.decoding.likelihood import score_continuations
from unite_ext.demo import model_folder
from unite_ext.members.base import MemberAway
from unite_ext.members.http import HttpMember

KEY = "sk-very-secret-Äö".encode().hex()


@pytest.fixture(scope="module")
def running():
    with running_stub("vllm", OTHER) as stub:
        yield stub


@pytest.fixture
def stub(running) -> Stub:
    running.calls.clear()
    running.fault = lambda path, body: None
    return running


def status(code: int, message: str = "", **headers: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message}}, code, headers=headers)


def first_times(times: int, answer):
    """A fault of the first calls of every body."""
    seen: Counter[str] = Counter()

    def fault(path, body):
        key = json.dumps(body, sort_keys=True)
        seen[key] += 1
        return answer() if path != "/tokenize" and seen[key] <= times else None

    return fault


def after(calls: int, answer, path: str = "/v1/completions"):
    """A fault of every call but the first ones."""
    count = Counter()

    def fault(asked, body):
        count[asked] += asked == path
        return answer() if count[path] > calls else None

    return fault


# Tried again


@pytest.mark.parametrize(
    "answer", [lambda: status(429, "slow down"), lambda: status(503), lambda: status(500), cut_off], ids=range(4)
)
def test_what_passes_is_tried_again(stub, answer):
    want = local(OPENER, OTHER).generate(PROMPTS[0], max_new_tokens=3)
    ensemble = beside(stub, retries=2)
    stub.fault = first_times(2, answer)
    assert ensemble.generate(PROMPTS[0], max_new_tokens=3) == want


def test_a_server_says_when_to_come_back(stub):
    member = member_of(stub, retries=1)
    ids = member.encode_prompt(PROMPTS[0])
    times = []

    def fault(path, body):
        times.append(time.monotonic())
        return status(429, **{"Retry-After": "0.3"}) if len(times) == 1 else None

    stub.fault = fault
    member.backend.best(ids, 3)
    assert times[1] - times[0] >= 0.3


def test_what_is_refused_is_not_tried_again(stub):
    ensemble = beside(stub, retries=3)
    stub.calls.clear()
    stub.fault = lambda path, body: status(400, "no such thing")
    with pytest.raises(MemberAway, match=r"prompt 0, step 1: mistral stays away: .* says 400: no such thing"):
        ensemble.generate(PROMPTS[0], max_new_tokens=3)
    assert len(stub.calls) == 1


# Ended with an error that names the member


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda: status(500, "boom"), "says 500: boom"),
        (lambda: status(429, "queue full"), "says 429: queue full"),
        (cut_off, "peer closed connection"),
        (lambda: time.sleep(1.5), "does not answer in time"),
        (lambda: JSONResponse({"choices": []}), "the server's answer has no choices.0"),
        (lambda: JSONResponse([1]), "answers with list, not with an object"),
    ],
    ids=["500", "429", "cut-off", "slow", "other-answer", "list"],
)
def test_stop_ends_with_an_error(stub, answer, message):
    ensemble = beside(stub, timeout=0.7)
    stub.fault = after(4, answer)
    with pytest.raises(MemberAway, match=f"prompt 0, step \\d+: mistral stays away: .*{message}"):
        ensemble.generate(PROMPTS[0], max_new_tokens=8)


def test_a_server_that_went_away():
    with running_stub("vllm", OTHER) as stub:
        ensemble = beside(stub)
    with pytest.raises(MemberAway, match=r"mistral stays away: .*refused"):
        ensemble.generate(PROMPTS[0], max_new_tokens=8)


def test_nobody_listens():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ConnectionError, match=r"mistral: http:.*refused"):
        HttpMember(
            f"http://127.0.0.1:{port}", protocol="vllm", tokenizer=str(model_folder(OTHER)), retries=0, name=OTHER
        )


def test_only_the_requests_without_an_answer_end(stub):
    """The others take the same step: their texts are those of a run without errors."""
    want = local(OPENER, OTHER).generate(PROMPTS, max_new_tokens=6)
    ensemble = beside(stub)
    bad = tuple(ensemble.members[1].encode_prompt(PROMPTS[1]))
    stub.fault = lambda path, body: (
        status(400, "not this one") if tuple(body.get("prompt", ())[: len(bad)]) == bad else None
    )
    finished = {}

    def collect() -> None:
        for request in ensemble.generate_each(PROMPTS, max_new_tokens=6):
            finished[request.index] = request.decoded()

    with pytest.raises(MemberAway, match="prompt 1, step 1"):
        collect()
    assert finished == {0: want[0], 2: want[2]}


def test_draws_are_those_of_a_run_without_errors(stub):
    """A step that is taken again draws once, also where another method's requests run beside."""
    ensemble = beside(stub)
    options = {"max_new_tokens": 8, "do_sample": True, "seed": 3, "on_member_failure": "drop"}
    engine = Engine(ensemble.members, ensemble.alignment)
    plans = [ensemble.plan(options), ensemble.plan({**options, "k": 7})]
    requests = [
        engine.submit(prompt, plan.token_method, plan.generation, index=i, seed=3)
        for i, (prompt, plan) in enumerate(zip(PROMPTS, plans))
    ]
    bad = tuple(requests[1].prompt_ids[1])
    stub.fault = lambda path, body: status(400) if tuple(body.get("prompt", ())[: len(bad)]) == bad else None
    assert all(request.error is None for request in engine.run())
    want = local(OPENER, OTHER).generate(PROMPTS[0], max_new_tokens=8, do_sample=True, seed=3)
    assert requests[0].decoded() == want
    assert requests[1].missing == {1: 0}


# Dropped


def texts_after_drop(ensemble: UniteEnsemble, prompt: str, tokens: int, **options):
    """What the members write together for so many tokens, and the first then alone."""
    before = ensemble.generate(prompt, max_new_tokens=tokens, return_dict=True, **options)
    alone = ensemble.alone(0)
    ids = [ensemble.members[0].encode_prompt(prompt) + before.token_ids[0][0]]
    engine = Engine(alone.members, alone.alignment)
    plan = alone.plan({"max_new_tokens": 24 - tokens})
    request = engine.submit(ids, plan.token_method, plan.generation)
    list(engine.run())
    return before.token_ids[0][0] + request.ids


@pytest.mark.parametrize("tokens", [0, 1, 5])
def test_the_others_go_on_without_it(stub, tokens):
    """From the token that is named on, the text is the remaining member's own."""
    ensemble = beside(stub)

    def fault(path, body):
        length = len(body.get("prompt", ())) - len(ensemble.members[1].encode_prompt(PROMPTS[0]))
        return status(500) if path != "/tokenize" and length >= tokens else None

    stub.fault = fault
    found = ensemble.generate(PROMPTS[0], max_new_tokens=24, return_dict=True, on_member_failure="drop")
    [[never, number]] = found.missing_from
    assert never is None
    assert number is not None
    assert found.token_ids[0][0] == (
        texts_after_drop(local(OPENER, OTHER), PROMPTS[0], number)
        if number
        else local(OPENER, OTHER).alone(0).generate(PROMPTS[0], max_new_tokens=24, return_dict=True).token_ids[0][0]
    )
    records = found.records[0]
    assert [record.missing for record in records] == [()] * number + [(1,)] * (len(records) - number)
    for record in records[number:]:
        assert all(ids[1] == -1 for ids in record.union_ids)
        assert all(probs[1] == 0 for probs in record.member_probs)
        assert sum(record.union_probs) == pytest.approx(1, abs=1e-5)


def test_weights_are_those_of_the_others(stub):
    """Of three members one goes: the other two are an ensemble of two, with their weights."""
    members = [local(OPENER, "llama").members[0], member_of(stub), local(OPENER, "llama").members[1]]
    stub.fault = lambda path, body: status(500)
    options = {"max_new_tokens": 16, "return_dict": True}
    found = UniteEnsemble(members, weights=[0.2, 0.3, 0.5]).generate(PROMPTS, on_member_failure="drop", **options)
    want = local(OPENER, "llama").generate(PROMPTS, weights=[0.2, 0.5], **options)
    assert found.texts == want.texts
    assert [own[0] for own in found.token_ids] == [own[0] for own in want.token_ids]
    assert found.missing_from == [[None, 0, None]] * 3


@pytest.mark.parametrize("speculate", [3, "auto", OTHER])
def test_drafts_end_with_the_member(stub, speculate):
    """The text stays that of plain decoding, wherever in a round the member goes."""
    want = None
    for calls in (3, 6):
        for drafts in (False, speculate):
            ensemble = beside(stub)
            prompts = ensemble.members[1].encode_prompt(PROMPTS[0])
            limit = len(prompts) + calls
            stub.fault = lambda path, body, limit=limit: (
                status(500) if path != "/tokenize" and len(body["prompt"]) >= limit else None
            )
            found = ensemble.generate(
                PROMPTS[0], max_new_tokens=16, return_dict=True, on_member_failure="drop", speculate=drafts
            )
            assert found.missing_from[0][1] is not None
            if not drafts:
                want = found
                continue
            # A draft asks further ahead: the member may go a few tokens sooner.
            assert found.missing_from[0][1] <= want.missing_from[0][1]
            number = found.missing_from[0][1]
            assert found.token_ids[0][0][:number] == want.token_ids[0][0][:number]
            own = local(OPENER, OTHER)
            assert found.token_ids[0][0][:16] == texts_after_drop(own, PROMPTS[0], number)[:16] if number else True


def test_the_primary_cannot_be_dropped(stub):
    ensemble = UniteEnsemble([member_of(stub), local(OPENER, OTHER).members[0]])
    stub.fault = lambda path, body: status(500)
    with pytest.raises(MemberAway, match="mistral stays away"):
        ensemble.generate(PROMPTS[0], max_new_tokens=4, on_member_failure="drop")


def test_the_last_weight_cannot_be_dropped(stub):
    ensemble = beside(stub)
    stub.fault = lambda path, body: status(500)
    with pytest.raises(ValueError, match="weights") as error:
        ensemble.generate(PROMPTS[0], max_new_tokens=4, weights=[0.0, 1.0], on_member_failure="drop")
    assert isinstance(error.value.__cause__, MemberAway)


def test_scores_of_given_texts_drop_nobody(stub):
    ensemble = beside(stub)
    stub.fault = lambda path, body: status(500)
    with pytest.raises(MemberAway):
        list(score_continuations(ensemble, [(PROMPTS[0], [5, 6])]))


def test_other_requests_go_on_with_it(stub):
    """A member is lost to the requests that had no answer, and to no others; new ones ask it again."""
    ensemble = beside(stub)
    plan = ensemble.plan({"max_new_tokens": 5, "on_member_failure": "drop"})
    engine = ensemble.new_engine(plan, max_requests=4)
    first = engine.submit(PROMPTS[0], plan.token_method, plan.generation)
    stub.fault = lambda path, body: status(500)
    engine.step()
    assert first.missing == {1: 0}
    stub.fault = lambda path, body: None
    second = engine.submit(PROMPTS[1], plan.token_method, plan.generation)
    events = []
    while engine.has_work:
        events += engine.step()
    assert not any(isinstance(event, Failed) for event in events)
    assert sum(isinstance(event, Finished) for event in events) == 2
    assert second.missing == {}
    assert second.decoded() == local(OPENER, OTHER).generate(PROMPTS[1], max_new_tokens=5)


def test_traces_and_rows_say_it(stub, tmp_path, caplog):
    ensemble = beside(stub)
    limit = len(ensemble.members[1].encode_prompt(PROMPTS[0])) + 3
    stub.fault = lambda path, body: status(500) if len(body["prompt"]) >= limit else None
    with caplog.at_level(logging.WARNING, logger="unite_ext"):
        trace = ensemble.trace(PROMPTS[0], max_new_tokens=8, on_member_failure="drop")
    number = trace.missing_from[1]
    assert number is not None
    assert trace.absences == [f"mistral stayed away from token {number + 1} on: the others went on without it"]
    assert [step.missing for step in trace.steps] == [[]] * number + [[1]] * (len(trace.steps) - number)
    assert trace.overruled[1] == sum(s.favorites[1] != s.winner for s in trace.steps[:number])
    assert "mistral stays away" in caplog.text
    trace.save(tmp_path / "trace.json")
    again = Trace.load(tmp_path / "trace.json")
    assert again == trace
    assert "stayed away from token" in trace.to_html()
    shown = unite("trace", tmp_path / "trace.json")
    assert f"mistral stayed away from token {number + 1} on" in shown.output
    assert "away" in unite("trace", tmp_path / "trace.json", "--step", number + 1).output


def test_a_command_says_it(stub):
    limit = len(member_of(stub).encode_prompt(PROMPTS[0])) + 3

    def fault(path, body):
        return status(400, "no more") if path != "/tokenize" and len(body["prompt"]) >= limit else None

    stub.fault = fault
    arguments = [
        "generate", "--model", model_folder(OPENER), "--model", model_folder(OTHER), "--prompt", PROMPTS[0], "--json",
        "--max-new-tokens", 8, "--member-engine", f"1=vllm:{stub.url}",
    ]  # fmt: skip
    found = unite(*arguments)
    assert found.exit_code == 1
    assert "mistral stays away" in found.output
    assert "no more" in found.output
    found = unite(*arguments, "--on-member-failure", "drop")
    assert found.exit_code == 0, found.output
    [row] = [json.loads(line) for line in found.stdout.splitlines() if line.startswith("{")]
    assert row["missing_from"][0] is None
    assert row["missing_from"][1] >= 1


# Keys


def test_a_key(monkeypatch, caplog):
    with running_stub("vllm", OTHER, key=KEY) as stub:
        with pytest.raises(ValueError, match="api_key_env must name a variable with the server's key"):
            member_of(stub)
        monkeypatch.setenv("STUB_KEY", KEY)
        with caplog.at_level(logging.DEBUG):
            member = member_of(stub, api_key_env="STUB_KEY")
            ensemble = UniteEnsemble([local(OPENER, OTHER).members[0], member])
            assert ensemble.generate(PROMPTS[0], max_new_tokens=2)
            stub.fault = lambda path, body: status(400, f"what is {KEY}?")
            with pytest.raises(MemberAway) as error:
                ensemble.generate(PROMPTS[0], max_new_tokens=2)
        shown = [
            str(error.value),
            repr(error.value),
            caplog.text,
            repr(member),
            repr(member.backend.client),
            repr(ensemble),
        ]
        assert not any(KEY in text for text in shown)
        assert "***" in str(error.value)
        monkeypatch.setenv("STUB_KEY", "another")
        with pytest.raises(ValueError, match="says 401"):
            member_of(stub, api_key_env="STUB_KEY")


@pytest.mark.parametrize("value", ["", "two words", "line\nbreak"])
def test_a_key_that_cannot_be_one(stub, monkeypatch, value):
    monkeypatch.setenv("STUB_KEY", value)
    with pytest.raises(ValueError, match="api_key_env must name") as error:
        member_of(stub, api_key_env="STUB_KEY")
    assert not value or value not in str(error.value)


def test_a_key_on_an_open_line(monkeypatch):
    monkeypatch.setenv("STUB_KEY", KEY)
    from unite_ext.members.http_client import HttpClient

    with pytest.warns(UserWarning, match=r"goes to example\.invalid unencrypted"):
        HttpClient("http://example.invalid", api_key_env="STUB_KEY", timeout=1, retries=0, connections=1)


def test_questions_of_a_batch_run_at_once(stub):
    """Each waits until as many others are there."""
    barrier = threading.Barrier(3, timeout=20)
    ensemble = beside(stub)

    def together(path, body):
        if "logprob_token_ids" not in body:
            barrier.wait()

    stub.fault = together
    found = ensemble.generate(PROMPTS, max_new_tokens=2)
    stub.fault = lambda path, body: None
    assert found == local(OPENER, OTHER).generate(PROMPTS, max_new_tokens=2)


def test_clients_of_the_server_are_told_who_is_away(stub):
    """503 with the member's name; where it is, is the operator's to know."""
    from running_server import running

    with running(beside(stub)) as server:
        body = {"model": "unite", "prompt": PROMPTS[0], "max_tokens": 2, "temperature": 0}
        assert server.post("/v1/completions", body).status_code == 200
        stub.fault = lambda path, body: status(500, "boom")
        answer = server.post("/v1/completions", body)
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "member_away"
        assert "mistral" in answer.json()["error"]["message"]
        assert stub.url not in answer.text
        stub.fault = lambda path, body: None
        assert server.post("/v1/completions", body).status_code == 200
