"""Find out a tokenizer's kind and the bytes of each of its ids.

Everything is read from the tokenizer's own JSON and its vocabulary; nothing is guessed from surface strings. A
tokenizer with a part that is not understood is refused, and the error names the part.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import tokenizers
from numpy.typing import NDArray

META_SPACE = "\u2581"  # SentencePiece writes a space as this character
BYTE_LEVEL, SENTENCEPIECE, WORDPIECE = "byte-level", "sentencepiece", "wordpiece"

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_LOSSY_NORMALIZERS = ("Lowercase", "StripAccents")
_MODEL_START = b',"model":{"type":'
_MODEL_VOCAB = b',"vocab":'

Part = dict[str, Any]
"""A normalizer, pre-tokenizer, decoder or model, as tokenizers writes it in JSON."""


class AddedTokenPart(TypedDict, total=False):
    """An added token, as tokenizers writes it in JSON."""

    id: int
    content: str
    single_word: bool
    lstrip: bool
    rstrip: bool
    normalized: bool
    special: bool


@dataclass(frozen=True)
class TokenizerParts:
    """The parts of one tokenizer that decide its bytes and its tokenization.

    Attributes
    ----------
    backend : tokenizers.Tokenizer
        The tokenizer itself (shared, never changed).
    kind : str
        ``"byte-level"``, ``"sentencepiece"`` or ``"wordpiece"``.
    byte_fallback : bool
        Whether the decoder reads ``<0xNN>`` as that byte.
    word_prefix : str
        WordPiece's continuation prefix (``"##"``), else empty.
    normalizers, pre_tokenizers : list of dict
        The tokenizer's own, sequences flattened.
    model : dict
        The model's options, without vocabulary and merges.
    added_tokens : list of dict
        In order of ids.
    own_eos_id : int or None
        The ``eos_token_id`` of the transformers tokenizer.
    json_sha256 : str
        Hash of the JSON without the parts that change neither bytes nor continuations (truncation, padding,
        post-processor).
    """

    backend: tokenizers.Tokenizer
    kind: str
    byte_fallback: bool
    word_prefix: str
    normalizers: list[Part]
    pre_tokenizers: list[Part]
    model: Part
    added_tokens: list[AddedTokenPart]
    own_eos_id: int | None
    json_sha256: str

    @property
    def is_lossy(self) -> bool:
        """Whether a normalizer lower-cases or strips accents."""
        return any(is_lossy_normalizer(n) for n in self.normalizers)


def open_tokenizer(tokenizer: object, argument: str = "tokenizer") -> TokenizerParts:
    """Read the parts of a fast tokenizer. A part that is not understood raises ValueError.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerFast or tokenizers.Tokenizer
    argument : str
        The tokenizer's name in messages.
    """
    backend, own_eos_id = _backend_of(tokenizer, argument)
    state = backend.__getstate__()  # the JSON as bytes; to_str would decode it
    head, model, model_json = _split_json(state)
    decoders = _flatten(head.get("decoder"), "decoders")
    kind, byte_fallback, word_prefix = _kind_of(decoders, argument)
    normalizers = _flatten(head.get("normalizer"), "normalizers")
    pre_tokenizers = _flatten(head.get("pre_tokenizer"), "pretokenizers")
    _check_consistent(kind, normalizers, pre_tokenizers, model, argument)
    for volatile in ("truncation", "padding", "post_processor"):
        head.pop(volatile, None)
    digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    digest.update(model_json)
    return TokenizerParts(
        backend=backend,
        kind=kind,
        byte_fallback=byte_fallback,
        word_prefix=word_prefix,
        normalizers=normalizers,
        pre_tokenizers=pre_tokenizers,
        model=model,
        added_tokens=sorted(head.get("added_tokens") or [], key=lambda t: t["id"]),
        own_eos_id=own_eos_id,
        json_sha256=digest.hexdigest(),
    )


def _backend_of(tokenizer: object, argument: str) -> tuple[tokenizers.Tokenizer, int | None]:
    if isinstance(tokenizer, tokenizers.Tokenizer):
        return tokenizer, None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, tokenizers.Tokenizer):
        raise TypeError(
            f"{argument} must be a fast (Rust) tokenizer, a transformers.PreTrainedTokenizerFast or a "
            f"tokenizers.Tokenizer, got {type(tokenizer).__name__}; load it with AutoTokenizer.from_pretrained(...) "
            "from a folder that has a tokenizer.json"
        )
    eos = getattr(tokenizer, "eos_token_id", None)
    return backend, None if eos is None else int(eos)


def _split_json(state: bytes) -> tuple[Part, Part, bytes]:
    """Split off the model, whose vocabulary of 7 MB need not be parsed: the rest, the model's options, its JSON."""
    start = state.find(_MODEL_START)
    vocab = state.find(_MODEL_VOCAB, start)
    if start >= 0 and vocab >= 0:
        try:
            model_json = state[start + len(b',"model":') :]
            head = json.loads(state[:start] + b"}")
            options = json.loads(state[start + len(b',"model":') : vocab] + b"}")
            return head, options, model_json
        except json.JSONDecodeError:
            pass  # another version of the library writes the keys in another order: parse everything
    head = json.loads(state)
    model = head.pop("model")
    options = {k: v for k, v in model.items() if k not in ("vocab", "merges")}
    return head, options, json.dumps(model, sort_keys=True).encode()


