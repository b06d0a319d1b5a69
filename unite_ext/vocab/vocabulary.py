"""One tokenizer as bytes.

A :class:`Vocabulary` knows for every id which bytes it adds to the text, whether it is eligible and whether it is EOS.
It knows which id represents a byte string, and tokenizes byte strings as they stand in the middle of a text. A
:class:`StartVocabulary` is the same tokenizer where a space that is not part of the text stands before it.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .continuation import ContinuationEncoder
from .tokenizer_kinds import (
    TokenizerParts,
    check_against_decode,
    open_tokenizer,
    piece_bytes,
    surface_tokens,
)

__all__ = ["StartVocabulary", "Vocabulary"]

SPACE = b" "

_FEW = 1024  # a step has at most this many texts; a larger batch is a vocabulary, whose texts do not come again


class Vocabulary:
    """The bytes behind one tokenizer's ids. Build it with :meth:`from_tokenizer`.

    Attributes
    ----------
    size : int
        Highest id of the tokenizer + 1.
    highest_eligible_id : int
        Logits must be wider than this.
    token_bytes : list of bytes
        The bytes every id adds to the text; empty for special tokens, EOS ids and unused ids.
    eligible : numpy.ndarray of bool, shape (size,)
        Ids that may enter a top-k: those with bytes, and the EOS ids.
    is_byte_piece : numpy.ndarray of bool, shape (size,)
        Byte-fallback pieces (``<0x0A>``). They represent a class only when no other id does.
    eos_token_ids : tuple of int
        Every id that ends a text, ascending; may be empty.
    eos_token_id : int or None
        The id that represents EOS: the tokenizer's own, else the lowest.
    kind : str
        ``"byte-level"``, ``"sentencepiece"`` or ``"wordpiece"``.
    fingerprint : str
        SHA-256 of everything that decides the bytes and the tokenization of continuations.
    parts : TokenizerParts or None
        What was read from the tokenizer; None after loading an alignment without tokenizers.
    name : str
        The tokenizer's name in messages.
    """

    def __init__(
        self,
        *,
        kind: str,
        pieces: list[bytes] | Callable[[], list[bytes]],
        size: int,
        is_byte_piece: NDArray[np.bool_],
        eos_token_ids: tuple[int, ...],
        eos_token_id: int | None,
        fingerprint: str,
        parts: TokenizerParts | None,
        eligible: NDArray[np.bool_] | None = None,
        name: str = "tokenizer",
    ) -> None:
        self.kind = kind
        self.size = size
        self.is_byte_piece = is_byte_piece
        self.eos_token_ids = eos_token_ids
        self.eos_token_id = eos_token_id
        self.fingerprint = fingerprint
        self._source = pieces
        self.parts = parts
        self.name = name
        self._encoder: ContinuationEncoder | None = None
        self._warned = False
        if eligible is None:
            eligible = np.fromiter(map(bool, self.token_bytes), bool, size)
            eligible[list(eos_token_ids)] = True
        if not eligible.any():
            raise ValueError(f"{name} must have at least one token with text, got none in {size} ids")
        self.eligible = eligible
        self.highest_eligible_id: int = int(np.flatnonzero(eligible)[-1])

    @cached_property
    def pieces(self) -> list[bytes]:
        """The bytes of every id, also of EOS ids that are no special tokens; ``b""`` for special tokens."""
        return self._source() if callable(self._source) else self._source

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The bytes every id adds to the text; ``b""`` for special tokens, EOS ids and unused ids."""
        token_bytes = list(self.pieces)
        for i in self.eos_token_ids:
            token_bytes[i] = b""
        return token_bytes

    @property
    def represents(self) -> NDArray[np.bool_]:
        """Which ids may represent their bytes, shape (size,); EOS ids do not count."""
        return self.eligible

    @cached_property
    def start(self) -> StartVocabulary:
        """This vocabulary where a space that is not part of the text stands before it."""
        return StartVocabulary(self)

    @classmethod
    def from_tokenizer(
        cls,
        tokenizer: object,
        *,
        eos_token_ids: Iterable[int] | int | None = None,
        lossy: bool = False,
        name: str = "tokenizer",
    ) -> Vocabulary:
        """Read a fast tokenizer.

        Parameters
        ----------
        tokenizer : transformers.PreTrainedTokenizerFast or tokenizers.Tokenizer
        eos_token_ids : iterable of int, optional
            Further EOS ids, such as those of the model's generation config. The tokenizer's own always counts.
        lossy : bool
            Accept a tokenizer that lower-cases or strips accents. The ids of continuations then lose the same.
        name : str
            The tokenizer's name in messages.
        """
        opened = OpenedTokenizer(tokenizer, eos_token_ids=eos_token_ids, lossy=lossy, name=name)
        return opened.read()

    def representatives(self) -> dict[bytes, int]:
        """The id that represents each byte string: the lowest, byte-fallback pieces after all others, EOS left out."""
        found: dict[bytes, int] = {}
        ids = np.flatnonzero(self.represents)
        for i in [*ids[~self.is_byte_piece[ids]].tolist(), *ids[self.is_byte_piece[ids]].tolist()]:
            if self.token_bytes[i]:
                found.setdefault(self.token_bytes[i], i)
        return found

    def encode_continuation(self, data: bytes) -> list[int]:
        """Tokenize bytes as they stand inside a text.

        The ids spell ``data``. What the vocabulary cannot spell becomes its unknown token, with one warning per
        vocabulary.
        """
        return self.encode_continuation_batch([data])[0]

    def encode_continuation_batch(self, data: list[bytes]) -> list[list[int]]:
        """Apply :meth:`encode_continuation` to every element, faster than one by one."""
        for item in data:
            if not isinstance(item, (bytes, bytearray)):
                raise TypeError(f"data must be bytes, got {type(item).__name__}")
        encoder = self.encoder
        batch = encoder.encode_short(data) if len(data) <= _FEW else encoder.encode_batch(data)
        if not (self._warned or encoder.covers):
            for item, ids in zip(data, batch):
                if item and not encoder.spells(item, ids):
                    self._warned = True
                    warnings.warn(
                        f"{self.name}: its vocabulary cannot spell {bytes(item)[:40]!r}; such text enters "
                        "this member's context as its unknown token (said once)",
                        stacklevel=3,
                    )
                    break
        return batch

    def first_sub_tokens(self, data: list[bytes]) -> list[int]:
        """The first id of every byte string's continuation, -1 where the ids do not spell it."""
        encoder, token_bytes = self.encoder, self.token_bytes
        batch = encoder.encode_batch(data)
        if not encoder.covers:
            batch = [ids if encoder.spells(d, ids) else [-1] for d, ids in zip(data, batch)]
        return [ids[0] if ids[0] >= 0 and token_bytes[ids[0]] else -1 for ids in batch]

    @property
    def encoder(self) -> ContinuationEncoder:
        """The tokenizer of continuations, made on first use."""
        if self._encoder is None:
            if self.parts is None:
                raise ValueError(
                    f"{self.name}: continuation tokenization needs the tokenizer, but this alignment was "
                    "loaded without tokenizers; pass them: VocabAlignment.load(path, tokenizers)"
                )
            self._encoder = ContinuationEncoder(self.parts, self.pieces, self.is_byte_piece, self.eos_token_ids)
        return self._encoder

    def __getstate__(self) -> dict[str, object]:
        return {**{k: v for k, v in self.__dict__.items() if k != "start"}, "_encoder": None}  # made again on first use

    def __repr__(self) -> str:
        return (
            f"Vocabulary({self.kind}, size={self.size}, eligible={int(self.eligible.sum())}, "
            f"eos={list(self.eos_token_ids)}, fingerprint={self.fingerprint[:12]})"
        )


