"""Keep a member's ids for a growing text, tokenizing only its end again; the ids are those of the whole text.

A *border* is a place between two adjacent characters that no token reaches across, whatever the text: the ids before
it do not depend on what follows, and the ids after it are those of the rest alone. A border is decided from the two
characters, so it stays one when the text grows. Every step tokenizes what follows the last border again. For a
tokenizer without known borders this is the whole text.

Why these places are borders:

- Byte-level BPE first splits the text by a regular expression. No alternative in `_ALTERNATIVES` matches across the
  borders of `_word_border`, whatever surrounds them, and none looks behind.
- SentencePiece BPE does not split, but its merges only make pieces of the vocabulary. Two characters that stand side by
  side in no piece have a border between them.
- WordPiece and a splitting Metaspace split the text before every space.

Added tokens are matched before all this, so no place inside the beginning of an added token is a border.
"""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from weakref import WeakKeyDictionary

from .tokenizer_kinds import BYTE_LEVEL, META_SPACE, SENTENCEPIECE, WORDPIECE, Part, TokenizerParts
from .vocabulary import Vocabulary

logger = logging.getLogger(__name__)

Border = Callable[[str, str], bool]

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORDS = {
    r" ?\p{L}+",
    r"\p{L}+",
    r"[^\r\n\p{L}\p{N}]?\p{L}+",
    r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
    r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
}
_SPACES = {r"\s+"}
_SINGLE_DIGITS = {r"\p{N}", r" ?\p{N}"}
_NUMBERS = {*_SINGLE_DIGITS, r"\p{N}{1,3}", r" ?\p{N}{1,3}", r"\p{N}+", r" ?\p{N}+"}
_ALTERNATIVES = (
    _WORDS
    | _SPACES
    | _NUMBERS
    | set(_GPT2.split("|"))
    | {
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"(?i:[sdmt]|ll|ve|re)",
        r"'(?i:[sdmt]|ll|ve|re)",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
        r" ?[\p{P}\p{S}]+[\r\n]*",
        "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+",
        r"\s*[\r\n]+",
        r"\s*[\r\n]",
        r"\s+(?!\S)",
        "[一-龥\u3040-\u309f\u30a0-\u30ff]+",
    }
)
_ASCII_SPACE = " \t\n\r\f\v"


class TextSync:
    """One member's ids for the text of one request.

    Parameters
    ----------
    vocabulary : Vocabulary
    lead : bytes
        What stands before the text for this member, and is no part of it: a space in the start state.

    Attributes
    ----------
    ids : list of int
        Always `vocabulary.encode_continuation(lead + text)`; none for an empty text.
    """

    def __init__(self, vocabulary: Vocabulary, lead: bytes = b"") -> None:
        self.ids: list[int] = []
        self.lead = lead
        self._vocabulary = vocabulary
        self._borders = _borders_of(vocabulary)
        self._text = bytearray()
        self._border = 0  # bytes of the text before the last border
        self._settled = 0  # ids of these bytes
        self._examined = 0  # bytes after the border that are known to hold no other border

    def branch(self) -> TextSync:
        """Another one at the same text, which then grows by itself. Its ids are only those that may still change.

        So it takes no longer for a longer text.
        """
        other = TextSync(self._vocabulary, b"" if self._text else self.lead)
        other.ids = self.ids[self._settled :]
        other._text = self._text[self._border :]
        other._examined = self._examined
        return other

    def append(self, data: bytes) -> tuple[int, list[int]]:
        """Append bytes to the text. Returns how many of the last ids to drop, and the ids to append after that."""
        return append_all([self], [data])[0]

    def _led(self, data: bytes) -> bytes:
        """Bytes to append, with the lead before the first ones."""
        return self.lead + data if data and not self._text else data

    def _grow(self, data: bytes) -> tuple[bytes, int]:
        """Append bytes. Returns the text after the last border, and where in it the next border is, 0 for none."""
        old_length = len(self._text) - self._border
        self._text += data
        tail = bytes(self._text[self._border :])
        cut, self._examined = self._borders.last(tail, old_length, self._examined)
        return tail, cut

    def _replace_tail(self, cut: int, head_ids: list[int], tail_ids: list[int]) -> tuple[int, list[int]]:
        new = head_ids + tail_ids
        old = self.ids[self._settled :]
        common = 0
        for a, b in zip(old, new):
            if a != b:
                break
            common += 1
        drop, append = len(old) - common, new[common:]
        if drop:
            del self.ids[len(self.ids) - drop :]
        self.ids += append
        self._border += cut
        self._examined -= cut
        self._settled += len(head_ids)
        return drop, append


