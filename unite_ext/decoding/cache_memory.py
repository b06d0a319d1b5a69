"""Whether the caches of another request fit into memory."""

from __future__ import annotations

from collections.abc import Sequence

from .._memory import free_bytes
from ..exchange import HERE, Exchange
from ..members.base import BaseMember
from .request import Request

_KEPT_FREE = 0.1  # of the memory that is free at first: passes need some beside the caches


class CacheMemory:
    """Whether another request's caches fit: bytes per id are known, lengths are bounded by what was asked for.

    Parameters
    ----------
    members : sequence of BaseMember
    limit : int or None
        Bytes that caches may take at each place; None for what is free now, less a tenth.
    exchange : Exchange
        Between the processes that the members live in, which have to admit the same requests.
    """

    def __init__(self, members: Sequence[BaseMember], limit: int | None, exchange: Exchange = HERE) -> None:
        self._members = members
        self._limits: dict[str, float] = {}
        own = {member.device for m, member in enumerate(members) if limit is None and exchange.holds(m)}
        free = {device: free_bytes(device) for device in own}
        figures = [-1 if (found := free.get(member.device)) is None else found for member in members]
        for member, figure in zip(members, exchange.figures(figures)):
            known = limit if limit is not None else float("inf") if figure < 0 else (1 - _KEPT_FREE) * figure
            self._limits.setdefault(member.place, known)

    def lack(self, request: Request, active: Sequence[Request]) -> str:
        """Why a request does not fit beside others; empty where it does. Rows of a cache are as wide as the widest."""
        needed: dict[str, int] = {}
        for m, member in enumerate(self._members):
            if member.bytes_per_token:
                widest = max(self._length(other, m) for other in (*active, request))
                size = (len(active) + 1) * widest * member.bytes_per_token
                needed[member.place] = needed.get(member.place, 0) + size
        for place, size in needed.items():
            if size > self._limits[place]:
                return (
                    f"needs up to {size / 1e9:.2f} GB for caches on {place}, where {self._limits[place] / 1e9:.2f} GB "
                    "are free: shorten it, ask for fewer new tokens, or use another device for a member"
                )
        return ""

    def _length(self, request: Request, m: int) -> int:
        """The most ids that a request can come to have in a member."""
        length = len(request.prompt_ids[m]) + max(request.options.max_new_tokens, len(request.targets or ()))
        limit = self._members[m].context_length
        return length if limit is None else min(length, max(limit, len(request.prompt_ids[m])))
