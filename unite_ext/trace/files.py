"""Traces as plain data, and reading them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from .record import DECISIONS, TraceRecord, TraceStep

Record = TypeVar("Record", bound=TraceRecord)

FORMAT, VERSION = "unite-trace", 1


def read_traces(path: str | Path, kind: type[Record]) -> list[Record]:
    """Read the traces of a `.json` file as objects of a class.

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
    return from_json(data, str(path), kind)


def to_json(traces: Sequence[TraceRecord]) -> dict[str, Any]:
    """Plain data for traces."""
    # vars, because dataclasses.asdict copies every number: seconds for a long text
    plain = [{**vars(trace), "steps": [vars(step) for step in trace.steps]} for trace in traces]
    return {"format": FORMAT, "version": VERSION, "traces": plain}


def from_json(data: Any, source: str, kind: type[Record]) -> list[Record]:
    """What `to_json` made, as objects of a class; `source` names it in errors."""
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ValueError(f"{source} is not a trace: expected an object whose format is {FORMAT!r}")
    if data.get("version") != VERSION:
        raise ValueError(f"{source} is a trace of version {data.get('version')!r}, this unite_ext reads {VERSION}")
    try:
        traces = [_trace(fields, kind) for fields in data["traces"]]
        for trace in traces:
            _check(trace)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise ValueError(f"{source} is a damaged trace: {type(error).__name__}: {error}") from None
    return traces


def _trace(fields: dict[str, Any], kind: type[Record]) -> Record:
    tokens = [{int(i): text for i, text in names.items()} for names in fields["tokens"]]
    return kind(**{**fields, "tokens": tokens, "steps": [TraceStep(**step) for step in fields["steps"]]})


def _check(trace: TraceRecord) -> None:
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