def append_all(syncs: Sequence[TextSync], pieces: Sequence[bytes]) -> list[tuple[int, list[int]]]:
    """Apply `TextSync.append` to several requests of one member, with one call of its tokenizer."""
    if not syncs:
        return []
    vocabulary, borders = syncs[0]._vocabulary, syncs[0]._borders
    pieces = [sync._led(data) for sync, data in zip(syncs, pieces)]
    grown = [sync._grow(data) for sync, data in zip(syncs, pieces)]
    texts: list[bytes] = []
    for (tail, cut), data in zip(grown, pieces):
        # If the border is the old end of the text, the ids before it are known.
        texts += (tail[:cut], tail[cut:]) if 0 < cut < len(tail) - len(data) else (tail[cut:],)
    batch = iter(vocabulary.encode_continuation_batch(texts))
    edits = []
    for sync, (tail, cut), data in zip(syncs, grown, pieces):
        head_ids: list[int] = []
        if cut:
            head_ids = next(batch) if cut < len(tail) - len(data) else sync.ids[sync._settled :]
        tail_ids = next(batch)
        if cut and not borders.may_follow(head_ids):
            cut, head_ids, tail_ids = 0, [], vocabulary.encode_continuation(tail)
        edits.append(sync._replace_tail(cut, head_ids, tail_ids))
    return edits


class Borders:
    """The borders in texts of one tokenizer."""

    def __init__(self, is_border: Border | None, unknown: int | None, added: list[str]) -> None:
        self._is_border = None if is_border is None else lru_cache(maxsize=1 << 14)(is_border)
        self._unknown = unknown
        contents = {form for t in added for form in (t, t.replace(META_SPACE, " "))}
        self._prefixes = {t[:n].encode() for t in contents for n in range(1, len(t))}
        self._prefix_lengths = sorted({len(p) for p in self._prefixes})

    def last(self, text: bytes, limit: int, examined: int = 0) -> tuple[int, int]:
        """Find the last border of `text` after byte `examined`, at or before byte `limit`.

        Returns
        -------
        border : int
            0 if there is none.
        reached : int
            Up to which byte borders were looked for.
        """
        if self._is_border is None or limit <= 0:
            return 0, 0
        # Start at a character at or before the limit and look at pairs backwards. Bytes at the end that may become
        # part of a longer character decide nothing yet.
        complete = len(text) - incomplete_suffix(text)
        end = min(limit, complete)
        while 0 < end < complete and text[end] & 0xC0 == 0x80:
            end -= 1
        if end <= examined:
            return 0, examined
        following = text[end : min(end + 4, complete)].decode("utf-8", "surrogateescape")[:1]
        reached = end if following else examined
        before = text[examined:end].decode("utf-8", "surrogateescape")
        at = end
        for character in reversed(before):
            if following and self._is_border(character, following) and not self._inside_added(text, at):
                return at, reached
            following = character
            at -= 1 if character < "\x80" or "\udc80" <= character <= "\udcff" else len(character.encode())
            reached = max(reached, at)
        return 0, reached

    def may_follow(self, head_ids: list[int]) -> bool:
        """Whether a border may follow these ids: not after the unknown token, which is one id for a run of text."""
        return not head_ids or self._unknown is None or head_ids[-1] != self._unknown

    def _inside_added(self, text: bytes, at: int) -> bool:
        return any(n <= at and text[at - n : at] in self._prefixes for n in self._prefix_lengths)


def incomplete_suffix(text: bytes) -> int:
    """Count the bytes at the end that begin a UTF-8 character which is not complete."""
    for n in range(1, min(3, len(text)) + 1):
        byte = text[-n]
        if byte & 0xC0 != 0x80:
            length = 2 if 0xC2 <= byte < 0xE0 else 3 if 0xE0 <= byte < 0xF0 else 4 if 0xF0 <= byte < 0xF5 else 1
            return n if length > n else 0
    return 0


_known: WeakKeyDictionary[Vocabulary, Borders] = WeakKeyDictionary()


def _borders_of(vocabulary: Vocabulary) -> Borders:
    borders = _known.get(vocabulary)
    if borders is None:
        borders = _known[vocabulary] = _find_borders(vocabulary)
    return borders


def _find_borders(vocabulary: Vocabulary) -> Borders:
    encoder = vocabulary.encoder
    parts = encoder.parts
    matched = [t for t in parts.added_tokens if not t["special"]]
    is_border = None
    if not encoder.lossy and not any(t.get("single_word") for t in matched):
        is_border = _border_rule(parts, vocabulary)
    if is_border is None:
        logger.warning(
            "%s: no borders are known for this tokenizer; every step tokenizes the whole text again",
            vocabulary.name,
        )
    return Borders(is_border, encoder.unknown, [t["content"] for t in matched])


