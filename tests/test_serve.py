"""The server answers OpenAI's own client as the ensemble answers offline: whole, in streams, with all options."""

from __future__ import annotations

import asyncio
import math

import httpx
import openai
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletionChunk
from running_server import CHAT, PROMPT, QUESTION, demo_ensemble, running, streamed_trace

from unite_ext import UniteEnsemble
from unite_ext.trace import Trace
from unite_ext.trace.files import from_json


@pytest.fixture(scope="module")
def ensemble():
    return demo_ensemble()


@pytest.fixture(scope="module")
def server(ensemble):
    with running(ensemble, methods=("unite", "gac")) as started:
        yield started


@pytest.fixture(scope="module")
def client(server):
    with server.client() as made:
        yield made


def test_a_chat_is_the_offline_text(ensemble, client):
    answer = client.chat.completions.create(model="unite", messages=CHAT, max_tokens=60)
    assert answer.object == "chat.completion"
    [choice] = answer.choices
    assert choice.message.content == ensemble.generate(CHAT, max_new_tokens=60) != ""
    assert (choice.finish_reason, choice.message.role) == ("stop", "assistant")
    assert answer._request_id


def test_usage_counts_every_member(ensemble, client):
    answer = client.chat.completions.create(model="unite", messages=CHAT, max_tokens=60, n=2)
    expected = ensemble.generate([CHAT], max_new_tokens=60, return_dict=True)
    prompts = [len(member.encode_prompt(CHAT)) for member in ensemble.members]
    written = [2 * len(ids) for ids in expected.token_ids[0]]
    assert answer.usage.prompt_tokens == prompts[0]
    assert answer.usage.completion_tokens == written[0]
    assert answer.usage.total_tokens == prompts[0] + written[0]
    members = answer.usage.unite["members"]
    assert [m["name"] for m in members] == ["qwen2", "mistral"]
    assert [m["prompt_tokens"] for m in members] == prompts
    assert [m["completion_tokens"] for m in members] == written


def test_several_prompts_and_texts(ensemble, client):
    prompts = [PROMPT, "Leo has 23 stamps and finds 18 more. How many stamps does Leo have now?\n"]
    options = {"max_tokens": 12, "temperature": 1.5, "top_p": 0.9, "seed": 5}
    answer = client.completions.create(model="unite", prompt=prompts, n=2, **options)
    offline = ensemble.generate(
        [prompts[0], prompts[0], prompts[1], prompts[1]], max_new_tokens=12, do_sample=True, temperature=1.5,
        top_p=0.9, seed=5,
    )  # fmt: skip
    assert [choice.text for choice in answer.choices] == offline
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert len(set(offline)) > 2
    again = client.completions.create(model="unite", prompt=prompts, n=2, **options)
    assert [choice.text for choice in again.choices] == offline
    other = client.completions.create(model="unite", prompt=prompts, n=2, **{**options, "seed": 6})
    assert [choice.text for choice in other.choices] != offline


def test_a_completion_has_16_tokens_if_it_does_not_say(client):
    assert client.completions.create(model="unite", prompt=PROMPT).usage.completion_tokens == 16


def test_stop_and_length(ensemble, client):
    whole = ensemble.generate(PROMPT, max_new_tokens=60)
    answer = client.completions.create(model="unite", prompt=PROMPT, max_tokens=60, stop=["The answer", " is"])
    assert answer.choices[0].text == whole[: whole.index(" The answer")] + " "
    assert answer.choices[0].finish_reason == "stop"
    short = client.chat.completions.create(model="unite", messages=CHAT, max_completion_tokens=3)
    assert short.choices[0].finish_reason == "length"
    assert whole.startswith(short.choices[0].message.content)


@pytest.mark.parametrize("ours", [{"k": 2}, {"weights": [0, 1]}, {"k": 3, "weights": [3, 1]}, {"method": "gac"}])
def test_the_options_of_a_step_are_the_request_s(ensemble, client, ours):
    prompt = "Ana has 31 books. She gives away"
    answer = client.completions.create(model="unite", prompt=prompt, max_tokens=20, extra_body={"unite": ours})
    assert answer.choices[0].text == ensemble.generate(prompt, max_new_tokens=20, **ours)


