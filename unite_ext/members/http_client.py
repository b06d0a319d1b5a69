"""A server's HTTP interface: one pool of connections, time limits, and calls that are tried again.

All calls ask and change nothing, so every one may be repeated. No message, log or `repr` holds the API key.
"""

from __future__ import annotations

import ipaddress
import json
import os
import random
import time
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from .._text import visible
from .remote import AnswerError

if TYPE_CHECKING:
    import httpx

Body = Mapping[str, object]
Answer = dict[str, Any]
"""A JSON object, as it came."""

PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Status codes after which the same call may succeed."""
_MOST_SHOWN = 200  # characters of a server's message
_LONGEST_PAUSE = 30.0  # seconds that a server may ask for by Retry-After


class Refused(AnswerError):
    """The server answers, but not this call.

    Attributes
    ----------
    status : int
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class HttpClient:
    """Calls of one server.

    Parameters
    ----------
    url : str
        Where it is, such as http://127.0.0.1:8000.
    api_key_env : str, optional
        The environment variable that holds the key.
    timeout : float
        Seconds that one try may wait for an answer.
    retries : int
        How often a call is tried again.
    connections : int
        How many may be open.

    Raises
    ------
    ValueError
        The address is no http address, or there is no such variable; nothing has been sent.
    """

    def __init__(self, url: str, *, api_key_env: str | None, timeout: float, retries: int, connections: int) -> None:
        try:
            import httpx
        except ModuleNotFoundError as error:
            raise ValueError(f"members behind a server need {error.name}: pip install 'unite_ext[http]'") from error
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url must be an address such as http://127.0.0.1:8000, got {_without_user(url)!r}")
        if parts.username is not None or parts.password is not None:
            raise ValueError("url must hold no user or password: name an environment variable with api_key_env")
        self.url = url.rstrip("/").removesuffix("/v1")
        self._key = _read_key(api_key_env)
        if self._key and parts.scheme == "http" and not _is_loopback(parts.hostname):
            warnings.warn(f"the API key goes to {parts.hostname} unencrypted: use https", stacklevel=4)
        self._retries = retries
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._client = httpx.Client(
            headers=headers,
            timeout=httpx.Timeout(timeout, connect=min(timeout, 10.0)),
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
        )

    def post(self, path: str, body: Body) -> Answer:
        """The answer to a JSON body. AnswerError when the server gives none, `Refused` when it says no."""
        return self._call("POST", path, body)

    def get(self, path: str) -> Answer:
        """The answer to a question without a body; errors as `post`."""
        return self._call("GET", path, None)

    def _call(self, method: str, path: str, body: Body | None) -> Answer:
        tries = 0
        while True:
            found, pause = self._try(method, path, body)
            if not isinstance(found, AnswerError):
                return found
            if pause is None or tries >= self._retries:
                raise found
            time.sleep(pause or min(8.0, 0.25 * 2**tries) * random.uniform(0.5, 1.0))
            tries += 1

    def _try(self, method: str, path: str, body: Body | None) -> tuple[Answer | AnswerError, float | None]:
        """One try: an answer, or an error and the seconds until the next: 0 for the usual, None for no next."""
        import httpx

        try:
            response = self._client.request(method, self.url + path, json=body)
        except httpx.TimeoutException:
            return AnswerError(f"{self.url} does not answer in time"), 0.0
        except httpx.TransportError as error:
            return AnswerError(f"{self.url}: {self._shown(str(error) or type(error).__name__)}"), 0.0
        status = response.status_code
        if status >= 300:
            refused = Refused(status, f"{self.url}{path} says {status}: {self._message(response)}")
            return refused, _pause(response.headers.get("Retry-After")) if status in PASSING else None
        try:
            answer = response.json()
        except ValueError:
            return AnswerError(f"{self.url}{path} answers with something that is no JSON"), 0.0
        if not isinstance(answer, dict):
            return AnswerError(f"{self.url}{path} answers with {type(answer).__name__}, not with an object"), None
        return answer, None

    def _message(self, response: httpx.Response) -> str:
        """What a refusal says, in one line."""
        try:
            found = response.json()
            for name in ("error", "message", "detail"):
                if isinstance(found, dict) and name in found:
                    found = found[name]
            text = found if isinstance(found, str) else json.dumps(found)
        except ValueError:
            text = response.text
        return self._shown(text)

    def _shown(self, text: str) -> str:
        """A server's text, short, in one line and without the key."""
        if self._key:
            text = text.replace(self._key, "***")
        return visible(" ".join(text[: 4 * _MOST_SHOWN].split()))[:_MOST_SHOWN]

    def __repr__(self) -> str:
        return f"HttpClient({self.url})"


def _read_key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ValueError(f"api_key_env must name an environment variable that holds a key, got {variable!r}")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(f"api_key_env must name a variable that holds printable characters without spaces: {variable}")
    return key


def _pause(header: str | None) -> float:
    """The seconds that a server asks to wait; 0 where it does not say."""
    try:
        return min(_LONGEST_PAUSE, max(0.0, float(header or 0)))
    except ValueError:  # a date
        return 0.0


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _without_user(url: str) -> str:
    return url.rsplit("@", 1)[-1]