def _border_rule(parts: TokenizerParts, vocabulary: Vocabulary) -> Border | None:
    kinds = [p["type"] for p in parts.pre_tokenizers]
    if parts.kind == WORDPIECE:
        return _before_space
    if parts.kind == BYTE_LEVEL:
        alternatives = _alternatives(parts.pre_tokenizers)
        if not alternatives <= _ALTERNATIVES or not alternatives & _WORDS or not alternatives & _SPACES:
            return None
        return _digit_border if alternatives & _NUMBERS <= _SINGLE_DIGITS else _word_border
    splits = any(p["type"] == "Metaspace" and p.get("split", True) for p in parts.pre_tokenizers)
    if parts.model["type"] == "Unigram":
        return _before_space if splits else None
    plain = all(kind in ("Metaspace", "Digits") or _is_space_split(p) for kind, p in zip(kinds, parts.pre_tokenizers))
    if parts.kind == SENTENCEPIECE and parts.model["type"] == "BPE" and plain:
        return _pair_border(vocabulary)
    return None


def _is_space_split(pre_tokenizer: Part) -> bool:
    return pre_tokenizer["type"] == "Split" and pre_tokenizer["pattern"] in ({"String": " "}, {"String": META_SPACE})


def _before_space(before: str, after: str) -> bool:
    return after == " " and before != " "


def _alternatives(pre_tokenizers: list[Part]) -> set[str]:
    """The alternatives of all regular expressions, and an empty string for any other kind of pre-tokenizer."""
    alternatives: set[str] = set()
    for p in pre_tokenizers:
        if p["type"] == "ByteLevel":
            if p.get("use_regex", True):
                alternatives.update(_GPT2.split("|"))
        elif p["type"] == "Split" and "Regex" in p["pattern"] and p["behavior"] == "Isolated" and not p.get("invert"):
            # DeepSeek's expression contains line ends unescaped
            escaped = p["pattern"]["Regex"].replace("\r", r"\r").replace("\n", r"\n")
            alternatives.update(top_level_alternatives(escaped))
        elif p["type"] != "Digits":
            alternatives.add("")
    return alternatives


def top_level_alternatives(pattern: str) -> list[str]:
    """Split a regular expression at its outermost bars."""
    parts, depth, in_class, start, i = [], 0, False, 0, 0
    while i < len(pattern):
        c = pattern[i]
        if c == "\\":
            i += 1
        elif in_class:
            in_class = c != "]"
        elif c == "[":
            in_class = True
        elif c in "()":
            depth += 1 if c == "(" else -1
        elif c == "|" and depth == 0:
            parts.append(pattern[start:i])
            start = i + 1
        i += 1
    return [*parts, pattern[start:]]


def _is_stray(character: str) -> bool:
    """Whether a character is a byte outside valid UTF-8, which is tokenized alone."""
    return "\udc80" <= character <= "\udcff"


def _word_border(before: str, after: str) -> bool:
    """Whether a word, number or symbol ends between two characters, for all of `_ALTERNATIVES`.

    Never beside unassigned characters, which another version of Unicode may assign.
    """
    if _is_stray(before) or _is_stray(after):
        return True
    kind = unicodedata.category(before)[0]
    if after == " ":
        return kind in "LNPSM"
    if kind == "L":
        return after in _ASCII_SPACE or (unicodedata.category(after)[0] in "PS" and after not in "'’")
    if kind == "N":
        return after in _ASCII_SPACE or unicodedata.category(after)[0] in "LPS"
    return False


def _digit_border(before: str, after: str) -> bool:
    """Whether there is a `_word_border`, or two digits, for a tokenizer that splits between digits."""
    digits = unicodedata.category(before)[0] == unicodedata.category(after)[0] == "N"
    return digits or _word_border(before, after)


def _pair_border(vocabulary: Vocabulary) -> Border:
    """Make the rule for SentencePiece: a border is between two characters that no piece holds side by side."""
    pairs: set[str] = set()
    for piece in vocabulary.pieces:
        if len(piece) > 1:
            text = piece.decode("utf-8", "surrogateescape")
            pairs.update(map("".join, pairwise(text)))

    def is_border(before: str, after: str) -> bool:
        # A literal U+2581 is spelled in byte tokens, alone like a byte outside valid UTF-8.
        if META_SPACE in (before, after) or _is_stray(before) or _is_stray(after):
            return True
        return before + after not in pairs

    return is_border
