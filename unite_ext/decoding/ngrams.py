"""Drafts from what stood in a text before."""

from __future__ import annotations

from collections.abc import Sequence

NGRAMS = (4, 3, 2)  # how many of the last ids must have stood there before, the most first


class Ngrams:
    """Where the last few ids of a growing text stood before.

    Parameters
    ----------
    ids : sequence of int
        What the text begins with.
    """

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids: list[int] = []
        self._following: dict[tuple[int, ...], int] = {}  # an n-gram to what its last place but the end is followed by
        self.extend(ids)

    def extend(self, ids: Sequence[int]) -> None:
        """Grow the text."""
        for i in ids:
            end = len(self.ids)
            for n in NGRAMS:
                if n <= end:
                    self._following[tuple(self.ids[end - n : end])] = end
            self.ids.append(i)

    def following(self, length: int) -> list[int]:
        """Up to so many ids that followed the last ids before, the longest match first; empty where they are new."""
        for n in NGRAMS:
            at = self._following.get(tuple(self.ids[-n:])) if n <= len(self.ids) else None
            if at is not None:
                return self.ids[at : at + length]
        return []
