"""Whether the caches of another request fit into memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .._memory import free_bytes
from ..members.base import BaseMember
from .request import Request

_KEPT_FREE = 0.1  # of the memory that is free at first: passes need some beside the caches


class CacheMemory:
    """Whether another request's caches fit: bytes per id are known, lengths are bounded by what was asked for."""

    def __init__(self, members: Sequence[BaseMember], limit: int | None) -> None:
        self._members = members
        self._limit = limit
        self._limits: dict[torch.device, float] = {}

    def lack(self, request: Request, active: Sequence[Request]) -> str:
        """Why a request does not fit beside others; empty where it does. Rows of a cache are as wide as the widest."""
        needed: dict[torch.device, int] = {}
        for m, member in enumerate(self._members):
            if member.bytes_per_token:
                widest = max(self._length(other, m) for other in (*active, request))
                size = (len(active) + 1) * widest * member.bytes_per_token
                needed[member.device] = needed.get(member.device, 0) + size
        for device, size in needed.items():
            if size > self._free(device):
                return (
                    f"needs up to {size / 1e9:.2f} GB for caches on {device}, where {self._free(device) / 1e9:.2f} GB "
                    "are free: shorten it, ask for fewer new tokens, or use another device for a member"
                )
        return ""

    def _length(self, request: Request, m: int) -> int:
        """The most ids that a request can come to have in a member."""
        length = len(request.prompt_ids[m]) + max(request.options.max_new_tokens, len(request.targets or ()))
        limit = self._members[m].context_length
        return length if limit is None else min(length, max(limit, len(request.prompt_ids[m])))

    def _free(self, device: torch.device) -> float:
        if device not in self._limits:
            free = self._limit if self._limit is not None else free_bytes(device)
            kept = 0.0 if self._limit is not None else _KEPT_FREE
            self._limits[device] = float("inf") if free is None else (1 - kept) * free
        return self._limits[device]
