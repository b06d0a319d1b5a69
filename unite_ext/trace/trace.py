"""`Trace`: a record that can be saved, loaded and shown."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .files import read_traces, to_json
from .page import render_page
from .record import TraceRecord

SUFFIXES = (".html", ".json")


@dataclass(frozen=True, repr=False)
class Trace(TraceRecord):
    """Who decided each token of one text, returned by `UniteEnsemble.trace`. Readable without models and tokenizers.

    A notebook shows it as a page.
    """

    def save(self, path: str | Path) -> None:
        """Write a self-contained page (`.html`), or data that `Trace.load` reads (`.json`)."""
        save_traces([self], path)

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Read a `.json` file of one trace; `unite_ext.trace.load_traces` reads several.

        Raises
        ------
        ValueError
            The file does not hold exactly one trace.
        """
        traces = load_traces(path)
        if len(traces) != 1:
            raise ValueError(f"{path} holds {len(traces)} traces: read them with unite_ext.trace.load_traces")
        return traces[0]

    def to_html(self) -> str:
        """Render the page that `save` writes."""
        return render_page([self])

    def _repr_html_(self) -> str:
        """Show the page in a notebook, in a frame of its own, so that neither styles the other."""
        page = html.escape(self.to_html(), quote=True)
        return f'<iframe srcdoc="{page}" style="width: 100%; height: 40rem; border: 0" title="UNITE trace"></iframe>'


def check_path(path: str | Path) -> Path:
    """Check that a trace can be written to a path, and return it.

    Raises
    ------
    ValueError
        The path ends in neither `.html` nor `.json`, or its folder does not exist.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"a trace is written as .html (a page) or .json (data), got {str(path)!r}")
    if not path.parent.is_dir():
        raise ValueError(f"the folder {str(path.parent)!r} does not exist")
    return path


def save_traces(traces: Sequence[TraceRecord], path: str | Path) -> None:
    """Write traces into one file: a self-contained page (`.html`), or data for `load_traces` (`.json`).

    Raises
    ------
    ValueError
        The path ends in neither, or its folder does not exist.
    """
    path = check_path(path)
    if path.suffix.lower() == ".html":
        text = render_page(traces)
    else:
        text = json.dumps(to_json(traces), ensure_ascii=False, separators=(",", ":")) + "\n"
    # A prompt from the command line may hold an invalid character, which JSON writes as an escape.
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def load_traces(path: str | Path) -> list[Trace]:
    """Read the traces of a `.json` file.

    Raises
    ------
    ValueError
        The file is not a trace, or has another version of this format.
    OSError
        The file cannot be read.
    """
    return read_traces(path, Trace)
