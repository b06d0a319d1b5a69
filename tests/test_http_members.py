"""Members behind a server give the texts of the same models in this process, whatever protocol the server speaks."""

from __future__ import annotations

import functools
import json

import pytest
import torch
from stub_servers import STUBS, Stub, running_stub
from typer.testing import CliRunner

from unite_ext import GenerationOptions, UniteEnsemble
from unite_ext.cli import app
from unite_ext.decoding.likelihood import score_continuations
from unite_ext.demo import CHAT_TEMPLATE, load_member, model_folder
from unite_ext.demo.problems import prompt_of
from unite_ext.members.http import HttpMember

EXACT = ("vllm", "sglang", "llama.cpp")
QUESTIONS = (
    "Mia has 12 pens, finds 18 more and then loses 5. How many pens does Mia have now?",
    "Tom has 3 cups. He buys 4. How many?",
    "A box holds 6 eggs. Ann has 7 boxes and eats 2 eggs. How many eggs are left?",
)
PROMPTS = [prompt_of(question) for question in QUESTIONS]
TOKENS = 34  # some texts end by themselves
OPENER, OTHER = "qwen2", "mistral"  # byte-level, and SentencePiece: texts are tokenized anew


@functools.cache
def local(*names: str) -> UniteEnsemble:
    """Bundled models in this process."""
    return UniteEnsemble([load_member(name) for name in names])


@functools.cache
def expected(names: tuple[str, ...], **options: object) -> object:
    """What they write, once for all protocols."""
    return local(*names).generate(PROMPTS, return_dict=True, max_new_tokens=TOKENS, **options)


@pytest.fixture(scope="module")
def stubs():
    """A running server per protocol, with the second model."""
    running = [running_stub(protocol, OTHER) for protocol in EXACT]
    yield {protocol: own.__enter__() for protocol, own in zip(EXACT, running)}
    for own in running:
        own.__exit__(None, None, None)


@pytest.fixture(params=EXACT)
def stub(request, stubs) -> Stub:
    stubs[request.param].calls.clear()
    return stubs[request.param]


def protocol_of(stub: Stub) -> str:
    return next(name for name, kind in STUBS.items() if type(stub) is kind)


def member_of(stub: Stub, **options) -> HttpMember:
    defaults = {"protocol": protocol_of(stub), "tokenizer": str(model_folder(OTHER)), "retries": 0, "name": OTHER}
    options = defaults | options
    return HttpMember(stub.url, **options)


def beside(stub: Stub, **options) -> UniteEnsemble:
    """The first model in this process, the second behind the server."""
    return UniteEnsemble([local(OPENER, OTHER).members[0], member_of(stub, **options)])


def assert_same(found, wanted) -> None:
    assert found.texts == wanted.texts
    assert found.token_ids == wanted.token_ids
    assert found.finish_reasons == wanted.finish_reasons
    for own, theirs in zip(found.records, wanted.records):
        for step, other in zip(own, theirs, strict=True):
            assert step.union_ids == other.union_ids
            torch.testing.assert_close(
                torch.tensor(step.member_probs), torch.tensor(other.member_probs), atol=2e-5, rtol=2e-4
            )


def test_the_very_text_of_the_local_member(stub):
    """Three prompts of different lengths side by side, whose ids are dropped and made anew as the text grows."""
    ensemble = beside(stub)
    drops = []
    new_context = ensemble.members[1].new_context

    def watched(**options):
        context = new_context(**options)
        edit = context.edit
        context.edit = lambda key, drop, append: (drops.append(drop), edit(key, drop, append))
        return context

    ensemble.members[1].new_context = watched
    assert_same(ensemble.generate(PROMPTS, return_dict=True, max_new_tokens=TOKENS), expected((OPENER, OTHER)))
    assert any(drops)
    assert {"eos", "length"} == set(expected((OPENER, OTHER)).finish_reasons)


def test_a_server_leads(stubs):
    """The primary behind the server, whose ids are the text."""
    stub = stubs["sglang"]
    ensemble = UniteEnsemble([local(OTHER, OPENER).members[1], member_of(stub)], primary=1)
    want = local(OPENER, OTHER).generate(PROMPTS[:2], primary=1, max_new_tokens=16, return_dict=True)
    assert_same(ensemble.generate(PROMPTS[:2], return_dict=True, max_new_tokens=16), want)