class StartVocabulary(Vocabulary):
    """A vocabulary in the start state: a space that is not part of the text stands before it.

    Ids whose bytes begin with a space have the bytes without it. A space alone has none: it is not proposed, but may be
    a first sub-token, as `▁` is of `42` in a tokenizer without `▁4`. Other ids keep their bytes, but do not represent
    them, since the tokenizer would write the space. The ids of a text are those of a space and the text. Get it with
    `Vocabulary.start`.

    Attributes
    ----------
    inner : Vocabulary
        The same tokenizer inside a text.
    silent : list of int
        The ids of the space alone.
    """

    def __init__(self, inner: Vocabulary) -> None:
        self.inner = inner
        own = inner.token_bytes
        self.silent: list[int] = [i for i, data in enumerate(own) if data == SPACE]
        self._opens = np.fromiter((data.startswith(SPACE) for data in own), bool, inner.size)
        self._opens[self.silent] = False
        super().__init__(
            kind=inner.kind,
            pieces=[data.removeprefix(SPACE) for data in inner.pieces],
            size=inner.size,
            is_byte_piece=inner.is_byte_piece,
            eos_token_ids=inner.eos_token_ids,
            eos_token_id=inner.eos_token_id,
            fingerprint=hashlib.sha256(f"{inner.fingerprint} after a space".encode()).hexdigest(),
            parts=inner.parts,
            name=inner.name,
        )
        self.highest_eligible_id = inner.highest_eligible_id

    @property
    def represents(self) -> NDArray[np.bool_]:
        """See `Vocabulary.represents`: the ids that begin with a space."""
        return self._opens

    @property
    def encoder(self) -> ContinuationEncoder:
        """The tokenizer inside a text, which does not write the space."""
        return self.inner.encoder

    def encode_continuation_batch(self, data: list[bytes]) -> list[list[int]]:
        """The ids of a space and every byte string; none for an empty one."""
        return self.inner.encode_continuation_batch([SPACE + d if d else d for d in data])

    def first_sub_tokens(self, data: list[bytes]) -> list[int]:
        """See `Vocabulary.first_sub_tokens`."""
        return self.inner.first_sub_tokens([SPACE + d for d in data])


