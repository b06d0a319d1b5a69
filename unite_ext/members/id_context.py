"""Contexts that are lists of ids and nothing more: the model's own state is elsewhere, or there is none."""

from __future__ import annotations

from collections.abc import Sequence

from .base import Context


class IdContext(Context):
    """Keeps every request's ids; what asks the model for scores is left to its kinds."""

    def __init__(self) -> None:
        self._ids: dict[int, list[int]] = {}

    def join(self, key: int, ids: Sequence[int]) -> None:
        """See `Context.join`."""
        self._ids[key] = list(ids)

    def leave(self, key: int) -> None:
        """See `Context.leave`."""
        self._ids.pop(key, None)

    def edit(self, key: int, drop: int, append: Sequence[int]) -> None:
        """See `Context.edit`."""
        ids = self._ids[key]
        ids[len(ids) - drop :] = append

    def lengths(self, keys: Sequence[int]) -> list[int]:
        """See `Context.lengths`."""
        return [len(self._ids[key]) for key in keys]

    def ids(self, key: int) -> list[int]:
        """See `Context.ids`."""
        return self._ids[key]
