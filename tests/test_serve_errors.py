"""What is wrong with a request is said in OpenAI's form, with its status and its field; keys, hosts and limits hold."""

from __future__ import annotations

import json
import logging
import re
import socket
import time
from pathlib import Path

import httpx
import openai
import pytest
from running_server import CHAT, PROMPT, QUESTION, demo_ensemble, running

from unite_ext.serve.options import LOOPBACK, ServeOptions

GOOD = {"model": "unite", "prompt": PROMPT, "max_tokens": 2}
GOOD_CHAT = {"model": "unite", "messages": CHAT, "max_tokens": 2}
KEY = "sk-a-key-of-the-tests"


@pytest.fixture(scope="module")
def server():
    with running(
        max_tokens=50, max_choices=4, max_body=20_000, max_prompt_tokens=200, body_timeout=0.5, allowed_hosts=LOOPBACK
    ) as started:
        yield started


@pytest.fixture(scope="module")
def locked():
    with running(api_keys=(KEY, "another-key")) as started:
        yield started


def error_of(response: httpx.Response) -> dict:
    """The error of a response, which has OpenAI's form."""
    body = response.json()
    assert list(body) == ["error"]
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    return body["error"]


BAD = [
    ({"temperature": 3}, "temperature", "temperature: input should be less than or equal to 2, got 3"),
    ({"temperature": "hot"}, "temperature", "temperature: input should be a valid number, got text"),
    ({"temperature": True}, "temperature", "temperature: input should be a valid number, got True"),
    ({"top_p": 0}, "top_p", "greater than 0"),
    ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
    ({"max_tokens": 51}, "max_tokens", "max_tokens must be from 1 to 50, got 51"),
    ({"max_tokens": 2.5}, "max_tokens", "valid integer"),
    ({"n": 0}, "n", "greater than or equal to 1"),
    ({"n": 5}, "n", "at most 4 texts, got 5"),
    ({"prompt": ["A"] * 3, "n": 2}, "n", "at most 4 texts, got 6"),
    ({"prompt": []}, "prompt", "prompt must hold at least one text, got none"),
    ({"prompt": [1, 2]}, "prompt", "prompt must be text or a list of texts"),
    ({"prompt": "\ud800"}, "prompt", "lone surrogate"),
    ({"prompt": "word " * 75}, "prompt", "at most 200 tokens, got"),
    ({"prompt": "a1 " * 400}, "prompt", "whose context holds 256"),
    ({"prompt": "word " * 3000}, "prompt", "characters to fit into the members' contexts, got 15000"),
    ({"stop": ""}, "stop", "stop must be a text or up to 16 texts, none of them empty"),
    ({"stop": ["a"] * 17}, "stop", "up to 16"),
    ({"seed": -1}, "seed", "greater than or equal to 0"),
    ({"seed": 2**63}, "seed", "less than"),
    ({"logprobs": 21}, "logprobs", "less than or equal to 20"),
    ({"logit_bias": {"1": 5}}, "logit_bias", "logit_bias is not supported by this server"),
    ({"frequency_penalty": 0.5}, "frequency_penalty", "is not supported"),
    ({"presence_penalty": False}, "presence_penalty", "is not supported"),
    ({"echo": True}, "echo", "is not supported"),
    ({"best_of": 2}, "best_of", "is not supported"),
    ({"suffix": "end"}, "suffix", "is not supported"),
    ({"invented": 1}, "invented", "invented is not a known field"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "must come with stream: true"),
    ({"stream": True, "stream_options": {"other": 1}}, "stream_options.other", "is not a known field"),
    ({"unite": {"k": 0}}, "unite.k", "greater than or equal to 1"),
    ({"unite": {"k": 200, "weights": [1, 2, 3]}}, "unite.weights", "weights must"),
    ({"unite": {"k": 10**6}}, "unite.k", "k must be from 1 to"),
    ({"unite": {"weights": [1]}}, "unite.weights", "weights must"),
    ({"unite": {"weights": [0, 0]}}, "unite.weights", "weights must"),
    ({"unite": {"weights": [1, "x"]}}, "unite.weights.1", "valid number"),
    ({"unite": {"method": "gac"}}, "unite.method", "method must be one of 'unite', got 'gac'"),
    ({"unite": {"method_options": {}}}, "unite.method_options", "is not a known field"),
    ({"unite": 3}, "unite", "got 3"),
    ({"user": 5}, "user", "valid string"),
    ({"model": 5}, "model", "valid string"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "param", "message"), BAD)
