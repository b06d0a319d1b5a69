"""Servers that answer from a bundled model as vLLM, SGLang, llama.cpp's server and OpenAI-like ones do, over a socket.

Each gives the fields, the limits and the errors of the real one, as far as a member meets them. They follow the source
of vLLM 0.32.0, and the repositories of SGLang and llama.cpp as they were in 2026.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from server_thread import listening, running_in_thread

from unite_ext import Member
from unite_ext.demo import load_member

LOWEST_FLOAT = -3.4028234663852886e38  # what llama.cpp writes for the logarithm of 0
Fault = Callable[[str, dict[str, Any]], "Response | None"]


class Refuse(Exception):
    """An error answer."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        self.message = message


class Stub(ABC):
    """One server.

    Attributes
    ----------
    calls : list
        Path and body of everything that was asked.
    fault : callable
        Called before an answer; what it returns is answered instead.
    """

    def __init__(self, member: Member, *, key: str | None = None, max_logprobs: int = 20, name: str = "served") -> None:
        self.member = member
        self.key = key
        self.max_logprobs = max_logprobs
        self.name = name
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.fault: Fault = lambda path, body: None
        self.url = ""
        self.length = member.context_length or 512
        self.num_ids = member.num_logits
        self.tokenizer = member.tokenizer
        self._known: dict[tuple[int, ...], list[float]] = {}
        self._lock = threading.Lock()
        self.app = FastAPI()
        self.app.middleware("http")(self._guard)
        self.app.get("/v1/models")(self.models)
        self.routes()

    @abstractmethod
    def routes(self) -> None:
        """Add what this kind of server has."""

    def post(self, path: str, answer: Callable[[dict[str, Any]], Any]) -> None:
        """Add a path that takes a JSON object."""

        def handle(body: dict[str, Any]) -> Response:
            self.calls.append((path, body))
            found = self.fault(path, body)
            if found is not None:
                return found
            try:
                return JSONResponse(answer(body))
            except Refuse as error:
                return JSONResponse(self.error(error), error.status)

        self.app.post(path)(handle)

    def error(self, error: Refuse) -> dict[str, Any]:
        """An error's body."""
        return {"error": {"message": error.message, "type": "BadRequestError", "code": error.status}}

    async def _guard(self, request: Request, call_next: Any) -> Response:
        if self.key is not None and request.headers.get("Authorization") != f"Bearer {self.key}":
            return JSONResponse({"error": "Unauthorized"}, 401)
        return await call_next(request)

    def models(self) -> dict[str, Any]:
        """What /v1/models gives."""
        return {"object": "list", "data": [{"id": self.name, "object": "model", "max_model_len": self.length}]}

    def log_probs(self, ids: list[int]) -> list[float]:
        """The model's log-probabilities after these ids."""
        if len(ids) + 1 > self.length:
            raise Refuse(400, f"This model's maximum context length is {self.length} tokens, got {len(ids)} and 1")
        if not ids or max(ids) >= self.num_ids:
            raise Refuse(400, "Token id is out of vocabulary")
        key = tuple(ids)
        if key not in self._known:
            with self._lock, torch.no_grad():
                logits = self.member.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
            self._known[key] = logits.float().log_softmax(0).tolist()
        return self._known[key]

    def top(self, ids: list[int], count: int) -> dict[int, float]:
        """The likeliest ids."""
        values = self.log_probs(ids)
        order = np.argsort(-np.array(values), kind="stable")[:count]
        return {i: values[i] for i in order.tolist()}

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)


class VllmStub(Stub):
    """`vllm serve`."""

    def routes(self) -> None:
        self.post("/v1/completions", self.complete)
        self.post("/tokenize", self.tokenize)

    def tokenize(self, body: dict[str, Any]) -> dict[str, Any]:
        assert body["add_special_tokens"] is False
        ids = self.encode(body["prompt"])
        return {"count": len(ids), "max_model_len": self.length, "tokens": ids, "token_strs": None}

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        if body.get("model") != self.name:
            raise Refuse(404, f"The model `{body.get('model')}` does not exist.")
        wanted, count = body.get("logprob_token_ids"), body.get("logprobs")
        if wanted and count is None:
            raise Refuse(400, "when using `logprob_token_ids`, `logprobs` must be set.")
        if wanted and len(wanted) > 128:
            raise Refuse(
                400, f"Requested logprob_token_ids of length {len(wanted)}, which is greater than max allowed: 128"
            )
        if not wanted and count > self.max_logprobs:
            raise Refuse(
                400, f"Requested sample logprobs of {count}, which is greater than max allowed: {self.max_logprobs}"
            )
        values = self.log_probs(body["prompt"])
        [best] = self.top(body["prompt"], 1)
        listed = self.top(body["prompt"], count) if not wanted else {i: values[i] for i in (best, *wanted)}
        assert body["return_tokens_as_token_ids"] is True
        assert body["max_tokens"] == 1
        tops = {f"token_id:{i}": max(value, -9999.0) for i, value in listed.items()}
        logprobs = {
            "text_offset": [0], "token_logprobs": [values[best]], "tokens": [f"token_id:{best}"],
            "top_logprobs": [tops],
        }  # fmt: skip
        choice = {"index": 0, "text": "", "logprobs": logprobs, "finish_reason": "length", "stop_reason": None}
        return {"id": "cmpl-1", "object": "text_completion", "model": self.name, "choices": [choice], "usage": {}}


