"""A member whose model runs in vLLM's engine in this process.

The engine has an event loop of its own in a background thread; questions are coroutines there. vLLM brings its own
torch and wants an environment of its own; for its server see `HttpMember`.
"""

from __future__ import annotations

import asyncio
import atexit
import itertools
import threading
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import TimeoutError as AnswerTimeout
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .base import Variables
from .remote import AnswerError, Backend, Listing
from .remote_member import RemoteMember

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Result = TypeVar("Result")
MOST_CHOSEN = 128
"""Ids in one `logprob_token_ids`."""


class VllmEngine(Backend):
    """vLLM's `AsyncLLM`.

    Parameters
    ----------
    model : str
    max_logprobs : int
        The most ids that one question lists.
    timeout : float
        Seconds that one question may wait for an answer.
    **options
        Of vLLM's `AsyncEngineArgs`.
    """

    def __init__(self, model: str, *, max_logprobs: int, timeout: float, **options: Any) -> None:
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self.most = max_logprobs
        self.usual = min(self.usual, max_logprobs)
        self._timeout = timeout
        self._numbers = itertools.count()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="unite-vllm", daemon=True).start()

        async def start() -> Any:
            return AsyncLLM.from_engine_args(AsyncEngineArgs(model=model, max_logprobs=max_logprobs, **options))

        self._engine: Any = asyncio.run_coroutine_threadsafe(start(), self._loop).result()
        self.context_length = int(self._engine.model_config.max_model_len)
        atexit.register(self.close)  # else its processes are ended amid the interpreter's own end

    def best(self, ids: Sequence[int], count: int) -> Listing:
        """See `Backend.best`."""
        found = self._wait(self._ask(ids, logprobs=count))
        ordered = dict(sorted(found.items(), key=lambda pair: (-pair[1], pair[0])))
        return Listing(ordered, whole=len(found) < count)

    def chosen(self, ids: Sequence[int], wanted: Sequence[int], listed: Mapping[int, float]) -> dict[int, float]:
        """See `Backend.chosen`."""
        found: dict[int, float] = {}
        rest = iter(wanted)
        while part := list(itertools.islice(rest, MOST_CHOSEN)):
            found |= self._wait(self._ask(ids, logprob_token_ids=part))
        if missing := [i for i in wanted if i not in found]:
            raise AnswerError(f"vLLM does not give the id {missing[0]} that was asked for")
        return found

    def close(self) -> None:
        """End the engine and its processes; once is enough."""
        atexit.unregister(self.close)
        engine, self._engine = self._engine, None
        if engine is None:
            return
        engine.shutdown()
        del engine  # now, while everything is there that its destructor needs
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def _ask(self, ids: Sequence[int], **options: Any) -> dict[int, float]:
        """The listed ids of one new token."""
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        wanted = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False, **options)
        last: Any = None
        # A copy: the engine may append to the list that it gets.
        prompt = TokensPrompt(prompt_token_ids=list(ids))
        async for output in self._engine.generate(prompt, wanted, f"unite-{next(self._numbers)}"):
            last = output
        return {int(i): float(entry.logprob) for i, entry in last.outputs[0].logprobs[0].items()}

    def _wait(self, question: Coroutine[Any, Any, Result]) -> Result:
        future = asyncio.run_coroutine_threadsafe(question, self._loop)
        try:
            return future.result(self._timeout)
        except AnswerTimeout:
            future.cancel()
            raise AnswerError("vLLM does not answer in time") from None
        except Exception as error:  # whatever the engine raises: it refuses, or has died
            raise AnswerError(f"vLLM: {type(error).__name__}: {error}") from error


class VllmMember(RemoteMember):
    """A member in vLLM's engine in this process.

    Parameters
    ----------
    model : str
        Hugging Face name or folder.
    tokenizer : str or transformers.PreTrainedTokenizerFast, optional
        Another than the model's.
    name : str, optional
        What messages call it, by default `model`.
    max_logprobs : int
        The most ids that a question lists.
    timeout : float
        Seconds that one question may wait for an answer.
    eos_token_ids, chat_template, chat_template_kwargs
        As `HttpMember`.
    **options
        Of vLLM's `AsyncEngineArgs`: `dtype`, `max_model_len`, `gpu_memory_utilization`, `tensor_parallel_size`, ...

    Raises
    ------
    ValueError
        vLLM is not installed.
    """

    def __init__(
        self,
        model: str,
        *,
        tokenizer: str | PreTrainedTokenizerBase | None = None,
        name: str | None = None,
        max_logprobs: int = 20,
        timeout: float = 60.0,
        eos_token_ids: Sequence[int] | None = None,
        concurrency: int = 32,
        chat_template: str | Path | None = None,
        chat_template_kwargs: Variables | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            tokenizer or model,
            name=name or model,
            eos_token_ids=eos_token_ids,
            concurrency=concurrency,
            chat_template=chat_template,
            chat_template_kwargs=chat_template_kwargs,
        )
        try:
            self.backend: VllmEngine = VllmEngine(model, max_logprobs=max_logprobs, timeout=timeout, **options)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.split(".")[0] != "vllm":
                raise
            raise ValueError("members in vLLM need vllm, in an environment of its own: pip install vllm") from error
        self.context_length = self.backend.context_length

    def __repr__(self) -> str:
        return f"VllmMember({self.name})"