def test_a_bad_field_of_a_completion(server, change, param, message):
    body = json.dumps({**GOOD, **change})  # as ASCII, so that half a surrogate pair comes through
    response = httpx.post(
        f"{server.url}/v1/completions", content=body, headers={"Content-Type": "application/json"}, timeout=30
    )
    assert response.status_code == 400
    error = error_of(response)
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert message in error["message"]
    assert QUESTION not in response.text


BAD_CHATS = [
    ({"messages": []}, "messages", "at least 1 item"),
    ({"messages": "Hi"}, "messages", "got text"),
    ({"messages": [{"content": "Hi"}]}, "messages.0.role", "messages.0.role must be given"),
    ({"messages": [{"role": "tool", "content": "Hi"}]}, "messages.0.role", "got text"),
    ({"messages": [{"role": "user", "content": "Hi", "name": "A"}]}, "messages.0.name", "name is not supported"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, None, "content"),
    ({"top_logprobs": 2}, "top_logprobs", "must come with logprobs: true"),
    ({"logprobs": 2}, "logprobs", "valid boolean"),
    ({"max_completion_tokens": 3}, "max_completion_tokens", "its older name"),
    ({"tools": [{"type": "function"}]}, "tools", "tools is not supported"),
    ({"reasoning_effort": "high"}, "reasoning_effort", "is not supported"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "param", "message"), BAD_CHATS)
def test_a_bad_field_of_a_chat(server, change, param, message):
    response = server.post("/v1/chat/completions", {**GOOD_CHAT, **change})
    assert response.status_code == 400
    error = error_of(response)
    assert param in (None, error["param"])
    assert message in error["message"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[1]", b"null", b'"text"', b"\xff\xfe", b"[" * 15_000, b'{"model": ' + b"9" * 5000 + b"}",
             b'{"model": "unite", "prompt": "A", "temperature": NaN}'],
)  # fmt: skip
def test_a_body_that_is_no_request(server, body):
    headers = {"Content-Type": "application/json"}
    response = httpx.post(f"{server.url}/v1/completions", content=body, headers=headers, timeout=30)
    assert response.status_code == 400
    error_of(response)


def test_missing_fields_are_named(server):
    assert error_of(server.post("/v1/completions", {"model": "unite"}))["message"] == "prompt must be given"
    assert error_of(server.post("/v1/chat/completions", {"messages": CHAT}))["param"] == "model"


def test_the_client_sees_its_own_kinds_of_error(server, locked):
    with server.client() as client:
        with pytest.raises(openai.NotFoundError) as missing:
            client.completions.create(**{**GOOD, "model": "gpt-4"})
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("gpt-4")
        with pytest.raises(openai.BadRequestError) as long:
            client.completions.create(**{**GOOD, "prompt": "word " * 3000})
        assert long.value.code == "context_length_exceeded"
        with pytest.raises(openai.BadRequestError):  # before a stream begins, and not in it
            client.completions.create(**{**GOOD, "max_tokens": 51}, stream=True)
    with (
        openai.OpenAI(base_url=f"{locked.url}/v1", api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.completions.create(**GOOD)


def test_pages_and_methods_that_there_are_not(server):
    for method, path, status in (("GET", "/v2", 404), ("GET", "/v1/completions", 405), ("DELETE", "/health", 405)):
        response = httpx.request(method, server.url + path)
        assert response.status_code == status
        error_of(response)


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer wrong", f"Basic {KEY}", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}"]
)
@pytest.mark.parametrize("path", ["/v1/models", "/v1/completions", "/metrics", "/v1/other"])
def test_without_the_key_nothing(locked, header, path):
    headers = {"Authorization": header} if header else {}
    method = "POST" if "completions" in path else "GET"
    response = httpx.request(method, locked.url + path, headers=headers)
    assert response.status_code == 401
    assert error_of(response)["code"] == "invalid_api_key"


