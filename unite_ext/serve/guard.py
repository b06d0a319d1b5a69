"""What every request passes first: its host, its key, the size of its body.

Pure ASGI, so that the application hears of clients that leave.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import logging
import time
import uuid
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import KEY, ApiError, internal
from .metrics import Metrics
from .options import ServeOptions

logger = logging.getLogger(__name__)

OPEN_PATHS = ("/", "/health", "/openapi.json")
"""These are answered without a key: they hold no text and no number of anybody's."""

_DISCARD_SECONDS = 2.0  # for reading what is left of a body that is refused


class Guard:
    """Answers what must not come to the application, counts and logs all requests, and gives each an id.

    The log has neither bodies nor headers nor queries.

    Parameters
    ----------
    app : ASGI application
    options : ServeOptions
    metrics : Metrics
    endpoints : collection of str
        The paths that metrics tell apart.
    """

    def __init__(self, app: ASGIApp, options: ServeOptions, metrics: Metrics, endpoints: Callable[[str], str]) -> None:
        self._app = app
        self._options = options
        self._metrics = metrics
        self._endpoint = endpoints
        self._keys = [_digest(key.encode()) for key in options.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        name, status = uuid.uuid4().hex, 499  # what nginx calls a client that left

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", name.encode())]
            await send(message)

        try:
            await self._guarded(scope, receive, send_named)
        except Exception:  # the client is to get an error of our form, and the connection to go on
            logger.exception("request %s failed", name)
            if status != 499:
                raise
            await internal().response()(scope, receive, send_named)
        finally:
            seconds = time.perf_counter() - start
            endpoint = self._endpoint(scope["path"])
            self._metrics.requests.labels(endpoint, str(status)).inc()
            self._metrics.request_seconds.labels(endpoint).observe(seconds)
            logger.info("%s %s %s %d %.3f s", name, scope["method"], endpoint, status, seconds)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(reversed(scope["headers"]))  # the first of each name
        try:
            self._check_host(headers.get(b"host", b""))
            if scope["path"] not in OPEN_PATHS:
                self._check_key(headers.get(b"authorization", b""))
            if scope["method"] == "POST":
                body = await self._read_body(headers, receive)
                receive = _replay(body, receive)
        except ApiError as error:
            # A client that still sends would find its connection reset, and not see why.
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(_discard(receive, 2 * self._options.max_body), _DISCARD_SECONDS)
            error.headers.setdefault("Connection", "close")
            await error.response()(scope, receive, send)
            return
        except _Left:
            return
        await self._app(scope, receive, send)

    def _check_host(self, host: bytes) -> None:
        """A page of another site may have had its name resolved to this machine."""
        name = host.decode("latin-1").lower()
        name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
        if self._options.allowed_hosts and name not in self._options.allowed_hosts:
            raise ApiError(
                400, f"the Host header must name one of {', '.join(self._options.allowed_hosts)}", code="bad_host"
            )

    def _check_key(self, authorization: bytes) -> None:
        if not self._keys:
            return
        scheme, _, key = authorization.partition(b" ")
        given = _digest(key.strip())
        # Every key is compared, so that the time tells nothing about which one is close.
        found = [hmac.compare_digest(given, known) for known in self._keys]
        if scheme.lower() != b"bearer" or not any(found):
            raise ApiError(
                401, "an API key must be given as 'Authorization: Bearer KEY', got none or a wrong one", kind=KEY,
                code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip

    async def _read_body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        """A body of bounded size, in bounded time. JSON only: what a form of another site can send is none."""
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if kind != b"application/json":
            raise ApiError(400, "the Content-Type header must be application/json", code="bad_content_type")
        limit = self._options.max_body
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length[:20]) > limit:
            raise _too_large(limit)
        try:
            return await asyncio.wait_for(_whole_body(receive, limit), self._options.body_timeout)
        except asyncio.TimeoutError:
            seconds = self._options.body_timeout
            raise ApiError(408, f"the body must arrive within {seconds:g} seconds", code="timeout") from None


class _Left(Exception):
    """The client has left before its body was there."""


async def _whole_body(receive: Receive, limit: int) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Left
        body += message.get("body", b"")
        if len(body) > limit:
            raise _too_large(limit)
        if not message.get("more_body", False):
            return bytes(body)


async def _discard(receive: Receive, limit: int) -> None:
    """Read what is left of a body, up to a limit, and keep nothing."""
    while limit > 0:
        message = await receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return
        limit -= len(message["body"])


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body that has been read, then what comes."""
    given = False

    async def replayed() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"the body must have at most {limit} bytes, got more", code="too_large")


def _digest(key: bytes) -> bytes:
    """Keys as values of one length: comparing these tells nothing about a key's length."""
    return hashlib.sha256(key).digest()
