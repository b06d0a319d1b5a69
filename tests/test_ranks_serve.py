"""`unite serve` in several processes: the texts of one process, and all end together."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from rank_cases import save_members
from rank_processes import Ranks, command

pytest.importorskip("fastapi", reason="fastapi is not installed: pip install 'unite_ext[serve]'")

import httpx

from unite_ext import UniteEnsemble

TIMEOUT = 4.0
LONG = 500
PROMPTS = ["Once upon a time", "2024 was", "A", "def main():\n"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return save_members(tmp_path_factory.mktemp("models"))[:2]


@pytest.fixture(scope="module")
def ensemble(folders):
    return UniteEnsemble.from_pretrained(folders)


@contextmanager
def serving(folders: list[str], folder: Path, *more: str) -> Iterator[tuple[Ranks, httpx.Client]]:
    """A server whose members live in two processes."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    arguments = ["serve", "--port", str(port), "--rank-timeout", str(TIMEOUT), *more]
    for name in folders:
        arguments += ["--model", name]
    ranks = Ranks(command, 2, (arguments,), folder)
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
    try:
        end = time.monotonic() + 90
        while True:
            try:
                client.get("/health")
                break
            except httpx.TransportError:
                assert time.monotonic() < end, ranks.said(0)
                assert ranks.wait(0.1) == [None, None], ranks.said(0) + ranks.said(1)
        yield ranks, client
    finally:
        client.close()
        ranks.end()


def complete(client: httpx.Client, prompt: str, **options: object) -> str:
    answer = client.post("/v1/completions", json={"model": "unite", "prompt": prompt, **options})
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["text"]


@pytest.fixture(scope="module")
def long_one(ensemble):
    """A prompt whose text does not end by itself, and that text."""
    found = ensemble.generate(PROMPTS, max_new_tokens=LONG, return_dict=True)
    return next((p, t) for p, t, why in zip(PROMPTS, found.texts, found.finish_reasons) if why == "length")


def stream_of(client: httpx.Client, prompt: str) -> AbstractContextManager[httpx.Response]:
    body = {"model": "unite", "prompt": prompt, "max_tokens": LONG, "stream": True}
    return client.stream("POST", "/v1/completions", json=body)


def test_texts_of_one_process_whoever_asks_when(folders, ensemble, long_one, tmp_path):
    """Several clients at once, one that leaves; then nobody for longer than the timeout; sampling; a signal to all."""
    with serving(folders, tmp_path / "ranks") as (ranks, client):
        found: dict[str, str] = {}
        threads = [
            threading.Thread(target=lambda p=p: found.update({p: complete(client, p, max_tokens=24)})) for p in PROMPTS
        ]
        for thread in threads:
            thread.start()
        with client.stream("POST", "/v1/completions", json={"model": "unite", "prompt": "A", "max_tokens": 900,
                                                            "stream": True}) as left:  # fmt: skip
            next(left.iter_lines())
        for thread in threads:
            thread.join()
        assert found == {prompt: ensemble.generate(prompt, max_new_tokens=24) for prompt in PROMPTS}

        time.sleep(1.5 * TIMEOUT)
        assert ranks.wait(0) == [None, None], ranks.said(1)
        drawn = complete(client, "A", max_tokens=24, temperature=0.8, seed=7)
        assert drawn == ensemble.generate("A", max_new_tokens=24, do_sample=True, temperature=0.8, seed=7)
        told = client.post("/v1/completions", json={"model": "unite", "prompt": "A", "unite": {"method": "gac"}})
        assert told.status_code == 400, told.text

        prompt, text = long_one
        with stream_of(client, prompt) as stream:
            lines = stream.iter_lines()
            pieces = [next(lines)]
            for process in ranks.processes:  # as a launcher does, or Ctrl-C
                os.kill(process.pid, signal.SIGTERM)
            pieces += [line for line in lines if line]
        assert pieces.pop() == "data: [DONE]", "what runs is finished"
        told = [json.loads(piece.removeprefix("data: ")) for piece in pieces if piece]
        assert "".join(piece["choices"][0]["text"] for piece in told) == text
        assert ranks.wait(60) == [0, 0], ranks.said(0) + ranks.said(1)
        assert "error" not in ranks.said(0) + ranks.said(1)


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "in a step"])
def test_the_server_ends_with_another_process(folders, long_one, tmp_path, busy):
    """Within the timeout, asked for something or not, with one line that names the process and its member."""
    with serving(folders, tmp_path / "ranks") as (ranks, client):
        if busy:
            with stream_of(client, long_one[0]) as stream:
                lines = stream.iter_lines()
                next(lines)
                os.kill(ranks.processes[1].pid, signal.SIGKILL)
                rest = [line for line in lines if line]
            assert "error" in json.loads(rest[-1].removeprefix("data: ")), rest[-2:]
        else:
            os.kill(ranks.processes[1].pid, signal.SIGKILL)
        assert ranks.wait(3 * TIMEOUT, [0]) == [1], ranks.said(0)
        expected = f"error: rank 1 ({folders[1]}) has ended, or does not answer"
        assert expected in ranks.said(0).splitlines(), ranks.said(0)