@pytest.mark.parametrize(
    "options",
    [
        {"duplicates": "drop"},
        {"score": "probs"},
        {"stop": ["pens", "="]},
        {"combine": "product", "weights": [1.0, 0.5]},
        {"do_sample": True, "seed": 5, "temperature": 1.3},
        {"k": 17},
    ],
    ids=str,
)
def test_options_of_a_step(stubs, options):
    """A protocol each: what differs between them is how a list and single ids are asked for."""
    stub = stubs[EXACT[len(str(options)) % 3]]
    want = local(OPENER, OTHER).generate(PROMPTS[:2], max_new_tokens=10, return_dict=True, **options)
    assert_same(beside(stub).generate(PROMPTS[:2], return_dict=True, max_new_tokens=10, **options), want)


@pytest.mark.parametrize(("protocol", "speculate"), [("vllm", 3), ("sglang", "ngram"), ("llama.cpp", OTHER)])
def test_speculation_asks_all_places_at_once(stubs, protocol, speculate):
    stub = stubs[protocol]
    options = {"max_new_tokens": 14, "return_dict": True}
    want = local(OPENER, OTHER).generate(PROMPTS[:2], **options)
    found = beside(stub).generate(PROMPTS[:2], speculate=speculate, **options)
    assert found.texts == want.texts
    assert found.token_ids == want.token_ids
    assert sum(found.accepted) > 0


def test_two_servers_without_any_local_model(stubs):
    """Nothing runs in this process."""
    with running_stub("sglang", OPENER) as first:
        members = [member_of(first, tokenizer=str(model_folder(OPENER)), name=OPENER), member_of(stubs["vllm"])]
        found = UniteEnsemble(members).generate(PROMPTS, return_dict=True, max_new_tokens=TOKENS)
    assert_same(found, expected((OPENER, OTHER)))


@pytest.mark.parametrize(("protocol", "likelihood"), [("vllm", "union"), ("llama.cpp", "union"), ("sglang", "full")])
def test_likelihoods(stubs, protocol, likelihood):
    stub = stubs[protocol]
    ids = local(OPENER, OTHER).members[0].tokenizer(" 12+18=30 pens.").input_ids
    wanted = [(PROMPTS[0], ids)]
    [found] = score_continuations(beside(stub), wanted, likelihood=likelihood)
    [own] = score_continuations(local(OPENER, OTHER), wanted, likelihood=likelihood)
    assert found.log_prob == pytest.approx(own.log_prob, abs=1e-3)
    assert found.is_greedy == own.is_greedy


def test_only_what_a_step_needs_is_asked(stub):
    """At most a list and what is not on it: no request carries a vocabulary, and none is repeated."""
    beside(stub).generate(PROMPTS[0], max_new_tokens=12)
    asked = [body for path, body in stub.calls if path != "/tokenize"]
    assert 12 <= len(asked) <= 24
    assert len({json.dumps(body, sort_keys=True) for body in asked}) == len(asked)


def test_bytes_that_are_no_character(stub):
    """A token that ends inside a character, which llama.cpp's server would keep back with its probabilities."""
    vocabulary = local(OPENER, OTHER).alignment.vocabularies[1]
    part = next(i for i, data in enumerate(vocabulary.token_bytes) if data == b"\xe4")
    member = member_of(stub)
    stub._known.clear()
    ids = member.encode_prompt(PROMPTS[0])
    values = torch.tensor(stub.log_probs(ids))
    values[part] = 10.0  # as if the model were sure of it
    stub._known[tuple(ids)] = values.log_softmax(0).tolist()
    listing = member.backend.best(ids, 5)
    stub._known.clear()
    assert next(iter(listing.log_probs)) == part


# What a server tells


def test_the_context_length_is_the_servers(stub):
    assert member_of(stub).context_length == 256
    assert member_of(stub, context_length=100).context_length == 100
    short = UniteEnsemble([local(OPENER, OTHER).members[0], member_of(stub, context_length=60)])
    own = local(OPENER, OTHER).members[1]
    room = 60 - len(own.encode_prompt(PROMPTS[0]))
    found = short.generate(PROMPTS[0], return_dict=True, max_new_tokens=80)
    assert found.finish_reasons == ["length"]
    assert len(found.token_ids[0][1]) in (room - 1, room, room + 1)
    with pytest.raises(ValueError, match="whose context holds 60"):
        short.generate(PROMPTS[0] * 4)