def _flatten(part: Part | None, members: str) -> list[Part]:
    """Turn a ``Sequence``, which may hold others, into a flat list; None into an empty one."""
    if part is None:
        return []
    if part.get("type") == "Sequence":
        return [leaf for child in part[members] for leaf in _flatten(child, members)]
    return [part]


def is_space_replace(part: Part, *, old: str, new: str) -> bool:
    """Whether a normalizer or decoder replaces `old` by `new`."""
    return part["type"] == "Replace" and old in part["pattern"].values() and part["content"] == new


def is_lossy_normalizer(normalizer: Part) -> bool:
    """Whether a normalizer lower-cases or strips accents."""
    if normalizer["type"] == "BertNormalizer":
        lowercase = bool(normalizer.get("lowercase"))
        strip_accents = normalizer.get("strip_accents")
        return lowercase or bool(strip_accents)
    return normalizer["type"] in _LOSSY_NORMALIZERS


def _kind_of(decoders: list[Part], argument: str) -> tuple[str, bool, str]:
    """Read kind, byte fallback and word prefix from the decoders."""
    types = [d["type"] for d in decoders]
    if types and all(t in ("ByteLevel", "Fuse") for t in types) and "ByteLevel" in types:
        return BYTE_LEVEL, False, ""
    if types == ["WordPiece"]:
        return WORDPIECE, False, decoders[0]["prefix"]
    rest = []
    metaspace = False
    for decoder in decoders:
        is_metaspace = decoder["type"] == "Metaspace" and decoder["replacement"] == META_SPACE
        if is_metaspace or is_space_replace(decoder, old=META_SPACE, new=" "):
            metaspace = True
        elif decoder["type"] == "Strip" and decoder["content"] == " " and not decoder["stop"]:
            continue  # it only removes the dummy prefix at the start of a text
        elif decoder["type"] not in ("ByteFallback", "Fuse"):
            rest.append(decoder)
    if metaspace and not rest:
        return SENTENCEPIECE, "ByteFallback" in types, ""
    what = "no decoder" if not types else "decoder " + " + ".join(types)
    raise ValueError(
        f"{argument} must have a decoder that spells bytes (ByteLevel; Metaspace, or Replace '{META_SPACE}' -> ' ' "
        f"with ByteFallback, Fuse, Strip; WordPiece), got {what}; the bytes of its ids cannot be established"
    )


def _check_consistent(
    kind: str,
    normalizers: list[Part],
    pre_tokenizers: list[Part],
    model: Part,
    argument: str,
) -> None:
    """Check that encoding is the inverse of decoding; otherwise continuations would not spell their bytes."""
    if model.get("end_of_word_suffix") or (kind != WORDPIECE and model.get("continuing_subword_prefix")):
        raise ValueError(
            f"{argument} must have a model without word markers, got {model['type']} with "
            f"end_of_word_suffix={model.get('end_of_word_suffix')!r}, "
            f"continuing_subword_prefix={model.get('continuing_subword_prefix')!r}"
        )
    types = [p["type"] for p in normalizers + pre_tokenizers]
    if kind == BYTE_LEVEL and "ByteLevel" not in types:
        raise ValueError(f"{argument} must have a ByteLevel pre-tokenizer beside the ByteLevel decoder, got {types}")
    if kind == SENTENCEPIECE:
        replaces = any(is_space_replace(n, old=" ", new=META_SPACE) for n in normalizers)
        if not replaces and "Metaspace" not in types:
            raise ValueError(
                f"{argument} must have a Metaspace pre-tokenizer or a Replace ' ' -> '{META_SPACE}' normalizer "
                f"beside the decoder, got {types}"
            )


def _byte_level_table() -> NDArray[np.uint16]:
    """GPT-2's table from code points to bytes, uint16 [65536]; 256 for a code point that is no byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = np.full(65536, 256, np.uint16)
    table[printable] = printable
    others = [b for b in range(256) if b not in set(printable)]
    table[256 : 256 + len(others)] = others
    return table


def surface_tokens(parts: TokenizerParts) -> list[str | None]:
    """The tokenizer's string for every id up to the highest, None for ids that are not used."""
    vocab = parts.backend.get_vocab(True)
    highest = max(vocab.values(), default=-1)
    tokens: list[str | None] = [None] * (highest + 1)
    for token, i in vocab.items():
        tokens[i] = token
    return tokens


