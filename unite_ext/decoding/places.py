"""The texts after 0, 1, ... tokens of a draft or of given targets, as places in every member's context."""

from __future__ import annotations

from collections.abc import Sequence

from ..members.base import Place
from .request import Request


def places_along(request: Request, member: int, ids: Sequence[int], pieces: Sequence[bytes]) -> list[Place]:
    """A member's places after each beginning of a continuation, the empty one first.

    Parameters
    ----------
    request : Request
        Its text is where the continuation begins.
    member : int
    ids : sequence of int
        The continuation as the primary's ids.
    pieces : sequence of bytes
        Their bytes.

    Returns
    -------
    list of Place
        One more than there are ids. What they append is the continuation in the member's own ids, which may replace
        some at the end of the text: each beginning is tokenized together with the text before it.
    """
    sync = request.syncs[member]
    if sync is None:
        return [(request.key, 0, list(ids[:n])) for n in range(len(ids) + 1)]
    grown = sync.branch()
    length = shortest = len(grown.ids)
    places: list[Place] = [(request.key, 0, [])]
    for piece in pieces:
        before = len(grown.ids)
        drop, _ = grown.append(piece)
        shortest = min(shortest, before - drop)
        places.append((request.key, length - shortest, grown.ids[shortest:]))
    return places


def place_length(length: int, place: Place) -> int:
    """How many ids a context of this length has at a place."""
    return length - place[1] + len(place[2])