def test_every_key_opens(locked):
    for key in (KEY, "another-key"):
        for header in (f"Bearer {key}", f"bearer  {key}"):
            assert httpx.get(f"{locked.url}/v1/models", headers={"Authorization": header}).status_code == 200
    assert httpx.get(f"{locked.url}/health").json() == {"status": "ok"}


def test_neither_key_nor_prompt_is_logged(locked, caplog):
    caplog.set_level(logging.DEBUG)
    assert locked.post("/v1/completions", GOOD).status_code == 200
    assert locked.post("/v1/completions", {**GOOD, "prompt": [3], "user": "zebra"}).status_code == 400
    assert locked.post("/v1/chat/completions?key=zebra", {**GOOD_CHAT, "zebra": 3}).status_code == 400
    locked.post("/v1/completions", GOOD, headers={"Authorization": "Bearer zebra"})
    ours = [record for record in caplog.records if record.name.startswith("unite_ext")]
    assert len(ours) >= 4
    for record in caplog.records:
        # The test's own client, and uvicorn's log of requests, which has no handler (pytest gives it one).
        if not record.name.startswith(("httpx", "httpcore", "uvicorn.access")):
            text = f"{record.getMessage()} {record.exc_text}"
            assert not any(word in text for word in (KEY, "zebra", "pens")), text
    assert KEY not in repr(locked.service.options)


def test_another_site_s_host_is_not_answered(server):
    for host, status in (("evil.example", 400), ("evil.example:80", 400), ("localhost:1", 200), ("[::1]:5", 200)):
        response = httpx.get(f"{server.url}/health", headers={"Host": host})
        assert response.status_code == status


def test_a_form_of_another_site_is_no_request(server):
    body = json.dumps(GOOD)
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        response = httpx.post(f"{server.url}/v1/completions", content=body, headers={"Content-Type": kind})
        assert response.status_code == 400
        assert error_of(response)["code"] == "bad_content_type"
    assert not any(name.startswith("access-control") for name in httpx.get(f"{server.url}/health").headers)


def test_a_large_body(server):
    declared = server.post("/v1/completions", {**GOOD, "prompt": "a" * 30_000})
    assert declared.status_code == 413

    def pieces():
        yield b'{"model": "unite", "prompt": "'
        for _ in range(40):
            yield b"a" * 1000

    headers = {"Content-Type": "application/json"}
    chunked = httpx.post(f"{server.url}/v1/completions", content=pieces(), headers=headers)
    assert chunked.status_code == 413
    assert error_of(chunked)["message"] == "the body must have at most 20000 bytes, got more"


def test_a_slow_body(server):
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        head = (
            "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 90"
        )
        connection.sendall(f"{head}\r\n\r\n{{".encode())
        connection.settimeout(20)
        assert b" 408 " in connection.recv(65536).split(b"\r\n")[0]


def test_a_full_queue():
    """What comes when all places are taken is told to come again; the others are answered."""
    with running(max_requests=1, max_waiting=1) as server, server.client() as client:
        streams = [client.completions.create(**{**GOOD, "max_tokens": 200}, stream=True) for _ in range(2)]
        with pytest.raises(openai.RateLimitError) as full:
            client.completions.create(**GOOD)
        assert full.value.code == "queue_full"
        assert 1 <= int(full.value.response.headers["retry-after"]) <= 60
        for stream in streams:
            stream.close()
        server.wait_until_idle()
        assert client.completions.create(**GOOD).usage.completion_tokens == 2
        # The client's own retries follow the header.
        retrying = client.with_options(max_retries=2)
        assert retrying.completions.create(**GOOD).usage.completion_tokens == 2


def test_a_failed_preparation_gives_its_place_back():
    with running(max_requests=1, max_waiting=0) as server:
        for _ in range(3):
            assert server.post("/v1/completions", {**GOOD, "prompt": "\u00e4" * 5000}).status_code == 400
            assert server.post("/v1/completions", {**GOOD, "unite": {"weights": [1]}}).status_code == 400
        assert server.post("/v1/completions", GOOD).status_code == 200


