"""The options of a server: its limits, its keys, and what its requests may choose."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from .._checks import check_integer

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Names of this machine for itself."""

_AT_LEAST_ONE = (
    "max_requests", "max_tokens", "max_choices", "max_body", "stream_buffer", "prefill_chunk", "compare_every",
)  # fmt: skip
_SECONDS = ("body_timeout", "stall_timeout", "grace")


@dataclass(frozen=True)
class ServeOptions:
    """The options of a server.

    Raises
    ------
    TypeError, ValueError
        A value is wrong.
    """

    name: str = "unite"
    """What clients call the model."""
    api_keys: tuple[str, ...] = ()
    """One of these must come with every request; without any, everybody may ask."""
    allowed_hosts: tuple[str, ...] = ()
    """The `Host` headers that are answered, without ports; empty for all."""
    methods: tuple[str, ...] = ("unite",)
    """What may decide steps; requests choose among them, and the first is the default."""
    temperature: float = 0.0
    """For requests that give none; 0 is greedy decoding."""
    speculate: bool | int | str = False
    """Of greedy requests, and of all with exact boundaries unless it is "auto"; see `GenerationOptions`."""
    max_requests: int = 64
    """How many run side by side."""
    max_waiting: int = 256
    """How many more may wait; what comes then is told to come again."""
    max_prompt_tokens: int | None = None
    """Longest prompt in any member; None for what their contexts hold."""
    max_tokens: int = 1024
    """Most new tokens that a request may ask for, and what a chat gets that does not say."""
    max_choices: int = 16
    """Most texts that one request may ask for."""
    max_body: int = 4 << 20
    """Bytes of a request's body."""
    body_timeout: float = 30.0
    """Seconds in which a body has to arrive."""
    stream_buffer: int = 1024
    """How many pieces of a stream may wait for a client that reads slowly."""
    stall_timeout: float = 60.0
    """Seconds after which a client that does not read at all is given up."""
    grace: float = 30.0
    """Seconds that running requests have when the server is to end."""
    prefill_chunk: int = 512
    """See `Engine`."""
    cache_memory: int | None = None
    """See `Engine`."""
    compare_every: int = 16
    """Of every so-many-th request it is counted how often its members agree."""

    def __post_init__(self) -> None:
        for name in _AT_LEAST_ONE:
            check_integer(name, getattr(self, name), 1, 2**40)
        check_integer("max_waiting", self.max_waiting, 0, 2**31)
        if self.max_prompt_tokens is not None:
            check_integer("max_prompt_tokens", self.max_prompt_tokens, 1, 2**31)
        for name in _SECONDS:
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a number of seconds, got {value}")
        if not 0 <= self.temperature <= 2:
            raise ValueError(f"temperature must be from 0 to 2, got {self.temperature}")
        if not self.name or not self.name.isprintable():
            raise ValueError(f"name must be printable characters, got {self.name!r}")
        if not self.methods:
            raise ValueError("methods must name at least one method, got none")
        for key in self.api_keys:
            if not key or not key.isascii() or not key.isprintable() or " " in key:
                raise ValueError("api_keys must be printable ASCII without spaces, got another character or no key")

    def __repr__(self) -> str:
        shown = [f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if f.name != "api_keys"]
        return f"{type(self).__name__}({', '.join(shown)}, api_keys={len(self.api_keys)} hidden)"