class OpenedTokenizer:
    """A tokenizer whose fingerprint and EOS ids are known, but whose vocabulary has not been read.

    Opening costs a fraction of reading, and a cached alignment needs no more.
    """

    def __init__(self, tokenizer: object, *, eos_token_ids: Iterable[int] | int | None, lossy: bool, name: str) -> None:
        self.name = name
        self.parts = open_tokenizer(tokenizer, name)
        if self.parts.is_lossy and not lossy:
            kinds = [n["type"] for n in self.parts.normalizers]
            raise ValueError(
                f"{name} must be a tokenizer that keeps the text, got normalizer {kinds}, which lower-cases or "
                "strips accents; pass lossy=True to accept that its text differs from the other members'"
            )
        self.eos_token_ids, self.eos_token_id = self._eos(eos_token_ids)
        # An ordinary token that is an EOS id has no bytes; special tokens have none anyway
        special = {t["id"] for t in self.parts.added_tokens if t["special"]}
        plain_eos = [i for i in self.eos_token_ids if i not in special]
        self.fingerprint = hashlib.sha256(
            json.dumps([self.parts.json_sha256, self.parts.kind, plain_eos]).encode()
        ).hexdigest()

    @property
    def identity(self) -> tuple[str, tuple[int, ...], int | None]:
        """A key that is equal for two tokenizers exactly when their vocabularies are."""
        return self.fingerprint, self.eos_token_ids, self.eos_token_id

    def read(self) -> Vocabulary:
        """Read the whole vocabulary and check it against the tokenizer's own decode."""
        tokens = surface_tokens(self.parts)
        pieces, is_byte_piece = piece_bytes(self.parts, tokens)
        check_against_decode(self.parts, tokens, pieces, self.name)
        return Vocabulary(
            kind=self.parts.kind,
            pieces=pieces,
            size=len(pieces),
            is_byte_piece=is_byte_piece,
            eos_token_ids=self.eos_token_ids,
            eos_token_id=self.eos_token_id,
            fingerprint=self.fingerprint,
            parts=self.parts,
            name=self.name,
        )

    def _eos(self, given: Iterable[int] | int | None) -> tuple[tuple[int, ...], int | None]:
        own = self.parts.own_eos_id
        given = [] if given is None else [given] if isinstance(given, (int, np.integer)) else list(given)
        for i in [*given, *([] if own is None else [own])]:
            if isinstance(i, bool) or not isinstance(i, (int, np.integer)):
                raise TypeError(f"{self.name}: eos_token_ids must be ints, got {type(i).__name__}")
            if i < 0 or self.parts.backend.id_to_token(int(i)) is None:
                raise ValueError(f"{self.name}: eos_token_ids must be ids of the tokenizer, got {i}")
        ids = tuple(sorted({int(i) for i in given} | ({own} if own is not None else set())))
        if own is not None:
            return ids, own
        return ids, (ids[0] if ids else None)
