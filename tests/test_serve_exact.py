"""Exact boundaries behind the server: for one request or for all, with logprobs and traces of bytes."""

from __future__ import annotations

import math
import re
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from running_server import CHAT, PROMPT, demo_ensemble, running, streamed_trace

from unite_ext.trace import Trace
from unite_ext.trace.files import from_json

EXACT = {"unite": {"boundaries": "exact"}}


@pytest.fixture(scope="module")
def ensemble():
    return demo_ensemble()


@pytest.fixture(scope="module")
def client(ensemble):
    with running(ensemble) as server, server.client() as made:
        yield made


def test_requests_choose_whatever_runs_beside_them(ensemble, client):
    prompts = [PROMPT, "Zoë José has 4 apples", "5 + 9 ="] * 2
    bodies = [EXACT, EXACT, EXACT, {}, {}, {}]

    def ask(n: int) -> str:
        options = {"model": "unite", "prompt": prompts[n], "max_tokens": 20, "extra_body": bodies[n]}
        if n % 2:
            return client.completions.create(**options).choices[0].text
        return "".join(chunk.choices[0].text for chunk in client.completions.create(stream=True, **options))

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(ask, range(6)))
    exact = ensemble.generate(prompts[:3], max_new_tokens=20, boundaries="exact")
    assert found == [*exact, *ensemble.generate(prompts[3:], max_new_tokens=20)]


@pytest.mark.parametrize("options", [{}, {"stop": "answer"}, {"temperature": 1.2, "seed": 3}])
def test_logprobs_and_traces_are_of_bytes(ensemble, client, options):
    given = {"model": "unite", "prompt": PROMPT, "max_tokens": 30, "logprobs": 3, **options}
    given["extra_body"] = {"unite": {"boundaries": "exact", "trace": True}}
    [choice] = client.completions.create(**given).choices
    [trace] = from_json(choice.unite["trace"], "the answer", Trace)
    offline = {name: value for name, value in options.items() if name != "temperature"}
    if "temperature" in options:
        offline |= {"temperature": 1.2, "do_sample": True}
    expected = ensemble.trace(PROMPT, max_new_tokens=30, boundaries="exact", **offline)
    assert (trace.text, trace.steps, trace.tokens) == (expected.text, expected.steps, expected.tokens)
    assert trace.options["boundaries"] == "exact"

    found = choice.logprobs
    steps = trace.steps[: len(choice.text.encode())]
    assert "".join(found.tokens) == choice.text
    assert found.token_logprobs == pytest.approx([math.log(s.averages[s.winner]) for s in steps], abs=1e-5)
    for top, step in zip(found.top_logprobs, steps):
        assert list(top.values()) == pytest.approx([math.log(p) for p in step.averages[:3]], abs=1e-5)

    joined = streamed_trace(client.completions.create(stream=True, **given), trace)
    assert (joined.steps, joined.tokens) == (expected.steps, expected.tokens)
    assert joined.eos_token_ids == expected.eos_token_ids


def test_bytes_of_one_character(client):
    """Each is a token by its number; offsets count characters that are whole."""
    given = {"model": "unite", "prompt": "Zoë José ", "temperature": 2, "max_tokens": 40, "extra_body": EXACT}
    for seed in range(20):
        chat = {**given, "seed": seed, "logprobs": 1}
        [choice] = client.completions.create(**chat).choices
        data = choice.text.encode()
        if len(data) > len(choice.text) and "�" not in choice.text:
            break
    else:
        pytest.fail("no text has a character of several bytes")
    found = choice.logprobs
    assert found.tokens == [chr(b) if b < 0x80 else f"<0x{b:02X}>" for b in data]
    starts = [n for n, b in enumerate(data) if b & 0xC0 != 0x80]
    assert [found.text_offset[n] for n in starts] == list(range(len(choice.text)))


def test_answers_follow_an_expression(client):
    given = {
        "model": "unite",
        "messages": CHAT,
        "extra_body": {"unite": {"boundaries": "exact", "regex": r"\d{1,3} pens"}},
    }
    [choice] = client.chat.completions.create(**given).choices
    assert re.fullmatch(r"\d{1,3} pens", choice.message.content)


def test_other_boundaries_are_refused(client):
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="unite", messages=CHAT, extra_body={"unite": {"boundaries": "none"}})
    assert refused.value.param == "unite.boundaries"


@pytest.mark.parametrize("speculate", [4, "auto"])
def test_a_server_decides_for_all_and_drafts(ensemble, speculate):
    """Requests that ask for nothing have the server's boundaries; those that ask for plain ones can have more."""
    exact = ensemble.__class__(ensemble.members, alignment=ensemble.alignment, boundaries="exact")
    with running(exact, speculate=speculate) as server, server.client() as client:
        text = client.chat.completions.create(model="unite", messages=CHAT, max_tokens=30).choices[0].message.content
        assert text == ensemble.generate(CHAT, max_new_tokens=30, boundaries="exact")
        drawn = {"temperature": 0.8, "seed": 3, "max_tokens": 12}
        text = client.chat.completions.create(model="unite", messages=CHAT, **drawn).choices[0].message.content
        options = {"do_sample": True, "temperature": 0.8, "seed": 3, "max_new_tokens": 12}
        assert text == ensemble.generate(CHAT, boundaries="exact", **options)
        plain = {"unite": {"boundaries": "plain", "regex": "[a-z ]+"}}
        told = client.chat.completions.create(model="unite", messages=CHAT, max_tokens=9, extra_body=plain)
        assert told.choices[0].message.content == ensemble.generate(CHAT, max_new_tokens=9, regex="[a-z ]+")
