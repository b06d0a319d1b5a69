"""What keeps one request's text within a grammar: where every member stands, and which of its tokens are allowed.

A slot of a step is a text that some member proposes, and members propose what their masks allow. The primary emits the
slot's text, or the first sub-token of it, which is a beginning of it. So whatever wins, the text stays the beginning of
one that the grammar allows. Masks are exact: a token is allowed if and only if its bytes may follow.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..vocab.vocabulary import Vocabulary
from .compiled import Structure
from .masks import Masks, Walker, bit


class StructureError(ValueError):
    """A text came where its grammar allows nothing that the primary could write."""


class Constraint(Masks):
    """The state of one request under a structure.

    Parameters
    ----------
    structure : Structure
    vocabularies : sequence of Vocabulary
        One per member.
    primary : int
    starts : sequence of bool, optional
        The members in the start state, whose first tokens stand behind a space that is no part of the text.

    Raises
    ------
    ValueError
        The structure does not compile, or allows no text that the primary can write.

    Attributes
    ----------
    ended : bool
        The text is whole: nothing that the primary could emit may follow, but the end.
    stuck : bool
        The text is not whole, and nothing that the primary could emit may follow.
    """

    def __init__(
        self, structure: Structure, vocabularies: Sequence[Vocabulary], primary: int, starts: Sequence[bool] = ()
    ) -> None:
        super().__init__(structure, vocabularies, starts)
        self._primary = self.of_member[primary]
        self._eos = vocabularies[primary].eos_token_ids
        self._kind = structure.kind
        self._ahead: list[bytes] = []
        self._last = b""  # byte of the text
        self.ended = self.stuck = False
        self._look()
        if self.ended or self.stuck:
            what = "the empty text" if self.ended else "no text that the primary can write"
            raise ValueError(f"{structure.kind} must allow a text, got one that allows {what}")

    def accept(self, data: bytes) -> None:
        """Go on by bytes that have been emitted; they may be a part of a character.

        Raises
        ------
        StructureError
            The grammar does not allow them.
        """
        self.look_ahead(())
        for walker in self.walkers:
            if data and not walker.append(data):
                raise StructureError(f"the text must follow its {self._kind}, got {data!r}")
            walker.commit()
        self._last = data[-1:] or self._last
        self._look()

    def look_ahead(self, pieces: Sequence[bytes]) -> int:
        """Let `fill` speak of the places along these pieces of text. Returns how many of them are allowed."""
        same = 0
        while same < min(len(pieces), len(self._ahead)) and pieces[same] == self._ahead[same]:
            same += 1
        for walker in self.walkers:
            walker.go_back(min(same, walker.ahead))
        self._ahead = list(pieces)
        allowed = self._walk(self._primary, len(pieces))
        del self._ahead[allowed:]
        return allowed

    def go_to(self, walker: Walker, place: int) -> bytes:
        """See `Masks.go_to`: a place is so many pieces of what is ahead, 0 where the text ends."""
        self._walk(walker, place)
        return self._ahead[place - 1][-1:] if place else self._last

    def _walk(self, walker: Walker, place: int) -> int:
        """Bring a walker to a place; returns how far it came."""
        if walker.ahead > place:
            walker.go_back(place)
        while walker.ahead < place and walker.append(self._ahead[walker.ahead]):
            pass
        return walker.ahead

    def _look(self) -> None:
        """See whether the text can go on."""
        mask = np.zeros(self._primary.words, np.int32)
        self._primary.fill(mask, self._last)
        for i in self._eos:
            mask[i >> 5] &= ~bit(i)
        if not mask.any():
            self.ended = self._primary.completed
            self.stuck = not self.ended
