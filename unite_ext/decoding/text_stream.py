"""A text as it comes, in pieces of whole characters."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING

from .request import Request

if TYPE_CHECKING:
    from .engine import Engine


class TextPieces:
    """Turns a request's growing text into pieces of whole characters."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._sent = 0

    def next(self, request: Request) -> str:
        """What has become certain since the last call."""
        end = request.settled_length()
        piece = self._decoder.decode(bytes(request.text[self._sent : end]), final=bool(request.finish_reason))
        self._sent = end
        return piece


class TextStream:
    """What `UniteEnsemble.stream` returns: an iterator over the pieces of a text.

    A stream that is not read to its end holds the members' caches until it is closed: by `close`, at the end of a
    `with` block, or when it is collected.

    Attributes
    ----------
    request : Request
        The text so far, its ids, and with `trace=True` the records of its steps.
    """

    def __init__(self, engine: Engine, request: Request) -> None:
        self.request = request
        self._engine = engine
        self._pieces = TextPieces()
        self._closed = False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        while not self._closed and not self.request.done:
            self._engine.step()
            if self.request.error is not None:
                raise self.request.error
            if piece := self._pieces.next(self.request):
                return piece
        raise StopIteration

    def close(self) -> None:
        """End the generation where it stands; the text so far stays, and no piece follows."""
        self._closed = True
        self._engine.cancel(self.request)

    def __enter__(self) -> TextStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