def test_a_stream_is_the_text(ensemble, client):
    stream = client.chat.completions.create(
        model="unite", messages=CHAT, max_tokens=60, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert all(isinstance(chunk, ChatCompletionChunk) for chunk in chunks)
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    whole = client.chat.completions.create(model="unite", messages=CHAT, max_tokens=60)
    assert text == whole.choices[0].message.content
    assert len(chunks) > 10
    assert [c.choices[0].finish_reason for c in chunks[:-1] if c.choices[0].finish_reason] == ["stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_streams_of_several_texts(ensemble, client):
    options = {"prompt": [PROMPT, "Leo"], "max_tokens": 20, "temperature": 1.3, "seed": 2, "n": 2, "stop": "1"}
    texts = [""] * 4
    for chunk in client.completions.create(model="unite", stream=True, **options):
        assert isinstance(chunk, Completion)
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [choice.text for choice in client.completions.create(model="unite", **options).choices]
    assert not any("1" in text for text in texts)


def test_the_async_client(ensemble, server):
    async def ask():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            prompts = [f"Sam has {n} coins." for n in range(12)]
            whole = [
                client.completions.create(model="unite", prompt=p, max_tokens=8 + n) for n, p in enumerate(prompts)
            ]
            answers = await asyncio.gather(*whole)
            pieces = []
            async for chunk in await client.chat.completions.create(
                model="unite", messages=CHAT, stream=True, max_tokens=9
            ):
                pieces += [choice.delta.content or "" for choice in chunk.choices]
            return prompts, [answer.choices[0].text for answer in answers], "".join(pieces)

    prompts, texts, streamed = asyncio.run(ask())
    assert texts == [ensemble.generate(p, max_new_tokens=8 + n) for n, p in enumerate(prompts)]
    assert streamed == ensemble.generate(CHAT, max_new_tokens=9)


def test_logprobs_are_those_of_the_averaged_union(ensemble, client):
    """A chosen token's probability is what scoring the same text offline gives."""
    options = {"model": "unite", "messages": CHAT, "max_tokens": 12, "logprobs": True, "top_logprobs": 3}
    answer = client.chat.completions.create(**options)
    content = answer.choices[0].logprobs.content
    assert b"".join(bytes(token.bytes) for token in content).decode() == answer.choices[0].message.content
    [request] = ensemble.generate_each([CHAT], max_new_tokens=12, trace=True)
    assert len(content) == len(request.ids) == 12
    for token, record in zip(content, request.records):
        assert [t.logprob for t in token.top_logprobs] == sorted((t.logprob for t in token.top_logprobs), reverse=True)
        spelled = {}
        for ids, average in zip(record.union_ids, record.union_probs):
            spelled[ids[0]] = spelled.get(ids[0], 0.0) + average
        assert token.logprob == pytest.approx(math.log(spelled[record.union_ids[record.winner][0]]), abs=1e-6)
        best = sorted((p for i, p in spelled.items() if i >= 0), reverse=True)[:3]
        assert [t.logprob for t in token.top_logprobs] == pytest.approx([math.log(p) for p in best], abs=1e-6)
        assert sum(math.exp(t.logprob) for t in token.top_logprobs) <= 1 + 1e-5
    streamed = []
    for chunk in client.chat.completions.create(stream=True, **options):
        if chunk.choices[0].logprobs:
            streamed += chunk.choices[0].logprobs.content
    assert streamed == content


@pytest.mark.parametrize("stop", [None, "answer", "4"])
def test_logprobs_end_where_the_text_ends(client, stop):
    options = {"model": "unite", "prompt": PROMPT, "max_tokens": 60, "logprobs": 2, "stop": stop}
    [choice] = client.completions.create(**options).choices
    found = choice.logprobs
    assert "".join(found.tokens).startswith(choice.text)
    assert len("".join(found.tokens[:-1])) < len(choice.text)
    assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == len(found.text_offset)
    for token, offset in zip(found.tokens, found.text_offset):
        assert choice.text[offset:].startswith(token) or token.startswith(choice.text[offset:])
    parts = [c.choices[0].logprobs for c in client.completions.create(stream=True, **options)]
    for field in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [v for part in parts for v in getattr(part, field)] == getattr(found, field)


@pytest.mark.parametrize("options", [{}, {"stop": " answer"}, {"temperature": 1.2, "seed": 3}])
def test_traces_whole_and_in_pieces(ensemble, client, options):
    given = {"model": "unite", "messages": CHAT, "max_tokens": 40, "extra_body": {"unite": {"trace": True}}, **options}
    answer = client.chat.completions.create(**given)
    [trace] = from_json(answer.choices[0].unite["trace"], "the answer", Trace)
    offline = {name: value for name, value in options.items() if name != "temperature"}
    if "temperature" in options:
        offline |= {"temperature": 1.2, "do_sample": True}
    expected = ensemble.trace(CHAT, max_new_tokens=40, **offline)
    assert (trace.text, trace.steps, trace.tokens) == (expected.text, expected.steps, expected.tokens)
    assert trace.members == ["qwen2", "mistral"]
    joined = streamed_trace(client.chat.completions.create(stream=True, **given), trace)
    assert (joined.steps, joined.tokens) == (expected.steps, expected.tokens)


def test_characters_of_several_tokens_are_not_torn(client):
    """Under stop strings and sampling at a high temperature pieces stay whole characters."""
    options = {"model": "unite", "prompt": "Zoë José ", "max_tokens": 60, "temperature": 2, "seed": 1, "stop": "\n\n"}
    for seed in range(4):
        options["seed"] = seed
        [whole] = client.completions.create(**options).choices
        pieces = [chunk.choices[0].text for chunk in client.completions.create(stream=True, **options)]
        assert "".join(pieces) == whole.text


def test_messages_of_every_form(ensemble, client):
    parts = [
        {"role": "user", "content": [{"type": "text", "text": QUESTION[:9]}, {"type": "text", "text": QUESTION[9:]}]}
    ]
    messages = [
        {"role": "developer", "content": "Work it out."},
        {"role": "assistant", "content": "Yes.", "tool_calls": None, "refusal": None},
        *parts,
    ]
    answer = client.chat.completions.create(model="unite", messages=messages, max_tokens=40, user="somebody")
    assert answer.choices[0].message.content == ensemble.generate(CHAT, max_new_tokens=40)
    begun = [*CHAT, {"role": "assistant", "content": "12+"}]
    answer = client.chat.completions.create(model="unite", messages=begun, max_tokens=9)
    assert answer.choices[0].message.content == ensemble.generate(PROMPT + "12+", max_new_tokens=9)


def test_fields_that_ask_for_nothing_are_taken(client):
    client.chat.completions.create(
        model="unite", messages=CHAT, max_tokens=1, frequency_penalty=0, presence_penalty=0.0, logit_bias={}, tools=[],
        response_format={"type": "text"}, store=False, parallel_tool_calls=True, service_tier="auto", stop=None,
    )  # fmt: skip


def test_models(client):
    [model] = client.models.list().data
    assert model.id == "unite"
    assert model.unite["members"] == ["qwen2", "mistral"]
    assert model.unite["methods"] == ["unite", "gac"]
    assert client.models.retrieve("unite") == model


def test_requests_draft_where_the_server_does(ensemble):
    with running(ensemble, speculate=3, compare_every=1) as server, server.client() as client:
        answer = client.completions.create(model="unite", prompt=PROMPT, max_tokens=40)
        assert answer.choices[0].text == ensemble.generate(PROMPT, max_new_tokens=40)
        client.completions.create(model="unite", prompt=PROMPT, max_tokens=4, temperature=1)
        text = httpx.get(f"{server.url}/metrics").text
        counts = {line.split(" ")[0]: float(line.split(" ")[1]) for line in text.splitlines() if line[0] != "#"}
    assert counts['unite_draft_tokens_total{outcome="accepted"}'] > 5
    decided = [value for name, value in counts.items() if name.startswith("unite_steps_decided_total")]
    assert sum(decided) == answer.usage.completion_tokens + 4 + (answer.choices[0].finish_reason == "stop")
    assert counts["unite_completion_tokens_total"] == answer.usage.completion_tokens + 4


def test_metrics(ensemble):
    with running(ensemble) as server, server.client() as client:
        for _ in range(3):
            client.completions.create(model="unite", prompt=PROMPT, max_tokens=5)
        server.post("/v1/completions", {"model": "other", "prompt": "A"})
        text = httpx.get(f"{server.url}/metrics").text
    for line in (
        'unite_requests_total{endpoint="/v1/completions",status="200"} 3.0',
        'unite_requests_total{endpoint="/v1/completions",status="404"} 1.0',
        "unite_completion_tokens_total 15.0",
        f"unite_prompt_tokens_total {3.0 * len(ensemble.members[0].encode_prompt(PROMPT))}",
        "unite_time_to_first_token_seconds_count 3.0",
        "unite_time_per_token_seconds_count 3.0",
        "unite_texts_running 0.0",
        "unite_texts_waiting 0.0",
        "unite_step_texts_sum 15.0",
    ):
        assert line in text.splitlines()
    assert 'unite_member_pass_seconds_count{member="mistral"}' in text
    assert QUESTION not in text


def test_a_method_that_samples_not_is_greedy(ensemble, server):
    body = {"model": "unite", "prompt": PROMPT, "temperature": 1, "unite": {"method": "gac"}}
    response = server.post("/v1/completions", body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "temperature"
    with (
        pytest.raises(ValueError, match="temperature must be 0 with method 'gac'"),
        running(ensemble, methods=("gac",), temperature=1.0),
    ):
        pass


def test_an_answer_level_method_cannot_be_served(ensemble):
    with pytest.raises(TypeError, match="chooses among whole answers"), running(ensemble, methods=("voting",)):
        pass


def test_a_single_member_is_served(ensemble):
    alone = UniteEnsemble(ensemble.members[:1])
    with running(alone, name="qwen2") as server, server.client() as client:
        answer = client.completions.create(model="qwen2", prompt=PROMPT, max_tokens=9)
    assert answer.choices[0].text == alone.generate(PROMPT, max_new_tokens=9)
