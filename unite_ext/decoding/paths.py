"""The ids with which a member may have written a text, as a tree whose paths share their beginnings."""

from __future__ import annotations

from collections.abc import Sequence


class Path:
    """Ids of a member after its prompt. Equal paths from one root are one object; a new one is the empty path.

    Attributes
    ----------
    length : int
        How many ids.
    end : int
        How many bytes of the text they spell.
    """

    __slots__ = ("_children", "_parent", "_token", "end", "length")

    def __init__(self, parent: Path | None = None, token: int = -1, size: int = 0) -> None:
        self._parent = parent
        self._token = token
        self._children: dict[int, Path] = {}
        self.length: int = 0 if parent is None else parent.length + 1
        self.end: int = 0 if parent is None else parent.end + size

    def child(self, token: int, size: int) -> Path:
        """This path and one more id, which spells `size` bytes."""
        found = self._children.get(token)
        if found is None:
            found = self._children[token] = Path(self, token, size)
        return found

    def along(self, ids: Sequence[int], token_bytes: Sequence[bytes]) -> list[Path]:
        """The paths with 1, 2, ... of these ids more."""
        found, path = [], self
        for token in ids:
            path = path.child(token, len(token_bytes[token]))
            found.append(path)
        return found

    def ids(self) -> list[int]:
        """Its ids."""
        return Path().change_to(self)[1]

    def change_to(self, other: Path) -> tuple[int, list[int]]:
        """How many of the last ids to drop, and the ids to append then, to come to another path of the same root."""
        append: list[int] = []
        here: Path = self
        there: Path = other
        while there.length > here.length:
            append.append(there._token)
            there = _parent(there)
        while here.length > there.length:
            here = _parent(here)
        while here is not there and here.length:
            append.append(there._token)
            here, there = _parent(here), _parent(there)
        append.reverse()
        return self.length - here.length, append


def _parent(path: Path) -> Path:
    assert path._parent is not None
    return path._parent
