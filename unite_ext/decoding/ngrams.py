"""Drafts from what stood in a text before."""

from __future__ import annotations

from collections.abc import Sequence

NGRAMS = (4, 3, 2)  # how many of the last ids must have stood there before, the most first
BYTE_NGRAMS = (16, 12, 8)  # the same of bytes


class Ngrams:
    """Where the last few ids of a growing text stood before.

    Parameters
    ----------
    ids : sequence of int
        What the text begins with.
    sizes : sequence of int
        How many of the last ids must have stood there before, the most first.

    Attributes
    ----------
    ids : list of int
        All of the text.
    grown : int
        By how many ids the text has grown.
    """

    def __init__(self, ids: Sequence[int], sizes: Sequence[int] = NGRAMS) -> None:
        self.ids: list[int] = []
        self.grown = -len(ids)
        self._sizes = sizes
        self._following: dict[tuple[int, ...], int] = {}  # an n-gram to what its last place but the end is followed by
        self.extend(ids)

    def extend(self, ids: Sequence[int]) -> None:
        """Grow the text."""
        self.grown += len(ids)
        for i in ids:
            end = len(self.ids)
            for n in self._sizes:
                if n <= end:
                    self._following[tuple(self.ids[end - n : end])] = end
            self.ids.append(i)

    def following(self, length: int, after: Sequence[int] = ()) -> list[int]:
        """Up to so many ids that followed the last ids before, the longest match first; empty where they are new.

        The last ids are those of the text and of `after` behind it.
        """
        last = [*self.ids[-max(self._sizes) :], *after]
        for n in self._sizes:
            at = self._following.get(tuple(last[-n:])) if n <= len(last) else None
            if at is not None:
                return self.ids[at : at + length]
        return []
