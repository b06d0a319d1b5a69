"""Which ids of every member a grammar allows after a text, as bits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..vocab.vocabulary import Vocabulary
from .compiled import Structure, compiler_of, import_xgrammar

if TYPE_CHECKING:
    import xgrammar

_LEAD = b"\xed"  # of the characters from U+D000, and of the halves of surrogate pairs


class Masks(ABC):
    """The members' matchers under a structure; a subclass knows at which text they stand.

    Parameters
    ----------
    structure : Structure
    vocabularies : sequence of Vocabulary
        One per member.
    starts : sequence of bool
        The members in the start state, whose first tokens stand behind a space that is no part of the text.

    Raises
    ------
    ValueError
        The structure does not compile.
    """

    def __init__(self, structure: Structure, vocabularies: Sequence[Vocabulary], starts: Sequence[bool]) -> None:
        at_start = {m: vocabularies[m].start for m, starting in enumerate(starts) if starting}
        distinct = list(dict.fromkeys([*vocabularies, *at_start.values()]))
        self.walkers = [Walker(g, v, structure.kind) for g, v in zip(structure.compile(distinct), distinct)]
        self.of_member = [self.walkers[distinct.index(v)] for v in vocabularies]
        self._at_start = {m: self.walkers[distinct.index(v)] for m, v in at_start.items()}
        self._silent = {m: v.silent for m, v in at_start.items()}

    def words(self, member: int) -> int:
        """How many words a member's mask has."""
        return self.of_member[member].words

    def fill(self, member: int, place: int, mask: NDArray[np.int32], at_start: bool = False) -> None:
        """Set the bits of a member's ids that are allowed at a place.

        Parameters
        ----------
        member : int
        place : int
            Which of the places that it knows of.
        mask : int32 [words]
            Bit i of word w is id 32 * w + i.
        at_start : bool
            Whether the member takes its first step in the start state. Then the space alone is allowed as well.
        """
        walker = (self._at_start if at_start else self.of_member)[member]
        walker.fill(mask, self.go_to(walker, place))
        for i in self._silent[member] if at_start else ():
            mask[i >> 5] |= bit(i)

    @abstractmethod
    def go_to(self, walker: Walker, place: int) -> bytes:
        """Bring a walker to a place; returns the last byte before it."""


class Walker:
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
                mask[i >> 5] &= ~bit(i)


def bit(i: int) -> np.int32:
    """An id's bit in its word of a mask."""
    return np.uint32(1 << (i & 31)).astype(np.int32)
