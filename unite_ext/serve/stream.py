"""Server-sent events, to clients that read slowly, leave, or do not read at all."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

from fastapi.sse import EventSourceResponse, format_sse_event
from starlette.types import Message, Receive, Scope, Send

from .errors import ApiError, encode, internal

logger = logging.getLogger(__name__)

DONE = format_sse_event(data_str="[DONE]")


def event(content: object) -> bytes:
    """An event whose data is JSON."""
    return format_sse_event(data_str=encode(content))


async def until_left(receive: Receive) -> None:
    """Wait until the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(EventSourceResponse):
    """Events as they come. Ends with the client: when it leaves, or does not read for too long.

    Parameters
    ----------
    events : async iterator of bytes
        An ApiError that it raises becomes the last event.
    on_end : callable
        Called once, when nothing more is sent.
    stall_timeout : float
        Seconds that one write may wait for the client.
    """

    def __init__(self, events: AsyncIterator[bytes], on_end: Callable[[], None], stall_timeout: float) -> None:
        # Proxies are not to collect what is to be seen at once.
        super().__init__(events, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._on_end = on_end
        self._stall_timeout = stall_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events, and listen for the client's leaving."""

        loop = asyncio.get_running_loop()

        async def send_in_time(message: Message) -> None:
            timer = loop.call_later(self._stall_timeout, sending.cancel)  # cheaper than a task per write
            await send(message)
            timer.cancel()

        sending = asyncio.ensure_future(self.stream_response(send_in_time))
        leaving = asyncio.ensure_future(until_left(receive))
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
            if sending.cancelled():
                logger.info("a client does not read its stream")
            elif sending.done():
                sending.result()
        finally:
            self._on_end()
            for task in (sending, leaving):
                task.cancel()
            await asyncio.gather(sending, leaving, return_exceptions=True)


async def with_errors(events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The events, and after an error one that tells it: the status has been sent."""
    try:
        async for data in events:
            yield data
    except ApiError as error:
        yield event(error.body)
    except Exception:
        logger.exception("a stream failed")
        yield event(internal().body)