def piece_bytes(parts: TokenizerParts, tokens: list[str | None]) -> tuple[list[bytes], NDArray[np.bool_]]:
    """The bytes every id adds to a text, and which ids are byte-fallback pieces.

    Returns
    -------
    pieces : list of bytes
        One per id; empty for special tokens, the unknown token and unused ids.
    is_byte_piece : numpy.ndarray of bool, shape (len(tokens),)
    """
    is_byte_piece = np.zeros(len(tokens), bool)
    if parts.kind == BYTE_LEVEL:
        pieces = _byte_level_bytes(tokens)
    elif parts.kind == SENTENCEPIECE:
        pieces = [b"" if t is None else t.replace(META_SPACE, " ").encode() for t in tokens]
        if parts.byte_fallback:
            for i, token in enumerate(tokens):
                if token is not None and len(token) == 6 and (match := _BYTE_PIECE.fullmatch(token)):
                    pieces[i] = bytes([int(match[1], 16)])
                    is_byte_piece[i] = True
    else:
        n = len(parts.word_prefix)
        pieces = [
            b"" if t is None else (t[n:] if n and t.startswith(parts.word_prefix) else " " + t).encode() for t in tokens
        ]
    in_model = parts.backend.model.token_to_id
    for added in parts.added_tokens:
        i = added["id"]
        if added["special"]:
            pieces[i], is_byte_piece[i] = b"", False
        elif in_model(added["content"]) != i:
            # Gemma lists ordinary pieces such as a run of '▁' once more among its added tokens: those stay pieces
            pieces[i], is_byte_piece[i] = added["content"].encode(), False
    unknown = unknown_id(parts)
    if unknown is not None and parts.kind != BYTE_LEVEL:
        pieces[unknown] = b""
    return pieces, is_byte_piece


def unknown_id(parts: TokenizerParts) -> int | None:
    """The model's id for text that it cannot spell, or None."""
    if parts.model.get("unk_id") is not None:
        return int(parts.model["unk_id"])
    token = parts.model.get("unk_token") or getattr(parts.backend.model, "unk_token", None)
    return parts.backend.token_to_id(token) if token else None


def _byte_level_bytes(tokens: list[str | None]) -> list[bytes]:
    strings = [t or "" for t in tokens]
    codes = np.frombuffer("".join(strings).encode("utf-32-le"), np.uint32)
    table = _byte_level_table()
    mapped = table[np.minimum(codes, 65535)]
    data = mapped.astype(np.uint8).tobytes()
    ends = np.cumsum([len(s) for s in strings])
    starts = [0, *ends[:-1].tolist()] if strings else []
    pieces = [data[a:b] for a, b in zip(starts, ends.tolist())]
    # Like the decoder: a token with a character outside the table is that text itself
    outside = np.unique(np.searchsorted(ends, np.flatnonzero(mapped == 256), side="right"))
    for i in outside.tolist():
        pieces[i] = strings[i].encode()
    return pieces


def check_against_decode(
    parts: TokenizerParts, tokens: list[str | None], pieces: list[bytes], argument: str, samples: int = 96
) -> None:
    """Compare a sample of ids from the whole vocabulary with the tokenizer's own decode; ValueError if they differ."""
    added = {t["id"] for t in parts.added_tokens}
    texts = [i for i, p in enumerate(pieces) if p and i not in added]
    if not texts:
        return
    picks = {texts[i] for i in np.linspace(0, len(texts) - 1, samples).astype(int).tolist()}
    # Decoders drop a leading space at the start of a text, so each id is decoded after an anchor that is a plain
    # word: neither a byte piece nor a word's continuation
    anchor = next((i for i in texts if (tokens[i] or "").lstrip(META_SPACE).isalpha()), None)
    if parts.kind == BYTE_LEVEL or anchor is None:
        before, anchor_text = [], b""
    else:
        before, anchor_text = [anchor], pieces[anchor]
    # Added tokens are decoded alone: decoders put a space before them. Those that are not ASCII are left out,
    # because decoders mangle them
    alone = [i for i in sorted(added) if pieces[i] and pieces[i].isascii()]
    for i in [*sorted(picks), *alone]:
        if i in added:
            before, anchor_text = [], b""
        got = parts.backend.decode([*before, i], skip_special_tokens=False)
        want = (anchor_text + pieces[i]).decode("utf-8", "replace")
        if parts.kind == WORDPIECE:  # its decoder removes spaces before punctuation
            got, want = got.replace(" ", ""), want.replace(" ", "")
        elif parts.kind == SENTENCEPIECE:
            got, want = got.lstrip(" "), want.lstrip(" ")
        if got != want:
            raise ValueError(
                f"{argument}: id {i} ({tokens[i]!r}) must spell {want!r} by the {parts.kind} rule, but the "
                f"tokenizer's own decode gives {got!r}; its bytes cannot be established"
            )
