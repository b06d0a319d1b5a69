"""What a client's request is while it runs: its texts, and the news of them on the way to the event loop."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from .._host import END_OF_TEXT
from ..decoding.plan import Plan
from ..decoding.prompt_ids import EncodedPrompt
from ..decoding.request import Request, StepRecord
from ..decoding.start_state import recorded_bytes
from ..decoding.text_stream import TextPieces
from ..decoding.tracing import byte_step
from ..vocab.vocabulary import Vocabulary
from .errors import ApiError


@dataclass(frozen=True)
class Token:
    """One token of a text, of which no stop string takes anything back any more; with exact boundaries one byte."""

    token_id: int | None
    """The primary's, or the byte's number; None for the end of the text."""
    data: bytes
    record: StepRecord
    is_byte: bool = False


@dataclass(frozen=True)
class News:
    """What is new of one text."""

    choice: int
    piece: str = ""
    tokens: Sequence[Token] = ()
    """Those whose bytes are certain now, where somebody asked for them."""
    request: Request | None = None
    """Given when it has ended: the engine does not touch it any more."""


@dataclass(eq=False)
class Choice:
    """One text that a client asked for."""

    index: int
    """Among the texts of the client's request."""
    prompt: int
    """Whose prompt it continues."""
    encoded: EncodedPrompt
    request: Request | None = None
    """The engine's, when it has been submitted."""
    pieces: TextPieces = field(default_factory=TextPieces)
    tokens_sent: int = 0
    bytes_sent: int = 0
    """Of these tokens."""
    first_at: float = 0.0
    """When its first token was there."""
    ended: bool = False


@dataclass(eq=False)
class Job:
    """A client's request: one text or several, decided by one plan."""

    choices: list[Choice]
    plan: Plan
    seed: int
    streams: bool
    wants_tokens: bool
    """Whether records of the steps are for the client."""
    keeps_records: bool
    buffer: int
    """How many pieces may wait for the client."""
    loop: asyncio.AbstractEventLoop
    submitted_at: float = field(default_factory=time.perf_counter)
    error: ApiError | None = None
    """Why it has ended early."""

    def __post_init__(self) -> None:
        self._news: deque[News] = deque()
        self._wake = asyncio.Event()

    # On the engine's thread

    @property
    def waiting_news(self) -> int:
        """How much the client has not been sent yet."""
        return len(self._news)

    def put(self, news: News) -> None:
        """Add news; `wake` tells the event loop."""
        self._news.append(news)

    # On the event loop

    def wake(self) -> None:
        """Say that there are news, or an error."""
        self._wake.set()

    async def news(self) -> list[News]:
        """Wait for news, and return all there are.

        Raises
        ------
        ApiError
            The job has ended early, and everything that came before has been returned.
        """
        while not self._news:
            if self.error is not None:
                raise self.error
            self._wake.clear()
            await self._wake.wait()
        found = []
        while self._news:
            found.append(self._news.popleft())
        return found


def settled_tokens(choice: Choice, request: Request, vocabularies: Sequence[Vocabulary], primary: int) -> list[Token]:
    """The tokens that have become certain since the last call, up to the first that a stop string might cut.

    When the request has ended: all others as well, the end of the text and those that were cut off included.
    """
    end = request.settled_length()
    found: list[Token] = []
    while choice.tokens_sent < num_tokens(request):
        token = recorded_token(request, choice.tokens_sent, vocabularies, primary)
        if not request.finish_reason and (token.token_id is None or choice.bytes_sent + len(token.data) > end):
            break
        found.append(token)
        choice.tokens_sent += 1
        choice.bytes_sent += len(token.data)
    return found


def num_tokens(request: Request) -> int:
    """How many tokens a request has a record of, or with exact boundaries bytes; with the end of the text."""
    return len(request.byte_records or request.records)


def recorded_token(request: Request, n: int, vocabularies: Sequence[Vocabulary], primary: int) -> Token:
    """The n-th of them."""
    if request.byte_records:
        own = request.byte_records[n]
        symbol = own.symbols[own.winner]
        ends = symbol == END_OF_TEXT
        step = byte_step(own, len(vocabularies))
        return Token(None if ends else symbol, b"" if ends else bytes([symbol]), step, is_byte=True)
    token_id = request.ids[n] if n < len(request.ids) else None
    record = request.records[n]
    data = b"" if token_id is None else recorded_bytes(record, vocabularies, primary, token_id)
    return Token(token_id, data, record)
