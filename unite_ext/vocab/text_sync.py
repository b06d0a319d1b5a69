"""A member's ids for a growing text, kept equal to tokenizing all of it again while only its tail is touched.

A *border* is a place between two adjacent characters across which no tokenization of any text can reach: what
stands before it is tokenized alike whatever follows, and what follows as if it stood alone. Borders are decided from
the two characters, so one that was found stays one. Everything after the last border is tokenized again at
every step; where no border can be shown to exist for a tokenizer, that is the whole text.

Why a border is one:

- byte-level BPE splits the text by a regular expression first. Every alternative that `_ALTERNATIVES` lists stops at
  the borders of `_word_border` whatever the neighbourhood, and none looks behind.
- SentencePiece BPE has no such step, but its merges only make pieces of the vocabulary: where no piece holds the two
  characters side by side, nothing reaches across.
- WordPiece and a splitting Metaspace cut the text before every space.

Added tokens are matched before all that: no border stands inside what may become one.
"""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

from .tokenizer_kinds import BYTE_LEVEL, META_SPACE, SENTENCEPIECE, WORDPIECE, TokenizerParts
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
    """One member's ids of one row's text.

    Attributes
    ----------
    ids : list of int
        Always `vocabulary.encode_continuation(text)`.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.ids: list[int] = []
        self._vocabulary = vocabulary
        self._borders = _borders_of(vocabulary)
        self._text = bytearray()
        self._border = 0  # bytes of the text before the last border
        self._settled = 0  # ids of these
        self._examined = 0  # bytes after the border within which there is no other, as far as is known

    def copy(self) -> TextSync:
        """Another one at the same text, which then grows by itself."""
        other = TextSync.__new__(TextSync)
        other.__dict__.update(self.__dict__)
        other.ids = list(self.ids)
        other._text = bytearray(self._text)
        return other

    def append(self, data: bytes) -> tuple[int, list[int]]:
        """Grow the text; returns how many ids to drop from the end of the old ones, and the ids to append then."""
        return append_all([self], [data])[0]

    def _grow(self, data: bytes) -> tuple[bytes, int]:
        """The text after the last border, and where in it the next one stands (0: nowhere)."""
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
    """`TextSync.append` for several rows of one member, with one call of its tokenizer."""
    if not syncs:
        return []
    vocabulary, borders = syncs[0]._vocabulary, syncs[0]._borders
    grown = [sync._grow(data) for sync, data in zip(syncs, pieces)]
    texts: list[bytes] = []
    for (tail, cut), data in zip(grown, pieces):
        # Where the border is what was the end, the ids before it are those that stand there.
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
    """Finds borders in texts of one tokenizer."""

    def __init__(self, is_border: Border | None, unknown: int | None, added: list[str]) -> None:
        self._is_border = None if is_border is None else lru_cache(maxsize=1 << 14)(is_border)
        self._unknown = unknown
        contents = {form for t in added for form in (t, t.replace(META_SPACE, " "))}
        self._prefixes = {t[:n].encode() for t in contents for n in range(1, len(t))}
        self._prefix_lengths = sorted({len(p) for p in self._prefixes})

    def last(self, text: bytes, limit: int, examined: int = 0) -> tuple[int, int]:
        """The last border of `text` at or before byte `limit`, 0 when there is none, and how far it was looked for.

        Up to byte `examined` none is looked for.
        """
        if self._is_border is None or limit <= 0:
            return 0, 0
        # From a character's start at or before the limit, look back pair by pair. Bytes at the end that may yet
        # become a character are no neighbours to decide by.
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
        """Whether what comes next is tokenized alone: runs of unknown text are one id, across any border."""
        return not head_ids or self._unknown is None or head_ids[-1] != self._unknown

    def _inside_added(self, text: bytes, at: int) -> bool:
        return any(n <= at and text[at - n : at] in self._prefixes for n in self._prefix_lengths)


def incomplete_suffix(text: bytes) -> int:
    """How many bytes at the end are the beginning of a UTF-8 character that more bytes may complete."""
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
            "%s: no place is known where its tokenization can start again; every step tokenizes the whole text",
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


def _is_space_split(pre_tokenizer: dict[str, Any]) -> bool:
    return pre_tokenizer["type"] == "Split" and pre_tokenizer["pattern"] in ({"String": " "}, {"String": META_SPACE})


def _before_space(before: str, after: str) -> bool:
    return after == " " and before != " "


def _alternatives(pre_tokenizers: list[dict[str, Any]]) -> set[str]:
    """Every alternative of the regular expressions; an empty string stands for a step that is none."""
    alternatives: set[str] = set()
    for p in pre_tokenizers:
        if p["type"] == "ByteLevel":
            if p.get("use_regex", True):
                alternatives.update(_GPT2.split("|"))
        elif p["type"] == "Split" and "Regex" in p["pattern"] and p["behavior"] == "Isolated" and not p.get("invert"):
            # DeepSeek's expression holds line ends as characters
            escaped = p["pattern"]["Regex"].replace("\r", r"\r").replace("\n", r"\n")
            alternatives.update(top_level_alternatives(escaped))
        elif p["type"] != "Digits":
            alternatives.add("")
    return alternatives


def top_level_alternatives(pattern: str) -> list[str]:
    """The parts of a regular expression between its outermost bars."""
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
    """A byte outside valid UTF-8, which is tokenized alone."""
    return "\udc80" <= character <= "\udcff"


def _word_border(before: str, after: str) -> bool:
    """Where a word, number or symbol ends for good, in every regular expression of `_ALTERNATIVES`.

    Unassigned characters are left alone: another version of Unicode may know them.
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
    """`_word_border`, and between digits where every digit is a word of its own."""
    digits = unicodedata.category(before)[0] == unicodedata.category(after)[0] == "N"
    return digits or _word_border(before, after)


def _pair_border(vocabulary: Vocabulary) -> Border:
    """Between two characters that no piece of the vocabulary holds side by side."""
    pairs: set[str] = set()
    for piece in vocabulary.pieces:
        if len(piece) > 1:
            text = piece.decode("utf-8", "surrogateescape")
            pairs.update(map("".join, pairwise(text)))

    def is_border(before: str, after: str) -> bool:
        # A literal U+2581 is spelled in bytes, alone like a stray byte.
        if META_SPACE in (before, after) or _is_stray(before) or _is_stray(after):
            return True
        return before + after not in pairs

    return is_border
