"""What a client's request is while it runs: its texts, and the news of them on the way to the event loop."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..decoding.plan import Plan
from ..decoding.prompt_ids import EncodedPrompt
from ..decoding.request import Request, StepRecord
from ..decoding.start_state import recorded_bytes
from ..decoding.text_stream import TextPieces
from ..vocab.vocabulary import Vocabulary
from .errors import ApiError


@dataclass(frozen=True)
class Token:
    """One token of a text, of which no stop string takes anything back any more."""

    token_id: int | None
    """The primary's; None for the end of the text."""
    data: bytes
    record: StepRecord


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
    while choice.tokens_sent < len(request.records):
        n = choice.tokens_sent
        token_id = request.ids[n] if n < len(request.ids) else None
        record = request.records[n]
        data = b"" if token_id is None else recorded_bytes(record, vocabularies, primary, token_id)
        if not request.finish_reason and (token_id is None or choice.bytes_sent + len(data) > end):
            break
        found.append(Token(token_id, data, record))
        choice.tokens_sent += 1
        choice.bytes_sent += len(data)
    return found
