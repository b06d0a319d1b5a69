"""Clients that leave, read slowly or not at all, and the server's own end: rows are freed, and nothing is lost."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import threading
import time

import httpx
import openai
import pytest
from command_processes import Command
from running_server import PROMPT, demo_ensemble, running

from unite_ext.serve import engine_thread
from unite_ext.serve.jobs import Job
from unite_ext.serve.stream import EventStream, with_errors

LONG = {"model": "unite", "prompt": PROMPT, "max_tokens": 200, "temperature": 2, "seed": 3}


@pytest.fixture(scope="module")
def server():
    with running() as started:
        yield started


def slowed(ensemble, seconds=0.02):
    """Let every step of an ensemble take a while."""
    return ensemble.members[0].model.register_forward_pre_hook(lambda *_: time.sleep(seconds))


def raw_post(port: int, body: dict, receive_buffer: int | None = None) -> socket.socket:
    """Send a request on a socket, of which nobody reads the answer."""
    connection = socket.socket()
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.connect(("127.0.0.1", port))
    data = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}"
    connection.sendall(head.encode() + b"\r\n\r\n" + data)
    return connection


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_a_client_that_leaves_frees_its_rows(server, stream, n):
    handle = slowed(demo_ensemble())
    try:
        connection = raw_post(server.port, {**LONG, "stream": stream, "n": n})
        while server.engine.num_running < n:
            time.sleep(0.002)
        running_texts = [choice.request for _, choice in server.service.engine._choices.values()]
        connection.close()
        before = max(len(request.ids) for request in running_texts)
        server.wait_until_idle(2)
    finally:
        handle.remove()
    assert all(not request.done for request in running_texts)
    assert max(len(request.ids) for request in running_texts) <= before + 3  # it takes a step to hear of it


def test_a_client_that_leaves_while_it_waits(server):
    with running(max_requests=1) as one:
        first = raw_post(one.port, {**LONG, "stream": True})
        while one.engine.num_running < 1:
            time.sleep(0.002)
        second = raw_post(one.port, LONG)
        while one.engine.num_waiting < 1:
            time.sleep(0.002)
        second.close()
        while one.engine.num_waiting:
            time.sleep(0.002)
        first.close()
        one.wait_until_idle()


def test_those_beside_go_on(server):
    """Others' texts stay those that they would have been."""
    expected = demo_ensemble().generate(PROMPT, max_new_tokens=40)
    stop = threading.Event()

    def come_and_go():
        while not stop.is_set():
            raw_post(server.port, {**LONG, "stream": True}).close()
            time.sleep(0.01)

    leaving = threading.Thread(target=come_and_go)
    leaving.start()
    try:
        with server.client() as client:
            for stream in (False, True):
                for _ in range(4):
                    answer = client.completions.create(model="unite", prompt=PROMPT, max_tokens=40, stream=stream)
                    chunks = answer if stream else [answer]
                    assert "".join(chunk.choices[0].text for chunk in chunks) == expected
    finally:
        stop.set()
        leaving.join()
    server.wait_until_idle()


def test_a_slow_reader_is_given_up():
    """A stream of which nobody reads the pieces ends, however much its client would have got."""
    body = {**LONG, "stream": True, "logprobs": 20, "n": 8, "unite": {"trace": True}}
    with running(stream_buffer=4) as server:
        connection = raw_post(server.port, body, receive_buffer=2048)
        end = time.monotonic() + 30
        while "unite_slow_readers_total 1.0" not in httpx.get(f"{server.url}/metrics").text:
            assert time.monotonic() < end, "the stream is still made"
            time.sleep(0.02)
        server.wait_until_idle()
        connection.settimeout(20)
        received = b""
        while b"slow_reader" not in received:
            data = connection.recv(1 << 20)
            assert data, received[-300:]
            received = received[-1000:] + data
        connection.close()


def test_a_client_that_never_reads_is_given_up():
    body = {**LONG, "stream": True, "logprobs": 20, "n": 8, "unite": {"trace": True}}
    with running(stream_buffer=4, stall_timeout=0.2) as server:
        connection = raw_post(server.port, body, receive_buffer=2048)
        server.wait_until_idle(30)
        end = time.monotonic() + 10
        while 'endpoint="/v1/completions"' not in httpx.get(f"{server.url}/metrics").text:
            assert time.monotonic() < end, "the request still waits for its client"
            time.sleep(0.05)
        connection.close()


def test_an_event_stream_ends_with_its_client():
    """Whatever happens first, `on_end` is called once and no task is left."""

    async def events(count):
        for n in range(count):
            await asyncio.sleep(0)
            yield b"%d" % n
        if count == 3:
            raise RuntimeError("as a test wants it")

    async def run(count, leaves_after, blocks):
        sent, ended = [], []

        async def receive():
            await asyncio.sleep(leaves_after)
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)
            if blocks:
                await asyncio.sleep(100)

        stream = EventStream(with_errors(events(count)), lambda: ended.append(1), 0.05)
        await stream({"type": "http"}, receive, send)
        assert len(asyncio.all_tasks()) == 1
        assert ended == [1]
        return b"".join(message.get("body", b"") for message in sent)

    assert asyncio.run(run(4, 100, False)) == b"0123"
    assert b"the server failed" in asyncio.run(run(3, 100, False))
    assert b"".join([b"%d" % n for n in range(10**5)]).startswith(asyncio.run(run(10**5, 0.02, False)))
    assert asyncio.run(run(4, 100, True)) == b""
    assert asyncio.run(run(4, 0.01, True)) == b""


