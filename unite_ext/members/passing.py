"""A context that passes everything on to another one, for those that only look on."""

from __future__ import annotations

from collections.abc import Sequence

from .base import Context, Place, Scores


class PassingContext(Context):
    """Another context, unchanged; a subclass adds to the methods that it is about.

    Parameters
    ----------
    inner : Context
    """

    def __init__(self, inner: Context) -> None:
        self._inner = inner

    def join(self, key: int, ids: Sequence[int]) -> None:
        """See `Context.join`."""
        self._inner.join(key, ids)

    def leave(self, key: int) -> None:
        """See `Context.leave`."""
        self._inner.leave(key)

    def edit(self, key: int, drop: int, append: Sequence[int]) -> None:
        """See `Context.edit`."""
        self._inner.edit(key, drop, append)

    def lengths(self, keys: Sequence[int]) -> list[int]:
        """See `Context.lengths`."""
        return self._inner.lengths(keys)

    def ids(self, key: int) -> list[int]:
        """See `Context.ids`."""
        return self._inner.ids(key)

    def prefill(self, budget: int) -> None:
        """See `Context.prefill`."""
        self._inner.prefill(budget)

    def ready(self, key: int) -> bool:
        """See `Context.ready`."""
        return self._inner.ready(key)

    def evaluate(self, keys: Sequence[int]) -> Scores:
        """See `Context.evaluate`."""
        return self._inner.evaluate(keys)

    def hold(self, places: Sequence[Place]) -> None:
        """See `Context.hold`."""
        self._inner.hold(places)

    def evaluate_places(self, places: Sequence[Place]) -> Scores:
        """See `Context.evaluate_places`."""
        return self._inner.evaluate_places(places)