class SglangStub(Stub):
    """`sglang.launch_server`."""

    def routes(self) -> None:
        self.post("/generate", self.generate)
        self.post("/tokenize", self.tokenize)
        self.app.get("/get_model_info")(lambda: {"model_path": self.name, "is_generation": True})

    def tokenize(self, body: dict[str, Any]) -> dict[str, Any]:
        ids = self.encode(body["prompt"])
        return {"tokens": ids, "count": len(ids), "max_model_len": self.length}

    def generate(self, body: dict[str, Any]) -> dict[str, Any]:
        assert body["logprob_start_len"] == -1
        assert body["return_logprob"] is True
        assert body["sampling_params"] == {"max_new_tokens": 1, "temperature": 0.0}
        ids = body["input_ids"]
        values = self.log_probs(ids)
        [best] = self.top(ids, 1)
        meta: dict[str, Any] = {
            "prompt_tokens": len(ids), "completion_tokens": 1, "output_token_logprobs": [[values[best], best, None]],
        }  # fmt: skip
        if count := body.get("top_logprobs_num"):
            meta["output_top_logprobs"] = [[[value, i, None] for i, value in self.top(ids, count).items()]]
        if (wanted := body.get("token_ids_logprob")) is not None:
            meta["output_token_ids_logprobs"] = [[[values[i], i, None] for i in wanted]]
        return {"text": "", "output_ids": [best], "meta_info": meta}


class LlamaCppStub(Stub):
    """`llama-server`."""

    def routes(self) -> None:
        self.post("/completion", self.complete)
        self.post("/tokenize", self.tokenize)
        self.app.get("/props")(
            lambda: {"default_generation_settings": {"n_ctx": self.length}, "total_slots": 4, "build_info": "b1-stub"}
        )

    def models(self) -> dict[str, Any]:
        return {"object": "list", "data": [{"id": self.name, "meta": {"n_vocab": self.num_ids}}]}

    def error(self, error: Refuse) -> dict[str, Any]:
        return {"error": {"code": error.status, "message": error.message, "type": "invalid_request_error"}}

    def tokenize(self, body: dict[str, Any]) -> dict[str, Any]:
        assert body["add_special"] is False
        return {"tokens": self.encode(body["content"])}

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        ids = body["prompt"]
        values = self.log_probs(ids)
        biased = np.array(values)
        for i, bias in body.get("logit_bias", []):
            biased[i] += bias
        written = int(biased.argmax())
        data = self.member_bytes(written)
        try:
            data.decode()
            whole = True
        except UnicodeDecodeError:
            whole = False  # the server then keeps the token back, and its probabilities
        top = self.top(ids, body["n_probs"])
        probabilities = np.exp(np.array(list(top.values()), np.float64)).astype(np.float32)
        with np.errstate(divide="ignore"):
            logarithms = np.maximum(np.log(probabilities), LOWEST_FLOAT).tolist()
        listed = [{"id": i, "token": "", "bytes": [], "logprob": value} for i, value in zip(top, logarithms)]
        one = {"id": written, "token": "", "bytes": list(data), "logprob": values[written], "top_logprobs": listed}
        return {"content": "", "tokens": [], "stop": True, "completion_probabilities": [one] if whole else []}

    def member_bytes(self, token_id: int) -> bytes:
        """A token's bytes."""
        from unite_ext import Vocabulary

        if not hasattr(self, "_bytes"):
            self._bytes = Vocabulary.from_tokenizer(self.tokenizer).token_bytes
        return self._bytes[token_id] if token_id < len(self._bytes) else b""


class OpenAIStub(Stub):
    """Any server with OpenAI's /v1/completions: tokens as texts."""

    def routes(self) -> None:
        self.post("/v1/completions", self.complete)

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt = body["prompt"]
        ids = self.encode(prompt) if isinstance(prompt, str) else prompt
        count = body.get("logprobs")
        usage = {"prompt_tokens": len(ids), "completion_tokens": 1, "total_tokens": len(ids) + 1}
        logprobs = None
        if count is not None:
            if count > self.max_logprobs:
                raise Refuse(400, f"logprobs must be at most {self.max_logprobs}")
            texts: dict[str, float] = {}
            for i, value in self.top(ids, count).items():
                token = self.tokenizer.convert_ids_to_tokens(i)
                special = token in self.tokenizer.get_added_vocab()
                text = token if special else self.tokenizer.decode([i])
                texts.setdefault(text, value)
            logprobs = {"tokens": [""], "token_logprobs": [0.0], "top_logprobs": [texts], "text_offset": [0]}
        choice = {"index": 0, "text": "", "logprobs": logprobs, "finish_reason": "length"}
        return {"id": "cmpl-1", "object": "text_completion", "model": self.name, "choices": [choice], "usage": usage}


STUBS: dict[str, type[Stub]] = {
    "vllm": VllmStub, "sglang": SglangStub, "llama.cpp": LlamaCppStub, "openai": OpenAIStub,
}  # fmt: skip


@contextmanager
def running_stub(protocol: str, model: str, **options: Any) -> Iterator[Stub]:
    """Run a stub with one of the bundled models until the block ends."""
    stub = STUBS[protocol](load_member(model), **options)
    with serving(stub):
        yield stub


@contextmanager
def serving(stub: Stub) -> Iterator[None]:
    """Run a stub until the block ends."""
    with listening() as (listener, port):
        stub.url = f"http://127.0.0.1:{port}"
        server = uvicorn.Server(uvicorn.Config(stub.app, log_level="critical", lifespan="off"))
        with running_in_thread(server, listener, at_once=True):
            yield


def cut_off() -> Response:
    """An answer that ends in the middle: the connection closes."""

    def part() -> Iterator[bytes]:
        yield b'{"choices": [{"logp'

    return StreamingResponse(part(), headers={"content-length": "1000"}, media_type="application/json")
