"""Errors in OpenAI's form: a status, and a body that says what was expected, what came and which field it is about."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException

INVALID, KEY, LIMIT, SERVER = "invalid_request_error", "authentication_error", "rate_limit_error", "server_error"


class ErrorDetail(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    """The field it is about."""
    code: str | None


class ErrorBody(BaseModel):
    """The body of every error."""

    error: ErrorDetail


class ApiError(Exception):
    """An error that a client is told."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
        self.detail = {"message": message, "type": kind, "param": param, "code": code}

    @property
    def body(self) -> dict[str, object]:
        """The error as JSON."""
        return {"error": self.detail}

    def response(self) -> Response:
        """The error as an HTTP response."""
        return JSON(self.body, status_code=self.status, headers=self.headers)


class JSON(Response):
    """A JSON response in ASCII: half a surrogate pair in what a client sent has no UTF-8."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        """JSON bytes."""
        return encode(content).encode("ascii")


def encode(content: object) -> str:
    """JSON on one line."""
    return json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def shutting_down() -> ApiError:
    """What requests get while the server ends."""
    return ApiError(503, "the server is shutting down", kind=SERVER, code="shutting_down", headers={"Retry-After": "5"})


def internal() -> ApiError:
    """An error of ours, about which the log says more."""
    return ApiError(500, "the server failed on this request; its log says why", kind=SERVER)


def install(app: FastAPI) -> None:
    """Let every error of an application have this form."""
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)


async def _api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _http_error(request: Request, error: Exception) -> Response:
    """FastAPI's own: no such page, a method that it does not take, a body that is no JSON."""
    assert isinstance(error, HTTPException)
    phrase = HTTPStatus(error.status_code).phrase
    message = f"{request.method} {request.url.path}: {phrase}" if error.status_code in (404, 405) else error.detail
    return ApiError(error.status_code, message, headers=error.headers).response()


async def _validation_error(_: Request, error: Exception) -> Response:
    """The first field that is wrong."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    param = ".".join(str(part) for part in first["loc"][1:]) or None
    if first["type"] == "json_invalid":
        return ApiError(400, "the body must be JSON").response()
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"{param} is not a known field", param=param, code="unknown_field").response()
    if first["type"] == "missing":
        return ApiError(400, f"{param or 'a body'} must be given", param=param).response()
    message = str(first["msg"])
    if first["type"] == "refused":  # ours say what came
        param = ".".join(filter(None, [param if param != first["ctx"]["field"] else None, first["ctx"]["field"]]))
    else:
        message = f"{param or 'the body'}: {message[:1].lower()}{message[1:]}, got {_shown(first.get('input'))}"
    return ApiError(400, message, param=param).response()


def _shown(value: object) -> str:
    """A value of a request, if it is short and no text that somebody might not want in a log."""
    if value is None or isinstance(value, (bool, int, float)):
        return repr(value)[:40]
    kinds = {"dict": "an object", "list": "an array", "str": "text"}
    return kinds.get(type(value).__name__, type(value).__name__)