def test_news_come_before_the_error():
    async def read():
        job = Job([], None, 0, True, False, False, 1, asyncio.get_running_loop())
        job.put("a")
        job.error = openai_error = RuntimeError("x")
        job.wake()
        assert await job.news() == ["a"]
        with pytest.raises(RuntimeError) as error:
            await job.news()
        assert error.value is openai_error

    asyncio.run(read())


# The end, in processes of their own: only a main thread gets signals


@pytest.fixture
def start(tmp_path):
    """Starts `unite serve --demo` with options; returns the process and its address."""
    started = []

    def start(*options: str) -> tuple[Command, str]:
        process = Command(["serve", "--demo", "--port", "0", *options], tmp_path)
        started.append(process)
        end = time.monotonic() + 60
        while (found := re.search(r"at (http://127\.0\.0\.1:\d+)/v1", process.stderr)) is None:
            assert time.monotonic() < end, process.stderr
            assert process.poll() is None, process.stderr
            time.sleep(0.02)
        url = found[1]
        while True:
            try:
                httpx.get(f"{url}/health")
                return process, url
            except httpx.TransportError:
                assert time.monotonic() < end
                time.sleep(0.02)

    yield start
    for process in started:
        process.end()


def test_a_signal_lets_running_requests_finish(start):
    """New ones are refused meanwhile; a second signal ends those that would take longer."""
    process, url = start("--grace", "60", "--max-requests", "4")
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    alive = httpx.Client()  # its connection stays open
    assert alive.get(f"{url}/health").status_code == 200
    body = {"model": "unite", "prompt": PROMPT, "max_tokens": 60}
    stream = client.completions.create(**body, stream=True)
    first = next(iter(stream)).choices[0].text
    process.send_signal(signal.SIGTERM)
    text = first + "".join(chunk.choices[0].text for chunk in stream)
    assert text.endswith(".")
    assert process.wait(20) in (0, -signal.SIGTERM)
    with pytest.raises(openai.APIConnectionError):
        client.completions.create(**body)


def test_a_second_signal_ends_them_with_an_error(start):
    process, url = start("--grace", "60", "--max-requests", "2", "--max-tokens", "200")
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    # Waiting texts do not finish soon: there are many for two places.
    streams = [client.completions.create(**LONG, stream=True, n=16) for _ in range(4)]
    for stream in streams[:1]:
        next(iter(stream))
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    with pytest.raises(openai.APIError, match="the server is shutting down"):
        for _ in streams[3]:
            pass
    for stream in streams:
        stream.close()
    assert process.wait(20) in (0, -signal.SIGTERM)


def test_without_grace_they_end_with_an_error(start):
    process, url = start("--grace", "0", "--max-requests", "2")
    whole = threading.Thread(target=lambda: answers.append(httpx.post(f"{url}/v1/completions", json=body, timeout=60)))
    answers: list[httpx.Response] = []
    body = {**LONG, "n": 16}
    whole.start()
    while "unite_texts_running 2.0" not in httpx.get(f"{url}/metrics").text:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    whole.join(30)
    assert answers[0].status_code == 503
    assert answers[0].json()["error"]["code"] == "shutting_down"
    assert answers[0].headers["retry-after"]
    process.wait(20)


def test_while_it_ends_nothing_new_is_taken():
    with running() as server:
        connection = httpx.Client()
        assert connection.get(f"{server.url}/health").status_code == 200
        server.service.engine.close()
        for response in (
            connection.get(f"{server.url}/health"),
            connection.post(f"{server.url}/v1/completions", json={**LONG, "n": 2}),
        ):
            assert response.status_code == 503
            assert response.json()["error"]["code"] == "shutting_down"
        connection.close()


def test_a_port_in_use_is_said_before_models_are_loaded(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = Command(["serve", "--demo", "--port", str(taken.getsockname()[1])], tmp_path)
        assert result.wait() == 1
    assert "must name a free address of this machine" in result.stderr
    assert "Loading" not in result.stderr


def test_memory_is_given_back_once_when_nobody_asks_any_more(monkeypatch):
    given_back = []
    monkeypatch.setattr(engine_thread, "give_back", lambda: given_back.append(time.monotonic()))
    monkeypatch.setattr(engine_thread, "REST", 0.2)
    with running() as own:
        time.sleep(0.5)
        assert not given_back, "nothing has run yet"
        for asked in (1, 2):
            assert own.post("/v1/completions", LONG | {"max_tokens": 3}).status_code == 200
            ended = time.monotonic()
            time.sleep(1.0)
            assert len(given_back) == asked
            assert given_back[-1] >= ended + 0.1
