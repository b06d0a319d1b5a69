"""Requests in which some members write a space before the text that is no part of it: the start state.

Such a member's ids are those of a space and the text. As long as it has none, it takes its *first step*: its ids begin
with this space, and an alignment of its own says what they mean. A bare space of the primary's leaves the text empty:
then the primary has taken its first step, and others have not.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..vocab.alignment import VocabAlignment
from ..vocab.text_sync import TextSync
from ..vocab.vocabulary import SPACE, Vocabulary
from .request import Request, StepRecord


def member_syncs(alignment: VocabAlignment, primary: int, starts: Sequence[bool]) -> list[TextSync | None]:
    """Per member what keeps its ids equal to the text; None where the primary's ids are its own."""
    fingerprints = alignment.fingerprints
    return [
        None
        if fingerprints[m] == fingerprints[primary] and starts[m] == starts[primary]
        else TextSync(vocabulary, SPACE if starts[m] else b"")
        for m, vocabulary in enumerate(alignment.vocabularies)
    ]


def pieces_along(
    request: Request, primary: int, token_bytes: Sequence[bytes], ids: Sequence[int], at: int | None = None
) -> list[bytes]:
    """The bytes that each of some ids of the primary adds to a request's text, behind the `at` first ids, or all."""
    pieces = [token_bytes[i] for i in ids]
    if pieces and request.starts[primary] and not (len(request.ids) if at is None else at):
        pieces[0] = pieces[0].removeprefix(SPACE)
    return pieces


def first_steps(request: Request, pieces: Sequence[bytes] = ()) -> tuple[bool, ...]:
    """Per member whether it takes its first step in the start state, where so many pieces follow a request's text."""
    if not any(request.starts):
        return request.starts
    has_ids, grows = bool(request.ids or pieces), any(pieces)
    return tuple(
        starts and not (has_ids if sync is None else sync.ids or grows)
        for starts, sync in zip(request.starts, request.syncs)
    )


def rows_along(
    requests: Sequence[Request], pieces: Sequence[Sequence[bytes]] | None = None
) -> list[tuple[bool, ...]] | None:
    """`first_steps` where each request's text ends, and behind each beginning of its pieces; None if there are none."""
    if not any(any(request.starts) for request in requests):
        return None
    along: Sequence[Sequence[bytes]] = [()] * len(requests) if pieces is None else pieces
    return [first_steps(request, own[:n]) for request, own in zip(requests, along) for n in range(len(own) + 1)]


def recorded_bytes(record: StepRecord, vocabularies: Sequence[Vocabulary], member: int, token_id: int) -> bytes:
    """What a member's id adds to the text in a recorded step; nothing for -1."""
    data = b"" if token_id < 0 else vocabularies[member].token_bytes[token_id]
    return data.removeprefix(SPACE) if record.starts and record.starts[member] else data
