"""What keeps one request's text within a grammar: where every member stands, and which of its tokens are allowed.

A slot of a step is a text that some member proposes, and members propose what their masks allow. The primary emits the
slot's text, or the first sub-token of it, which is a beginning of it. So whatever wins, the text stays the beginning of
one that the grammar allows. Masks are exact: a token is allowed if and only if its bytes may follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..vocab.vocabulary import Vocabulary
from .compiled import Structure, compiler_of, import_xgrammar

if TYPE_CHECKING:
    import xgrammar

_LEAD = b"\xed"  # of the characters from U+D000, and of the halves of surrogate pairs


class StructureError(ValueError):
    """A text came where its grammar allows nothing that the primary could write."""


class Constraint:
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
        at_start = {m: vocabularies[m].start for m, starting in enumerate(starts) if starting}
        distinct = list(dict.fromkeys([*vocabularies, *at_start.values()]))
        self._walkers = [_Walker(g, v, structure.kind) for g, v in zip(structure.compile(distinct), distinct)]
        self._of_member = [self._walkers[distinct.index(v)] for v in vocabularies]
        self._at_start = {m: self._walkers[distinct.index(v)] for m, v in at_start.items()}
        self._silent = {m: v.silent for m, v in at_start.items()}
        self._primary = self._of_member[primary]
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
        for walker in self._walkers:
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
        for walker in self._walkers:
            walker.go_back(min(same, walker.ahead))
        self._ahead = list(pieces)
        allowed = self._walk(self._primary, len(pieces))
        del self._ahead[allowed:]
        return allowed

    def fill(self, member: int, place: int, mask: NDArray[np.int32], at_start: bool = False) -> None:
        """Set the bits of a member's ids that are allowed after so many pieces of what is ahead.

        Parameters
        ----------
        member : int
        place : int
            0 where the text ends.
        mask : int32 [words]
            Bit i of word w is id 32 * w + i.
        at_start : bool
            Whether the member takes its first step in the start state. Then the space alone is allowed as well.
        """
        walker = (self._at_start if at_start else self._of_member)[member]
        self._walk(walker, place)
        walker.fill(mask, self._ahead[place - 1][-1:] if place else self._last)
        for i in self._silent[member] if at_start else ():
            mask[i >> 5] |= _bit(i)

    def words(self, member: int) -> int:
        """How many words a member's mask has."""
        return self._of_member[member].words

    def _walk(self, walker: _Walker, place: int) -> int:
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
            mask[i >> 5] &= ~_bit(i)
        if not mask.any():
            self.ended = self._primary.completed
            self.stuck = not self.ended


class _Walker:
    """Where one vocabulary's matcher stands: at the end of the text, or some pieces ahead of it."""

    def __init__(self, grammar: xgrammar.CompiledGrammar, vocabulary: Vocabulary, kind: str) -> None:
        module = import_xgrammar(kind)
        self._matcher = module.GrammarMatcher(grammar)
        self._compiler = compiler_of(vocabulary, kind)
        self._size = vocabulary.size
        self.words: int = module.get_bitmask_shape(1, vocabulary.size)[1]
        self.ahead = 0

    @property
    def completed(self) -> bool:
        """Whether the text may end here."""
        return bool(self._matcher.is_completed())

    def append(self, data: bytes) -> bool:
        """Go a piece further, if the grammar allows it."""
        if not self._matcher.accept_string(data):
            return False
        self.ahead += 1
        return True

    def go_back(self, place: int) -> None:
        """Go back to a place ahead of the text, 0 for its end."""
        if self.ahead > place:
            self._matcher.rollback(self.ahead - place)
            self.ahead = place

    def commit(self) -> None:
        """Take where it stands as the end of the text."""
        self.ahead = 0

    def fill(self, mask: NDArray[np.int32], last: bytes) -> None:
        """Set the bits of the allowed ids."""
        self._matcher.fill_next_token_bitmask(mask[None])
        if self._size % 32:  # the last word has bits of no id
            mask[-1] &= np.int32((1 << self._size % 32) - 1)
        if last == _LEAD:
            for i in self._compiler.second_halves:
                mask[i >> 5] &= ~_bit(i)


def _bit(i: int) -> np.int32:
    return np.uint32(1 << (i & 31)).astype(np.int32)
