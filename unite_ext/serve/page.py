"""The page at `/`: one file, which asks this server only."""

from __future__ import annotations

from importlib import resources

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, Response

from .errors import ApiError

FILE = "page.html"


def add_route(app: FastAPI) -> None:
    """Serve the page at `/`, if it is there."""

    @app.get("/", response_model=None, include_in_schema=False)
    async def page() -> Response:
        file = resources.files(__package__ or "") / FILE
        if not file.is_file():
            raise ApiError(404, "this server has no page; its interface is at /v1")
        return HTMLResponse(file.read_text(encoding="utf-8"))