def test_a_request_that_never_fits_into_memory():
    with running(cache_memory=20_000) as server:
        response = server.post("/v1/completions", {**GOOD, "max_tokens": 200})
        assert response.status_code == 400
        assert error_of(response)["code"] == "out_of_memory"
        assert "GB for caches" in error_of(response)["message"]


def test_a_step_that_fails_fails_its_requests_and_no_others(caplog):
    """An error of torch in a step: those that ran get a 500 or an error in their stream, the next one its answer."""
    ensemble = demo_ensemble()
    calls = [0]

    def fail_once(*_):
        calls[0] += 1
        if calls[0] == 5:
            raise RuntimeError("a device has failed, as a test wants it")

    with running(ensemble) as server, server.client() as client:
        handle = ensemble.members[1].model.register_forward_pre_hook(fail_once)
        try:
            stream = client.completions.create(**{**GOOD, "max_tokens": 50}, stream=True)
            with pytest.raises(openai.APIError, match="the server failed on this request"):
                list(stream)
            assert "a device has failed" in caplog.text
            calls[0] = 0
            assert server.post("/v1/completions", {**GOOD, "max_tokens": 50}).status_code == 500
        finally:
            handle.remove()
        server.wait_until_idle()
        answer = client.completions.create(**GOOD)
        assert answer.choices[0].text == ensemble.generate(PROMPT, max_new_tokens=2)


def test_a_row_that_cannot_be_decided_fails_alone():
    ensemble = demo_ensemble()
    marked = ensemble.members[1].encode_prompt("zzz")[-1]

    def spoil(module, arguments, keywords, output):
        for row, ids in enumerate(keywords["input_ids"].tolist()):
            if marked in ids:
                output.logits[row] = float("nan")

    with running(ensemble) as server, server.client() as client:
        handle = ensemble.members[1].model.register_forward_hook(spoil, with_kwargs=True)
        try:
            stream = client.completions.create(**{**GOOD, "max_tokens": 40}, stream=True)
            assert server.post("/v1/completions", {**GOOD, "prompt": "zzz"}).status_code == 500
            text = "".join(chunk.choices[0].text for chunk in stream)
        finally:
            handle.remove()
    assert text == ensemble.generate(PROMPT, max_new_tokens=40)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_requests": 0}, "max_requests must be"),
        ({"max_waiting": -1}, "max_waiting must be"),
        ({"temperature": 3.0}, "temperature must be from 0 to 2"),
        ({"grace": -1.0}, "grace must be a number of seconds"),
        ({"stall_timeout": float("nan")}, "stall_timeout must be a number of seconds"),
        ({"name": ""}, "name must be printable"),
        ({"methods": ()}, "methods must name at least one"),
        ({"api_keys": ("a b",)}, "api_keys must be printable ASCII"),
        ({"api_keys": ("",)}, "api_keys must be"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        ServeOptions(**options)


def test_comparing_keys_takes_as_long_whatever_they_share(locked):
    """Keys are compared by digests of one length: no wrong key is answered by another path than a right one."""
    from unite_ext.serve.guard import Guard

    guard = Guard(lambda *_: None, locked.service.options, locked.service.metrics, str)
    lengths = set()
    for given in (b"", b"x", KEY.encode(), b"x" * 5000):
        try:
            guard._check_key(b"Bearer " + given)
        except Exception as error:
            lengths.add(str(error))
    assert len(lengths) == 1
    start = time.perf_counter()
    httpx.get(f"{locked.url}/v1/models", headers={"Authorization": "Bearer " + "x" * 60_000})
    assert time.perf_counter() - start < 5


def test_the_dashboard_asks_for_metrics_that_there_are(locked):
    page = Path(__file__).resolve().parent.parent / "docs" / "serve" / "dashboard.json"
    panels = json.loads(page.read_text())["panels"]
    asked = {name for p in panels for t in p["targets"] for name in re.findall(r"unite_\w+", t["expr"])}
    names = {metric.name for metric in locked.service.metrics.registry.collect()}
    assert asked
    for name in asked:
        assert re.sub("_(total|bucket)$", "", name) in names
