"""A real server in a thread, for tests that speak to it over a socket."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import openai
from server_thread import listening, running_in_thread

from unite_ext import UniteEnsemble
from unite_ext.demo import CHAT_TEMPLATE, COMPARABLE, load_member
from unite_ext.demo.problems import prompt_of
from unite_ext.serve.app import Service
from unite_ext.serve.options import ServeOptions
from unite_ext.serve.server import make_server
from unite_ext.trace import Trace
from unite_ext.trace.files import from_json

QUESTION = "Mia has 12 pens, finds 18 more and then loses 5. How many pens does Mia have now?"
PROMPT = prompt_of(QUESTION)
CHAT = [{"role": "user", "content": QUESTION}]


@functools.cache
def demo_ensemble() -> UniteEnsemble:
    """Two of the bundled models."""
    return UniteEnsemble([load_member(name, chat_template=CHAT_TEMPLATE) for name in COMPARABLE[:2]])


def streamed_trace(chunks: Iterable[Any], whole: Trace) -> Trace:
    """The trace that a stream's chunks make together; what they do not say of the text is taken from the whole one."""
    head: dict[str, Any] = {}
    steps: list[Any] = []
    names: list[dict[str, str]] = [{} for _ in whole.members]
    for chunk in chunks:
        if not chunk.choices:
            head = chunk.unite
        elif (part := getattr(chunk.choices[0], "unite", None)) is not None:
            steps += part["steps"]
            for own, new in zip(names, part["tokens"], strict=True):
                own |= new
    text = {"prompt": whole.prompt, "text": whole.text, "finish_reason": whole.finish_reason}
    record = {**head, **text, "steps": steps, "tokens": names}
    [trace] = from_json({"format": "unite-trace", "version": 1, "traces": [record]}, "the stream", Trace)
    return trace


@dataclass
class Running:
    """A server that runs."""

    url: str
    port: int
    service: Service
    key: str

    def client(self, **options: Any) -> openai.OpenAI:
        """OpenAI's client for it, which does not try again."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.key, max_retries=0, **options)

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        """One JSON request."""
        headers = {"Authorization": f"Bearer {self.key}"} | options.pop("headers", {})
        return httpx.post(self.url + path, json=body, headers=headers, timeout=60, **options)

    @property
    def engine(self) -> Any:
        """The engine, which belongs to another thread: only for looking."""
        return self.service.engine._engine

    def wait_until_idle(self, seconds: float = 20) -> None:
        """Wait until nothing runs and nothing is reserved."""
        end = time.monotonic() + seconds
        while self.engine.has_work or self.service.engine.num_reserved:
            assert time.monotonic() < end, (self.engine.num_running, self.service.engine.num_reserved)
            time.sleep(0.005)


@contextmanager
def running(ensemble: UniteEnsemble | None = None, **options: Any) -> Iterator[Running]:
    """Run a server until the block ends."""
    with listening() as (listener, port):
        server = make_server(ensemble or demo_ensemble(), ServeOptions(**options), host="127.0.0.1", port=port)
        with running_in_thread(server, listener):
            key = options.get("api_keys", ["none"])[0]
            yield Running(f"http://127.0.0.1:{port}", port, server._service, key)
