"""Which tokens a grammar allows anywhere along a text, for steps that read it in several ways."""

from __future__ import annotations

from collections.abc import Sequence

from ..vocab.vocabulary import Vocabulary
from .compiled import Structure
from .masks import Masks, Walker


class TextMasks(Masks):
    """The masks of one request at beginnings of its text, and of what may follow it. Made as `Masks`.

    Attributes
    ----------
    places : sequence of bytes
        The texts that `fill` speaks of. A text behind which nothing is allowed has an empty mask.
    """

    def __init__(self, structure: Structure, vocabularies: Sequence[Vocabulary], starts: Sequence[bool]) -> None:
        super().__init__(structure, vocabularies, starts)
        self.places: Sequence[bytes] = ()
        self._texts = {walker: bytearray() for walker in self.walkers}

    def go_to(self, walker: Walker, place: int) -> bytes:
        """See `Masks.go_to`."""
        text = self.places[place]
        if self._follow(walker, text) < len(text):
            raise ValueError(f"the text must follow its structure, got {text!r}")
        return text[-1:]

    def allowed(self, text: bytes) -> int:
        """How many of these bytes, which begin with the request's text, may be one."""
        return self._follow(self.walkers[0], text)

    def _follow(self, walker: Walker, text: bytes) -> int:
        """Let a walker stand behind this text, or as far along it as is allowed; returns how far."""
        own = self._texts[walker]
        same = min(len(own), len(text))
        while own[:same] != text[:same]:  # texts differ at their ends
            same -= 1
        walker.go_back(same)
        del own[same:]
        for at in range(same, len(text)):  # a byte is a piece, so that it can be gone back to
            if not walker.append(text[at : at + 1]):
                return at
            own.append(text[at])
        return len(text)
