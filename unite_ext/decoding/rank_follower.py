"""What the other processes than rank 0 do with ranks="led": the same as it, with engines of their own."""

from __future__ import annotations

import json
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ..members.rank_group import CLOSE, OPEN, STEP, RankError
from ..methods.base import Method, TokenMethod
from ..options import GenerationOptions, StepOptions, step_options
from .engine import PREFILL_CHUNK, Engine
from .prompt_ids import EncodedPrompt
from .rank_calls import Call, Ranks
from .request import Request


class Owner(Protocol):
    """An ensemble, as far as following needs it; see `EnsembleEngines`."""

    def alone(self, m: int) -> Owner: ...

    def make_engine(
        self,
        *,
        primary: int,
        max_requests: int,
        expected_length: int = 0,
        prefill_chunk: int = PREFILL_CHUNK,
        cache_memory: int | None = None,
    ) -> Engine: ...

    def make_method(self, method: str, own: Mapping[str, Any] | None, step: StepOptions) -> Method: ...


def follow(ensemble: Owner, ranks: Ranks) -> None:
    """Do what rank 0 is asked for, until it is done.

    Raises
    ------
    RankError
        A process has ended, or does not answer; says which.
    """
    engines: dict[int, _Followed] = {}
    while True:
        header, message = ranks.group.listen()
        said: Mapping[str, Any] = json.loads(message) if message else {}
        if header.action == CLOSE:
            return
        if header.action == OPEN:
            settings = dict(said)
            alone = settings.pop("alone")
            engines[header.engine] = _Followed(ensemble if alone is None else ensemble.alone(alone), settings)
        elif header.action == STEP:
            for number in said.get("ended", ()):
                del engines[number]
            engines[header.engine].step(said.get("calls", ()))


class _Followed:
    """An engine that does what rank 0's does."""

    def __init__(self, owner: Owner, settings: Mapping[str, Any]) -> None:
        self._owner = owner
        self._engine = owner.make_engine(**settings)
        self._requests: dict[int, Request] = {}
        self._methods: weakref.WeakValueDictionary[int, TokenMethod] = weakref.WeakValueDictionary()

    def step(self, calls: Sequence[Call]) -> None:
        """Submit and cancel as rank 0 did, and take a step."""
        for call in calls:
            if "cancel" not in call:
                self._submit(call)
            elif (request := self._requests.pop(call["cancel"], None)) is not None:
                self._engine.cancel(request)
        for event in self._engine.step():
            if event.request.done:
                self._requests.pop(event.request.key, None)

    def _submit(self, call: Call) -> None:
        method = self._methods.get(call["number"])
        if method is None:
            made = self._owner.make_method(call["method"], None, step_options(call["step"], StepOptions()))
            if not isinstance(made, TokenMethod):
                raise TypeError(f"method must decide token by token, got {made.name!r}")
            method = self._methods[call["number"]] = made
        prompt = EncodedPrompt(call["prompt_ids"], tuple(call["starts"]))
        request = self._engine.submit(
            prompt, method, GenerationOptions(**call["generation"]), index=call["index"], seed=call["seed"],
            targets=call["targets"], full=call["full"],
        )  # fmt: skip
        if request.key != call["submit"]:
            raise RankError(f"request {call['submit']} of rank 0 is {request.key} here: this process has lost step")
        self._requests[request.key] = request