def test_wrong_vocabulary(stub):
    """Said when the member is made, before any text."""
    with pytest.raises(ValueError, match="tokenizer must be that of mistral's model: it makes"):
        member_of(stub, tokenizer=str(model_folder("llama")))
    assert {path for path, _ in stub.calls} == {"/tokenize"}


def test_a_server_with_fewer_ids():
    with running_stub("llama.cpp", OTHER) as stub:
        stub.num_ids = 100
        with pytest.raises(
            ValueError, match="tokenizer must be that of mistral's model: it has 600 ids, the server 100"
        ):
            member_of(stub)


def test_a_server_that_does_not_tokenize():
    with running_stub("sglang", OTHER) as stub:
        stub.fault = lambda path, body: json_response(404, "Not Found") if path == "/tokenize" else None
        with pytest.warns(UserWarning, match="does not say how it tokenizes"):
            member_of(stub)


def json_response(status, message, **headers):
    from fastapi.responses import JSONResponse

    return JSONResponse({"error": {"message": message}}, status, headers=headers)


def test_the_models_name():
    with running_stub("vllm", OTHER, name="other") as stub:
        assert member_of(stub, name=None).name == "other"
        with pytest.raises(ConnectionError, match="has no model 'mine', only other"):
            member_of(stub, model="mine")


# What needs more than a server gives


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "gac"}, "method must not be 'gac' with mistral"),
        ({"method": "deepen-avg"}, "method must not be 'deepen-avg' with mistral"),
        ({"method": "mined"}, "method must not be 'mined' with mistral"),
        ({"method": "packllm"}, "method must not be 'packllm' with mistral, which gives no likelihood"),
        ({"boundaries": "exact"}, "boundaries must be 'plain' with mistral"),
        ({"repetition_penalty": 1.2}, "repetition_penalty must not be given with mistral"),
        ({"min_new_tokens": 3}, "min_new_tokens must not be given with mistral"),
        ({"regex": "a+"}, "regex must not be given with mistral"),
        ({"gate": 0.9, "primary": 1}, "gate must not be given with mistral"),
        ({"k": 21}, "k must be at most 20 with mistral"),
        ({"method": "voting", "on_member_failure": "drop"}, "on_member_failure must be 'stop' with method 'voting'"),
        ({"on_member_failure": "wait"}, "on_member_failure must be one of 'stop', 'drop'"),
    ],
    ids=str,
)
def test_refused_before_any_call(stubs, options, message):
    ensemble = beside(stubs["vllm"])
    stubs["vllm"].calls.clear()
    with pytest.raises(ValueError, match=message):
        ensemble.generate(PROMPTS[0], **options)
    assert stubs["vllm"].calls == []


def test_a_gate_of_a_local_primary(stubs):
    """The others are asked where the primary is not sure."""
    stub = stubs["vllm"]
    options = {"gate": 0.9, "max_new_tokens": 12, "return_dict": True}
    found, want = (e.generate(PROMPTS[:2], **options) for e in (beside(stub), local(OPENER, OTHER)))
    assert found.texts == want.texts
    assert found.gated_steps == want.gated_steps
    assert sum(want.gated_steps) > 0


def test_answer_methods_ask_a_server_alone(stubs):
    stub = stubs["sglang"]
    options = {"method": "voting", "max_new_tokens": 12}
    assert beside(stub).generate(PROMPTS[:2], **options) == local(OPENER, OTHER).generate(PROMPTS[:2], **options)


def test_more_than_128_ids_are_asked_in_turns():
    with running_stub("vllm", OTHER) as stub:
        member = member_of(stub)
        ids = member.encode_prompt(PROMPTS[0])
        stub.calls.clear()
        found = member.backend.chosen(ids, list(range(300)), {})
        assert [len(body["logprob_token_ids"]) for _, body in stub.calls] == [128, 128, 44]
        values = stub.log_probs(ids)
        assert all(found[i] == pytest.approx(values[i]) for i in range(300))


def test_an_older_vllm_is_told_by_its_answers():
    with running_stub("vllm", OTHER) as stub:
        complete = stub.complete

        def without(body):
            return complete({name: value for name, value in body.items() if name != "logprob_token_ids"})

        stub.app.router.routes = [r for r in stub.app.router.routes if getattr(r, "path", "") != "/v1/completions"]
        stub.post("/v1/completions", without)
        with pytest.raises(RuntimeError, match="gives no logprob_token_ids"):
            beside(stub).generate(PROMPTS[0], max_new_tokens=24)


# OpenAI's interface


