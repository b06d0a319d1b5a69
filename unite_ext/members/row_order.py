"""Which row of a batch is whose, when requests join and leave."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


class RowOrder:
    """Requests in the order of a batch's rows.

    Those that join come last. Into the gap of one that leaves comes the last one, so that where rows are memory a
    single one moves. Whoever keeps the order of the same requests has the same one.
    """

    def __init__(self) -> None:
        self._keys: list[int] = []
        self._rows: dict[int, int] = {}

    def __iter__(self) -> Iterator[int]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, keys: Iterable[int]) -> None:
        """Let those join that are not here."""
        for key in keys:
            if key not in self._rows:
                self._rows[key] = len(self._keys)
                self._keys.append(key)

    def remove(self, key: int) -> None:
        """Let one leave; nothing happens if it is not here."""
        row = self._rows.pop(key, None)
        if row is None:
            return
        last = self._keys.pop()
        if last != key:
            self._keys[row] = last
            self._rows[last] = row
