"""The members' contexts, kept at the texts of the running requests."""

from __future__ import annotations

from collections.abc import Sequence

from ..members.base import BaseMember, Context, Place
from ..vocab.alignment import VocabAlignment
from ..vocab.text_sync import append_all
from .places import place_length, places_along
from .request import Request
from .start_state import pieces_along


class TextContexts:
    """Brings every member's context to its requests' texts, and knows which places along a text fit into it.

    Parameters
    ----------
    members : sequence of BaseMember
    contexts : sequence of Context
        One per member.
    alignment : VocabAlignment
    primary : int
    """

    def __init__(
        self, members: Sequence[BaseMember], contexts: Sequence[Context], alignment: VocabAlignment, primary: int
    ) -> None:
        self.contexts = contexts
        self._primary = primary
        self._token_bytes = alignment.vocabularies[primary].token_bytes
        self._limits = [
            (m, member.context_length) for m, member in enumerate(members) if member.context_length is not None
        ]

    def pieces(self, request: Request, ids: Sequence[int], at: int | None = None) -> list[bytes]:
        """What each of some ids of the primary adds to a text, see `pieces_along`."""
        return pieces_along(request, self._primary, self._token_bytes, ids, at)

    def places(self, request: Request, ids: Sequence[int], asked: int | None = None) -> list[list[Place]]:
        """Per member its places along these ids of the primary; the one that has been asked needs none."""
        pieces = self.pieces(request, ids)
        return [[] if m == asked else places_along(request, m, ids, pieces) for m in range(len(self.contexts))]

    def fitting(self, request: Request, places: Sequence[Sequence[Place]], asked: int | None = None) -> int:
        """How many of the places stand within the contexts of all members but the one asked; at least one."""
        fitting = max(map(len, places))
        for m, limit in self._limits:
            if m == asked:
                continue
            [length] = self.contexts[m].lengths([request.key])
            for n, place in enumerate(places[m][1:fitting], 1):
                if place_length(length, place) >= limit:
                    fitting = n
                    break
        return fitting

    def grow(
        self,
        requests: Sequence[Request],
        pieces: Sequence[bytes],
        new_ids: Sequence[Sequence[int]],
        asked: int | None = None,
    ) -> None:
        """Bring the contexts to the texts, which have grown by these bytes and ids of the primary.

        `asked` names a member whose context is there already.
        """
        if not requests:
            return
        keys = [request.key for request in requests]
        for m, context in enumerate(self.contexts):
            syncs, own_keys, own_pieces = [], [], []
            for request, ids, piece in zip(requests, new_ids, pieces):
                if (sync := request.syncs[m]) is not None:
                    syncs.append(sync)
                    own_keys.append(request.key)
                    own_pieces.append(piece)
                elif m != asked:
                    context.edit(request.key, 0, ids)
            for key, (drop, append) in zip(own_keys, append_all(syncs, own_pieces)):
                context.edit(key, drop, append)
        for m, limit in self._limits:
            lengths = self.contexts[m].lengths(keys)
            if max(lengths) >= limit:
                for request, length in zip(requests, lengths):
                    if length >= limit and m not in request.missing and not request.finish_reason:
                        request.finish_reason = "length"