def test_openai_is_approximate():
    with running_stub("openai", OPENER) as stub:
        with pytest.raises(ValueError, match="approximate must be True with protocol 'openai'"):
            member_of(stub)
        assert stub.calls == []
        member = member_of(stub, tokenizer=str(model_folder(OPENER)), approximate=True, name=OPENER)
        ensemble = UniteEnsemble([local(OPENER, OTHER).members[1], member], primary=1)
        with pytest.warns(UserWarning, match="which is an upper bound"):
            found = ensemble.generate(PROMPTS, max_new_tokens=24)
        want = local(OTHER, OPENER).generate(PROMPTS, max_new_tokens=24, primary=1)
        assert sum(a == b for a, b in zip(found, want)) >= 2


def test_an_unlisted_slot_counts_with_the_least_listed():
    with running_stub("openai", OPENER) as stub:
        member = member_of(stub, tokenizer=str(model_folder(OPENER)), approximate=True, max_logprobs=5)
        ids = member.encode_prompt(PROMPTS[0])
        listed = member.backend.best(ids, 5).log_probs
        assert len(listed) == 5
        unlisted = [i for i in range(100) if i not in listed][:3]
        with pytest.warns(UserWarning, match="upper bound"):
            found = member.backend.chosen(ids, unlisted, listed)
        assert found == dict.fromkeys(unlisted, min(listed.values()))
        assert all(stub.log_probs(ids)[i] <= value for i, value in found.items())


def test_openai_counts_the_sample():
    with running_stub("openai", OPENER) as stub, pytest.raises(ValueError, match=r"it makes \d+ ids of a sample text"):
        member_of(stub, tokenizer=str(model_folder("llama")), approximate=True)


# The command line


def unite(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_generate_with_a_member_engine(stubs, tmp_path, monkeypatch):
    places = ["--model", model_folder(OPENER), "--model", model_folder(OTHER)]
    common = ["--prompt", PROMPTS[0], "--max-new-tokens", 8, "--json"]
    here = unite("generate", *places, *common)
    assert here.exit_code == 0, here.output
    there = unite("generate", *places, *common, "--member-engine", f"mistral=vllm:{stubs['vllm'].url}")
    assert there.exit_code == 0, there.output
    assert json.loads(there.stdout) == json.loads(here.stdout)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--member-engine", "mistral"], "--member-engine must be NAME=KIND:URL"),
        (["--member-engine", "other=vllm:http://127.0.0.1:1"], "must name one of the members qwen2, mistral"),
        (["--member-engine", "1=tgi:http://127.0.0.1:1"], "protocol must be one of 'vllm', 'sglang'"),
        (["--member-engine", "1=sglang"], "--member-engine must be NAME=KIND:URL"),
        (["--member-engine", "1=openai:http://127.0.0.1:1"], "approximate must be True"),
        (["--member-engine", "1=vllm:127.0.0.1:8000"], "url must be an address such as"),
        (["--member-engine", "1=vllm:http://127.0.0.1:1", "--member-api-key-env", "1=NO_SUCH"], "got 'NO_SUCH'"),
        (["--member-engine", "1=vllm:http://u:p@127.0.0.1:1"], "url must hold no user or password"),
        (["--on-member-failure", "wait"], "on_member_failure must be one of"),
    ],
    ids=str,
)
def test_wrong_arguments(arguments, message, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    found = unite(
        "generate", "--model", model_folder(OPENER), "--model", model_folder(OTHER), "--prompt", "x", *arguments
    )
    assert found.exit_code == 1
    assert message in found.output.replace("\n", " ")
    assert "u:p" not in found.output


def test_a_chat(stubs):
    """Messages are rendered here: the server gets ids."""
    messages = [{"role": "user", "content": QUESTIONS[0]}]
    member = member_of(stubs["sglang"], chat_template=CHAT_TEMPLATE)
    own = load_member(OTHER, chat_template=CHAT_TEMPLATE)
    assert member.encode_prompt(messages) == own.encode_prompt(messages)
    first = load_member(OPENER, chat_template=CHAT_TEMPLATE)
    found, want = (UniteEnsemble([first, m]).generate(messages, max_new_tokens=6) for m in (member, own))
    assert found == want


def test_options_name_themselves():
    assert GenerationOptions().on_member_failure == "stop"
    with pytest.raises(ValueError, match="timeout must be seconds above 0"):
        HttpMember("http://127.0.0.1:1", protocol="vllm", tokenizer=str(model_folder(OTHER)), timeout=0)
