"""Traces on disk: JSON to read again, or a page to look at."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .record import DECISIONS, Trace, TraceStep

FORMAT, VERSION = "unite-trace", 1
SUFFIXES = (".html", ".json")


def check_path(path: str | Path) -> Path:
    """A path that a trace can be written to.

    Raises
    ------
    ValueError
        It ends in neither `.html` nor `.json`, or its folder does not exist.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"a trace is written as .html (a page) or .json (data), got {str(path)!r}")
    if not path.parent.is_dir():
        raise ValueError(f"the folder {str(path.parent)!r} does not exist")
    return path


def save_traces(traces: Sequence[Trace], path: str | Path) -> None:
    """Write traces into one file: a self-contained page (`.html`), or data for `load_traces` (`.json`).

    Raises
    ------
    ValueError
        The path ends in neither, or its folder does not exist.
    """
    path = check_path(path)
    if path.suffix.lower() == ".html":
        from .page import render_page

        text = render_page(traces)
    else:
        text = json.dumps(to_json(traces), ensure_ascii=False, separators=(",", ":")) + "\n"
    # A prompt from the command line may hold half a character; JSON writes it as an escape.
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def load_traces(path: str | Path) -> list[Trace]:
    """Read the traces of a `.json` file.

    Raises
    ------
    ValueError
        It is not a trace, or of a later version of this format.
    OSError
        It cannot be read.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not a trace: {error}") from None
    return from_json(data, str(path))


def to_json(traces: Sequence[Trace]) -> dict[str, Any]:
    """Plain data for traces."""
    # vars, because dataclasses.asdict copies every number: seconds for a long text
    plain = [{**vars(trace), "steps": [vars(step) for step in trace.steps]} for trace in traces]
    return {"format": FORMAT, "version": VERSION, "traces": plain}


def from_json(data: Any, source: str) -> list[Trace]:
    """What `to_json` made; `source` names it in errors."""
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ValueError(f"{source} is not a trace: expected an object whose format is {FORMAT!r}")
    if data.get("version") != VERSION:
        raise ValueError(f"{source} is a trace of version {data.get('version')!r}, this unite_ext reads {VERSION}")
    try:
        traces = [_trace(fields) for fields in data["traces"]]
        for trace in traces:
            _check(trace)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise ValueError(f"{source} is a damaged trace: {type(error).__name__}: {error}") from None
    return traces


def _trace(fields: dict[str, Any]) -> Trace:
    tokens = [{int(i): text for i, text in names.items()} for names in fields["tokens"]]
    return Trace(**{**fields, "tokens": tokens, "steps": [TraceStep(**step) for step in fields["steps"]]})


def _check(trace: Trace) -> None:
    """What showing a trace relies on."""
    members = len(trace.members)
    if not 0 <= trace.primary < members or len(trace.tokens) != members or len(trace.eos_token_ids) != members:
        raise ValueError("primary, tokens and eos_token_ids must fit the members")
    for number, step in enumerate(trace.steps, 1):
        slots = len(step.averages)
        fits = len(step.ids) == len(step.probs) == len(step.spellers) == slots and len(step.favorites) == members
        if not fits or {*map(len, step.ids), *map(len, step.probs)} != {members}:
            raise ValueError(f"step {number} does not hold {slots} slots of {members} members")
        if not all(0 <= slot < slots for slot in (step.winner, *step.favorites)) or step.decided not in DECISIONS:
            raise ValueError(f"step {number} names a slot or a decision that does not exist")
        for slot in range(slots):
            trace.slot_text(step, slot)  # raises where an id has no text
