"""The page at `/`: a chat in one file, which asks this server only."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from string import Template

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, Response

from ..trace.page import source_hash, with_tokens


def add_route(app: FastAPI) -> None:
    """Serve the page at `/`."""

    @app.get("/", response_model=None, include_in_schema=False)
    async def page() -> Response:
        text, policy = render_chat()
        headers = {
            "Content-Security-Policy": policy,
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "no-cache",
        }
        return HTMLResponse(text, headers=headers)


@cache
def render_chat() -> tuple[str, str]:
    """The page, and its content security policy: no script and no style but its own, no network but its server."""
    folder = Path(__file__).parent
    style, script = with_tokens(folder, "chat.css"), with_tokens(folder, "chat.js")
    text = Template((folder / "chat.html").read_text(encoding="utf-8")).substitute(style=style, script=script)
    policy = (
        f"default-src 'none'; style-src '{source_hash(style)}'; script-src '{source_hash(script)}'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text, policy
