"""Write traces as one HTML page that needs no network, no other files and no server."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from pathlib import Path
from string import Template

from .files import to_json
from .record import TraceRecord


def render_page(traces: Sequence[TraceRecord]) -> str:
    """Render one trace or several as a page.

    The page's content security policy runs no script but the page's own and loads nothing. Texts are data, and are only
    shown as text nodes.

    Raises
    ------
    ValueError
        There is no trace.
    """
    if not traces:
        raise ValueError("traces must hold at least one trace, got none")
    folder = Path(__file__).parent
    style, script = with_tokens(folder, "page.css"), with_tokens(folder, "page.js")
    data = json.dumps(to_json(traces), ensure_ascii=False, separators=(",", ":"))
    return Template((folder / "page.html").read_text(encoding="utf-8")).substitute(
        title=html.escape("UNITE: " + " + ".join(traces[0].members)),
        style=style,
        style_hash=source_hash(style),
        script=script,
        script_hash=source_hash(script),
        # Inside a script element only "<" can end it or open a comment.
        data=data.replace("<", "\\u003c"),
        plain=html.escape("\n\n".join(trace.text for trace in traces)),
    )


def with_tokens(folder: Path, name: str) -> str:
    """A page's style or script, after what all pages with tokens share (`tokens.css`, `tokens.js`)."""
    shared = Path(__file__).with_name("tokens").with_suffix(Path(name).suffix)
    return "\n".join(path.read_text(encoding="utf-8").strip() for path in (shared, folder / name))


def source_hash(source: str) -> str:
    """The hash of a source as a content security policy writes it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
