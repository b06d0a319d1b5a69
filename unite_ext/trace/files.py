"""Convert traces to plain data and back, and read trace files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from .record import DECISIONS, TraceRecord, TraceStep

Record = TypeVar("Record", bound=TraceRecord)

FORMAT, VERSION = "unite-trace", 1


def read_traces(path: str | Path, kind: type[Record]) -> list[Record]:
    """Read the traces of a `.json` file as objects of the class `kind`.

    Raises
    ------
    ValueError
        The file is not a trace, or has another version of this format.
    OSError
        The file cannot be read.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not a trace: {error}") from None
    return from_json(data, str(path), kind)


def to_json(traces: Sequence[TraceRecord]) -> dict[str, object]:
    """Convert traces to plain data."""
    # Not dataclasses.asdict, which copies every number and takes seconds for a long text
    plain = [{**vars(trace), "steps": [vars(step) for step in trace.steps]} for trace in traces]
    return {"format": FORMAT, "version": VERSION, "traces": plain}


def from_json(data: object, source: str, kind: type[Record]) -> list[Record]:
    """Convert what `to_json` made to objects of the class `kind`; `source` is its name in errors."""
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ValueError(f"{source} is not a trace: it must be an object whose format is {FORMAT!r}")
    if data.get("version") != VERSION:
        raise ValueError(f"{source} must be a trace of version {VERSION}, got version {data.get('version')!r}")
    try:
        traces = []
        for fields in data["traces"]:
            tokens = [{int(i): text for i, text in texts.items()} for texts in fields["tokens"]]
            steps = [TraceStep(**step) for step in fields["steps"]]
            traces.append(kind(**{**fields, "tokens": tokens, "steps": steps}))
            _check(traces[-1])
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise ValueError(f"{source} is a damaged trace: {type(error).__name__}: {error}") from None
    return traces


def _check(trace: TraceRecord) -> None:
    """Check what showing a trace relies on."""
    members = len(trace.members)
    if not 0 <= trace.primary < members or len(trace.tokens) != members or len(trace.eos_token_ids) != members:
        raise ValueError("primary, tokens and eos_token_ids must fit the members")
    if trace.missing_from and len(trace.missing_from) != members:
        raise ValueError("missing_from must fit the members")
    for number, step in enumerate(trace.steps, 1):
        slots = len(step.averages)
        fits = len(step.ids) == len(step.probs) == len(step.spellers) == slots and len(step.favorites) == members
        if not fits or {*map(len, step.ids), *map(len, step.probs)} != {members}:
            raise ValueError(f"step {number} does not hold {slots} slots of {members} members")
        if step.starts and len(step.starts) != members:
            raise ValueError(f"step {number} must say of {members} members how they start, got {len(step.starts)}")
        if not all(0 <= slot < slots for slot in (step.winner, *step.favorites)) or step.decided not in DECISIONS:
            raise ValueError(f"step {number} names a slot or a decision that does not exist")
        for slot in range(slots):
            trace.slot_text(step, slot)  # raises where an id has no text
