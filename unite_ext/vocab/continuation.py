"""Tokenize bytes in the middle of a text into ids that spell exactly these bytes.

Only the tokenizer's pre-tokenizer and model run. Normalizers and dummy prefixes are off, and special strings are
ordinary text. What the model cannot spell becomes byte tokens, or the unknown token if the vocabulary has none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer
from tokenizers.normalizers import Normalizer

from .tokenizer_kinds import (
    BYTE_LEVEL,
    META_SPACE,
    SENTENCEPIECE,
    WORDPIECE,
    AddedTokenPart,
    Part,
    TokenizerParts,
    is_lossy_normalizer,
    is_space_replace,
    unknown_id,
)

# Python's surrogateescape reads a byte outside valid UTF-8 as one of these characters
_STRAY = "\udc80-\udcff"
# Encodings are large objects: batches that fit the processor's cache are two to three times faster than one large batch
_BATCH = 512
# A batch wakes the threads of tokenizers, which takes as long as a dozen short texts (3 µs each)
_FEW = 64
_KNOWN, _SHORT = 1 << 15, 48  # how many texts are remembered, and of at most how many bytes
_UNSPELLABLE_COST = 1 << 20  # one more unknown character costs more than any number of pieces


class ContinuationEncoder:
    """Tokenizes byte strings of one member as they stand in the middle of a text.

    Parameters
    ----------
    parts : TokenizerParts
    pieces : list of bytes
        The bytes of every id, see `Vocabulary.pieces`.
    is_byte_piece : numpy.ndarray of bool
        Which ids are byte-fallback pieces.
    eos_token_ids : tuple of int
        Added tokens with these ids are not matched, because EOS is not text.
    """

    def __init__(
        self,
        parts: TokenizerParts,
        pieces: list[bytes],
        is_byte_piece: NDArray[np.bool_],
        eos_token_ids: tuple[int, ...],
    ) -> None:
        self.parts = parts
        self.pieces = pieces
        self.lossy: bool = parts.is_lossy
        self.unknown: int | None = unknown_id(parts)
        self.byte_ids: list[int | None] = _byte_ids(parts.kind, pieces, is_byte_piece)
        specials = {t["id"] for t in parts.added_tokens if t["special"]} | set(eos_token_ids)
        self._words: _WordSpeller | None = None
        if parts.kind == WORDPIECE:
            self._words = _WordSpeller(parts, pieces, specials)
        else:
            self._tokenizer = _bare_tokenizer(parts, specials)
            stray = _STRAY + (META_SPACE if parts.kind == SENTENCEPIECE else "")
            self._stray = re.compile(f"([{stray}])")
        self._characters: dict[str, list[int]] = {}
        self._known: dict[bytes, list[int]] = {}
        # With an id for every byte and no lossy normalizer, ids always spell their text: see _repair
        self.covers: bool = not self.lossy and None not in self.byte_ids

    def encode_short(self, data: list[bytes]) -> list[list[int]]:
        """Do the same as `encode_batch`, remembering short texts, for many that come again. Do not change the lists."""
        known = self._known
        missing = [d for d in data if d not in known]
        if missing:
            if len(known) > _KNOWN:
                known.clear()
                missing = data
            known.update(zip(missing, self.encode_batch(missing)))
        found = [known[d] for d in data]
        for d in missing:
            if len(d) > _SHORT:
                known.pop(d, None)
        return found

    def encode_batch(self, data: list[bytes]) -> list[list[int]]:
        """Tokenize every byte string by itself."""
        texts = [d.decode("utf-8", "surrogateescape") for d in data]
        if self._words is not None:
            return [self._words.encode(t, self.unknown) for t in texts]
        search = self._stray.search
        broken = [i for i, t in enumerate(texts) if search(t)]
        stretches: list[str] = []
        if broken:
            layout = {i: self._stray.split(texts[i]) for i in broken}
            whole = [t for i, t in enumerate(texts) if i not in layout]
            stretches = [s for parts in layout.values() for s in parts[::2] if s]
            ids = iter(self._encode_texts(whole))
            stretch_ids = iter(self._encode_texts(stretches))
            return [self._assemble(layout[i], stretch_ids) if i in layout else next(ids) for i in range(len(texts))]
        return self._encode_texts(texts)

    def spells(self, data: bytes, ids: list[int]) -> bool:
        """Whether the ids spell the bytes; with a lossy normalizer, whether nothing became unknown."""
        if self.lossy:
            return bool(ids) and self.unknown not in ids
        return b"".join([self.pieces[i] for i in ids]) == data

    def _assemble(self, parts: list[str], stretch_ids: Iterator[list[int]]) -> list[int]:
        """Join the ids of a text's parts: the even ones are valid text, the odd ones single characters between."""
        ids: list[int] = []
        for i, part in enumerate(parts):
            if i % 2:
                self._extend(ids, self._spell_bytes(part.encode("utf-8", "surrogateescape")))
            elif part:
                self._extend(ids, next(stretch_ids))
        return ids

    def _encode_texts(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        batch: list[list[int]] = []
        if len(texts) <= _FEW:
            encode = self._tokenizer.encode
            batch = [encode(text, add_special_tokens=False).ids for text in texts]
        else:
            for start in range(0, len(texts), _BATCH):
                encodings = self._tokenizer.encode_batch_fast(texts[start : start + _BATCH], add_special_tokens=False)
                batch.extend([e.ids for e in encodings])
        if self.lossy:
            return batch
        pieces = self.pieces
        for i, (text, ids) in enumerate(zip(texts, batch)):
            if b"".join([pieces[j] for j in ids]) != text.encode():
                batch[i] = self._repair(text)
        return batch

    def _repair(self, text: str) -> list[int]:
        """Keep the ids that spell their text, and spell the rest character by character."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        ids: list[int] = []
        position = 0  # how many characters have their ids
        cluster: list[int] = []  # ids that share characters, such as the bytes of one character
        start = end = 0
        spans = [*zip(encoding.ids, encoding.offsets), (-1, (len(text), len(text)))]
        for token, (a, b) in spans:
            if cluster and a < end:
                cluster.append(token)
                end = max(end, b)
                continue
            if cluster:
                self._extend_span(ids, text[start:end], cluster)
                position = end
            if a > position:  # the pre-tokenizer removed this
                self._extend_span(ids, text[position:a], [])
                position = a
            cluster, start, end = [token], a, b
        return ids

    def _extend_span(self, ids: list[int], span: str, cluster: list[int]) -> None:
        if cluster and b"".join([self.pieces[i] for i in cluster]) == span.encode():
            ids.extend(cluster)
            return
        for character in span:
            self._extend(ids, self._spell_character(character))

    def _extend(self, ids: list[int], more: list[int]) -> None:
        """Append, with one unknown token for a run of unknown characters."""
        if more and more == [self.unknown] and ids and ids[-1] == self.unknown:
            return
        ids.extend(more)

    def _spell_character(self, character: str) -> list[int]:
        ids = self._characters.get(character)
        if ids is None:
            ids = self._tokenizer.encode(character, add_special_tokens=False).ids
            if b"".join([self.pieces[i] for i in ids]) != character.encode():
                ids = self._spell_bytes(character.encode())
            self._characters[character] = ids
        return ids

    def _spell_bytes(self, data: bytes) -> list[int]:
        ids = [i for i in map(self.byte_ids.__getitem__, data) if i is not None]
        if len(ids) == len(data):
            return ids
        return [] if self.unknown is None else [self.unknown]


class _WordSpeller:
    """Spells words with WordPiece: ``##x`` is x, any other piece is a space and the piece; the longest match wins.

    A word that starts without a space continues the word before it, so all its pieces are ``##`` pieces.
    """

    def __init__(self, parts: TokenizerParts, pieces: list[bytes], specials: set[int]) -> None:
        self._ids: dict[str, int] = {}
        for i, piece in enumerate(pieces):
            if piece and i not in specials:
                self._ids.setdefault(piece.decode(), i)
        self._longest = max(map(len, self._ids), default=1)
        spaced = [t["content"] for t in parts.added_tokens if t["id"] not in specials and " " in t["content"]]
        whole = "|".join(re.escape(s) for s in sorted(spaced, key=len, reverse=True))
        self._word = re.compile(f"{whole}| ?(?:(?!{whole})[^ ])+| " if whole else " ?[^ ]+| ")
        self._normalizer = _normalizer(parts)
        self._spell = lru_cache(maxsize=1 << 16)(self._spell_word)

    def encode(self, text: str, unknown: int | None) -> list[int]:
        """Tokenize one text, with one unknown token for a run of unknown characters."""
        if self._normalizer is not None and text:
            # A normalizer puts spaces around Chinese characters, and WordPiece itself ignores spaces
            text = self._normalizer.normalize_str(text.encode("utf-8", "replace").decode())
            text = re.sub(" +", " ", text).rstrip(" ")
        ids: list[int] = []
        for word in self._word.findall(text):
            for i in self._spell(word):
                if i >= 0:
                    ids.append(i)
                elif unknown is not None and not (ids and ids[-1] == unknown):
                    ids.append(unknown)
        return ids

    def _spell_word(self, word: str) -> tuple[int, ...]:
        """The ids of one word, -1 where no piece fits."""
        ids: list[int] = []
        position = 0
        while position < len(word):
            for end in range(min(len(word), position + self._longest), position, -1):
                found = self._ids.get(word[position:end])
                if found is not None:
                    break
            else:
                return self._spell_cheapest(word)
            ids.append(found)
            position = end
        return tuple(ids)

    def _spell_cheapest(self, word: str) -> tuple[int, ...]:
        """Spell a word that the longest match cannot: with the fewest unknown characters, then the fewest pieces."""
        cost = [0] * (len(word) + 1)
        step: list[tuple[int, int]] = [(0, 0)] * len(word)
        for a in range(len(word) - 1, -1, -1):
            cost[a], step[a] = cost[a + 1] + _UNSPELLABLE_COST, (-1, a + 1)
            for b in range(a + 1, min(len(word), a + self._longest) + 1):
                found = self._ids.get(word[a:b])
                if found is not None and cost[b] + 1 <= cost[a]:
                    cost[a], step[a] = cost[b] + 1, (found, b)
        ids: list[int] = []
        a = 0
        while a < len(word):
            found, a = step[a]
            ids.append(found)
        return tuple(ids)


def _byte_ids(kind: str, pieces: list[bytes], is_byte_piece: NDArray[np.bool_]) -> list[int | None]:
    """The id of each single byte, None if there is none."""
    ids: list[int | None] = [None] * 256
    if kind == BYTE_LEVEL:
        candidates = [i for i, p in enumerate(pieces) if len(p) == 1]
    else:
        candidates = np.flatnonzero(is_byte_piece).tolist()
    for i in reversed(candidates):
        ids[pieces[i][0]] = i
    return ids


def _kept_normalizers(parts: TokenizerParts) -> list[Part]:
    """The normalizers that bytes need; all but the dummy prefix where a lossy one was accepted."""
    if any(is_lossy_normalizer(n) for n in parts.normalizers):
        return [n for n in parts.normalizers if n["type"] != "Prepend"]
    if parts.kind == BYTE_LEVEL:
        return [n for n in parts.normalizers if n["type"] == "ByteLevel"]
    if parts.kind == SENTENCEPIECE:
        return [n for n in parts.normalizers if is_space_replace(n, old=" ", new=META_SPACE)]
    return []


def _continuing_pre_tokenizers(parts: TokenizerParts) -> list[Part]:
    """The tokenizer's own pre-tokenizers, without dummy prefixes and without removing the spaces Metaspace marks."""
    kept = []
    metaspace = any(p["type"] == "Metaspace" for p in parts.pre_tokenizers)
    for part in parts.pre_tokenizers:
        part = dict(part)
        if part["type"] == "ByteLevel":
            part["add_prefix_space"] = False
        elif part["type"] == "Metaspace":
            part["prepend_scheme"] = "never"
        elif part["type"] == "WhitespaceSplit" and metaspace:
            continue
        kept.append(part)
    return kept


def _sequence(parts: list[Part], members: str) -> Part | None:
    if len(parts) < 2:
        return parts[0] if parts else None
    return {"type": "Sequence", members: parts}


def _frame(parts: TokenizerParts) -> Part:
    """The JSON of a tokenizer with an empty model, and the normalizer and pre-tokenizer for continuations."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": _sequence(_kept_normalizers(parts), "normalizers"),
        "pre_tokenizer": _sequence(_continuing_pre_tokenizers(parts), "pretokenizers"),
        "post_processor": None,
        "decoder": None,
        "model": {"type": "BPE", "vocab": {}, "merges": []},
    }


def _normalizer(parts: TokenizerParts) -> Normalizer | None:
    return Tokenizer.from_str(json.dumps(_frame(parts))).normalizer


def _bare_tokenizer(parts: TokenizerParts, specials: set[int]) -> Tokenizer:
    """Make a tokenizer that shares the member's model and runs only what a continuation needs."""
    frame = _frame(parts)
    added: list[AddedTokenPart] = [
        {**t, "lstrip": False, "rstrip": False, "special": t["id"] in specials}  # stripping would remove text
        for t in parts.added_tokens
    ]
    needs_added = any(not t["special"] for t in added)
    if not parts.model.get("dropout"):  # a model with dropout is copied below and its dropout removed
        small = Tokenizer.from_str(json.dumps(frame))
        bare = Tokenizer(parts.backend.model)
        bare.normalizer = small.normalizer
        bare.pre_tokenizer = small.pre_tokenizer
        if not needs_added:  # special strings are ordinary text: no added token is needed
            return bare
        _add_in_order(bare, added)
        if all(bare.token_to_id(t["content"]) == t["id"] for t in added):
            bare.encode_special_tokens = True
            return bare
    frame["added_tokens"] = added if needs_added else []
    frame["model"] = {**json.loads(parts.backend.__getstate__())["model"]}
    if "dropout" in frame["model"]:
        frame["model"]["dropout"] = None
    bare = Tokenizer.from_str(json.dumps(frame))
    bare.encode_special_tokens = True
    return bare


def _add_in_order(bare: Tokenizer, added: list[AddedTokenPart]) -> None:
    """Add tokens in order of ids, in runs of special ones and others, which need different calls."""
    run: list[AddedToken] = []
    for i, token in enumerate(added):
        options = {k: v for k, v in token.items() if k not in ("id", "content")}
        run.append(AddedToken(token["content"], **options))
        if i + 1 == len(added) or added[i + 1]["special"] != token["special"]:
            (bare.add_special_tokens if token["special"] else bare.add_tokens)(run)
            run = []
