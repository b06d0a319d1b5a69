"""Vocabulary: the bytes of every id, eligibility, EOS, representatives, refusals, fingerprints."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import toy_tokenizers as toys
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from unite_ext.vocab.vocabulary import Vocabulary

ALL = [*toys.COVERING, *toys.NOT_COVERING]


def fresh(make) -> Tokenizer:
    """A copy that a test may change."""
    return Tokenizer.from_str(make().backend_tokenizer.to_str())


@pytest.mark.parametrize(
    ("make", "table"),
    [
        (toys.byte_level, {"ĠJames": b" James", "Ċ": b"\n", "ä": b"\xe4", "<tool>": b"<tool>", "<|eos|>": b""}),
        (toys.sentencepiece, {"▁James": b" James", "<0x0A>": b"\n", "<0xE4>": b"\xe4", "é": b"\xc3\xa9", "<unk>": b""}),
        (toys.gemma, {"▁▁": b"  ", "\n\n": b"\n\n", "▁James": b" James", "<0xFF>": b"\xff", "<bos>": b""}),
        (toys.unigram, {"▁James": b" James", "▁": b" ", "<unk>": b"", "<pad>": b"", "</s>": b""}),
        (toys.wordpiece, {"James": b" James", "##s": b"s", "[UNK]": b"", "[CLS]": b""}),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)  # fmt: skip
def test_bytes_of_ids(make, table):
    tokenizer = make()
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    ids = tokenizer.get_vocab()
    assert {token: vocabulary.token_bytes[ids[token]] for token in table} == table


@pytest.mark.parametrize("make", ALL, ids=lambda m: m.__name__)
def test_bytes_agree_with_decode_on_every_id(make):
    """Every text id, decoded behind another word, adds exactly its bytes."""
    tokenizer = make()
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    backend = tokenizer.backend_tokenizer
    anchor = next(i for i, b in enumerate(vocabulary.token_bytes) if (b.strip() == b"the" and i > 256) or b == b" the")
    if vocabulary.kind == "wordpiece":
        backend = fresh(make)
        backend.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    start = vocabulary.token_bytes[anchor].strip()
    for i, data in enumerate(vocabulary.token_bytes):
        if data and i not in {t["id"] for t in vocabulary.parts.added_tokens}:
            got = backend.decode([anchor, i], skip_special_tokens=False).lstrip(" ")
            assert got == (start + data).decode("utf-8", "replace"), (i, data)


@pytest.mark.parametrize("make", ALL, ids=lambda m: m.__name__)
def test_eligible_ids_have_bytes_or_end_the_text(make):
    tokenizer = make()
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    special = {i for i, t in tokenizer.backend_tokenizer.get_added_tokens_decoder().items() if t.special}
    for i in range(vocabulary.size):
        assert vocabulary.eligible[i] == (i not in special or i in vocabulary.eos_token_ids)
        assert bool(vocabulary.token_bytes[i]) == (i not in special)
    assert vocabulary.size == max(tokenizer.get_vocab().values()) + 1
    assert vocabulary.eligible.dtype == bool
    assert vocabulary.eligible.shape == (vocabulary.size,)
    assert vocabulary.highest_eligible_id == np.flatnonzero(vocabulary.eligible)[-1]


def test_unused_ids_are_ineligible():
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 7}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    assert vocabulary.size == 8
    assert vocabulary.token_bytes == [b"a", *[b""] * 6, b"b"]
    assert vocabulary.eligible.tolist() == [True, *[False] * 6, True]


def test_byte_level_pieces_outside_the_table_are_themselves():
    """As in the decoder, a piece with one character outside the table is plain text."""
    tokenizer = Tokenizer(models.BPE({"é": 0, "中é": 1, "a b": 2, "Ġa": 3, "😀": 4, "\n": 5}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    got = Vocabulary.from_tokenizer(tokenizer).token_bytes
    assert got == [b"\xe9", "中é".encode(), b"a b", b" a", "😀".encode(), b"\n"]


def test_special_token_after_the_text_does_not_count_as_highest_eligible():
    vocabulary = Vocabulary.from_tokenizer(toys.sentencepiece().backend_tokenizer)
    padded = fresh(toys.sentencepiece)
    padded.add_special_tokens(["<pad>"])
    with_pad = Vocabulary.from_tokenizer(padded)
    assert with_pad.size == vocabulary.size + 1
    assert with_pad.highest_eligible_id == vocabulary.highest_eligible_id


def test_eos_ids_are_the_tokenizers_and_the_given_ones():
    tokenizer = toys.byte_level()
    eos, eot = tokenizer.convert_tokens_to_ids(["<|eos|>", "<|eot|>"])
    own = Vocabulary.from_tokenizer(tokenizer)
    assert (own.eos_token_ids, own.eos_token_id) == ((eot,), eot)
    assert not own.eligible[eos]
    both = Vocabulary.from_tokenizer(tokenizer, eos_token_ids=[eos])
    assert (both.eos_token_ids, both.eos_token_id) == ((eos, eot), eot)
    assert both.eligible[[eos, eot]].all()
    raw = Vocabulary.from_tokenizer(tokenizer.backend_tokenizer)
    assert (raw.eos_token_ids, raw.eos_token_id) == ((), None)
    raw = Vocabulary.from_tokenizer(tokenizer.backend_tokenizer, eos_token_ids=[eot, eos])
    assert (raw.eos_token_ids, raw.eos_token_id) == ((eos, eot), eos)
    assert Vocabulary.from_tokenizer(tokenizer.backend_tokenizer, eos_token_ids=eos).eos_token_ids == (eos,)


def test_an_ordinary_token_that_ends_the_text_is_no_text():
    tokenizer = toys.byte_level()
    newline = tokenizer.convert_tokens_to_ids("Ċ")
    vocabulary = Vocabulary.from_tokenizer(tokenizer, eos_token_ids=[newline])
    assert vocabulary.token_bytes[newline] == b""
    assert b"\n" not in vocabulary.representatives()
    assert vocabulary.eligible[newline]


def test_representative_is_the_lowest_id_and_never_a_byte_piece_if_avoidable():
    tokenizer = toys.sentencepiece()
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    found = vocabulary.representatives()
    ids = tokenizer.get_vocab()
    assert ids["<0x61>"] < ids["a"]
    assert found[b"a"] == ids["a"]
    assert found[b"\n"] == ids["<0x0A>"]
    assert set(found) == set(vocabulary.token_bytes) - {b""}
    normal = {i for i in range(vocabulary.size) if vocabulary.token_bytes[i] and not vocabulary.is_byte_piece[i]}
    for data, i in found.items():
        same = [j for j in normal if vocabulary.token_bytes[j] == data]
        assert i == (min(same) if same else i)
        assert bool(same) == (not vocabulary.is_byte_piece[i])


def test_lowest_of_two_ordinary_ids_represents():
    tokenizer = fresh(toys.byte_level)
    word = tokenizer.token_to_id("ĠJames")
    tokenizer.add_tokens([" James"])
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    assert vocabulary.token_bytes[tokenizer.token_to_id(" James")] == b" James"
    assert vocabulary.representatives()[b" James"] == word


# --- refusals ---------------------------------------------------------------------------------------


def test_slow_tokenizer_is_refused_by_name():
    with pytest.raises(TypeError, match=r"tokenizer must be a fast .*, got ByT5Tokenizer; load it with AutoTokenizer"):
        Vocabulary.from_tokenizer(ByT5Tokenizer())
    with pytest.raises(TypeError, match="got str"):
        Vocabulary.from_tokenizer("llama")


@pytest.mark.parametrize(
    ("decoder", "name"),
    [
        (None, "no decoder"),
        (decoders.BPEDecoder(), "BPEDecoder"),
        (decoders.CTC(), "CTC"),
        (decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()]), "ByteFallback + Fuse"),
        (decoders.Sequence([decoders.ByteLevel(), decoders.Strip("x", 1, 0)]), "ByteLevel + Strip"),
        (decoders.Sequence([decoders.Replace("▁", " "), decoders.Replace("a", "b")]), "Replace"),
        (decoders.Sequence([decoders.Replace("▁", " "), decoders.Strip(" ", 0, 1)]), "Strip"),
        (decoders.Metaspace(replacement="_"), "Metaspace"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_unknown_decoder_is_refused_by_name(decoder, name):
    tokenizer = fresh(toys.sentencepiece)
    tokenizer.decoder = decoder
    with pytest.raises(ValueError, match=f"must have a decoder that spells bytes .*got .*{re.escape(name)}"):
        Vocabulary.from_tokenizer(tokenizer)


def test_bytes_that_contradict_decode_are_refused():
    tokenizer = fresh(toys.sentencepiece)
    # Without Fuse the Strip works on every token, so a word's space is never decoded
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Strip(" ", 1, 0)]
    )
    with pytest.raises(ValueError, match=r"id \d+ \(.*must spell .* but the tokenizer's own decode gives"):
        Vocabulary.from_tokenizer(tokenizer)


def test_decoder_without_its_encoder_is_refused():
    tokenizer = fresh(toys.byte_level)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ValueError, match="must have a ByteLevel pre-tokenizer"):
        Vocabulary.from_tokenizer(tokenizer)
    tokenizer = fresh(toys.sentencepiece)
    tokenizer.normalizer = None
    with pytest.raises(ValueError, match="must have a Metaspace pre-tokenizer or a Replace"):
        Vocabulary.from_tokenizer(tokenizer)


def test_end_of_word_suffix_is_refused():
    tokenizer = fresh(toys.byte_level)
    tokenizer.model = models.BPE({"a</w>": 0, "a": 1}, [], end_of_word_suffix="</w>")
    with pytest.raises(ValueError, match="end_of_word_suffix='</w>'"):
        Vocabulary.from_tokenizer(tokenizer)


@pytest.mark.parametrize(
    "normalizer",
    [
        normalizers.Lowercase(),
        normalizers.Sequence([normalizers.NFD(), normalizers.Sequence([normalizers.StripAccents()])]),
        normalizers.BertNormalizer(lowercase=True),
        normalizers.BertNormalizer(lowercase=False, strip_accents=True),
    ],
    ids=["Lowercase", "StripAccents", "BertNormalizer-lower", "BertNormalizer-accents"],
)
def test_lossy_normalizer_needs_consent(normalizer):
    tokenizer = fresh(toys.byte_level)
    tokenizer.normalizer = normalizer
    with pytest.raises(ValueError, match="pass lossy=True"):
        Vocabulary.from_tokenizer(tokenizer)
    assert Vocabulary.from_tokenizer(tokenizer, lossy=True).kind == "byte-level"


@pytest.mark.parametrize(
    "normalizer",
    [normalizers.NFC(), normalizers.NFKC(), normalizers.NFD(), normalizers.BertNormalizer(lowercase=False)],
    ids=["NFC", "NFKC", "NFD", "BertNormalizer-cased"],
)
def test_harmless_normalizers_need_none(normalizer):
    tokenizer = fresh(toys.byte_level)
    tokenizer.normalizer = normalizer
    assert Vocabulary.from_tokenizer(tokenizer).encode_continuation("É e\u0301".encode()) == Vocabulary.from_tokenizer(
        toys.byte_level()
    ).encode_continuation("É e\u0301".encode())


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ([-1], ValueError, "got -1"),
        ([10**6], ValueError, "got 1000000"),
        (["</s>"], TypeError, "got str"),
        ([True], TypeError, "got bool"),
    ],
)
def test_bad_eos_ids(given, error, message):
    with pytest.raises(error, match=f"eos_token_ids must .*{message}"):
        Vocabulary.from_tokenizer(toys.byte_level(), eos_token_ids=given)


def test_vocabulary_without_text_is_refused():
    tokenizer = Tokenizer(models.BPE({}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>"])
    with pytest.raises(ValueError, match="at least one token with text"):
        Vocabulary.from_tokenizer(tokenizer)


# --- fingerprints ------------------------------------------------------------------------------------


def test_fingerprint_ignores_what_does_not_matter():
    tokenizer = fresh(toys.byte_level)
    before = Vocabulary.from_tokenizer(tokenizer).fingerprint
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=16, pad_token="<|eos|>")
    tokenizer.post_processor = None
    assert Vocabulary.from_tokenizer(tokenizer).fingerprint == before
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|eot|>")
    wrapped(["padded", "and truncated"], padding=True, truncation=True, max_length=3)
    assert Vocabulary.from_tokenizer(wrapped).fingerprint == before
    assert len(before) == 64
    int(before, 16)


def _without_merge(t: Tokenizer) -> None:
    state = json.loads(t.to_str())
    state["model"]["merges"].pop()
    t.model = models.BPE(state["model"]["vocab"], [tuple(m) for m in state["model"]["merges"]])


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.add_tokens(["more"]),
        lambda t: t.add_special_tokens(["<more>"]),
        lambda t: t.add_special_tokens(["<tool>"]),
        lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=False)),
        lambda t: setattr(t, "normalizer", normalizers.NFC()),
        _without_merge,
    ],
    ids=["added", "special added", "becomes special", "pre-tokenizer", "normalizer", "merge"],
)
def test_fingerprint_sees_what_matters(change):
    tokenizer = fresh(toys.byte_level)
    before = Vocabulary.from_tokenizer(tokenizer).fingerprint
    change(tokenizer)
    assert Vocabulary.from_tokenizer(tokenizer).fingerprint != before


def test_keys_in_another_order_are_read_too(monkeypatch):
    """As another version of the library may write them: then all is parsed."""
    tokenizer = toys.sentencepiece()
    expected = Vocabulary.from_tokenizer(tokenizer)
    monkeypatch.setattr("unite_ext.vocab.tokenizer_kinds._MODEL_VOCAB", b',"merges":')
    found = Vocabulary.from_tokenizer(tokenizer)
    assert found.kind == expected.kind
    assert found.token_bytes == expected.token_bytes


def test_fingerprint_with_eos_ids():
    """Special EOS ids change neither bytes nor tokenization; an ordinary token that ends the text does."""
    tokenizer = toys.byte_level()
    before = Vocabulary.from_tokenizer(tokenizer).fingerprint
    eos, newline = tokenizer.convert_tokens_to_ids(["<|eos|>", "Ċ"])
    assert Vocabulary.from_tokenizer(tokenizer, eos_token_ids=[eos]).fingerprint == before
    assert Vocabulary.from_tokenizer(tokenizer, eos_token_ids=[newline]).fingerprint != before


@pytest.mark.parametrize("make", ALL, ids=lambda m: m.__name__)
def test_the_tokenizer_is_left_alone(make):
    tokenizer = make()
    before = tokenizer.backend_tokenizer.to_str()
    text = "James met <tool> </s> 2024"
    ids = tokenizer(text).input_ids
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    vocabulary.encode_continuation_batch([b" James", b" the"])
    assert tokenizer.backend_tokenizer.to_str() == before
    assert tokenizer(text).input_ids == ids
    assert not tokenizer.backend_tokenizer.encode_special_tokens


def test_repr():
    text = repr(Vocabulary.from_tokenizer(toys.byte_level()))
    assert "byte-level" in text
    assert "eligible=562" in text


def test_non_ascii_added_tokens_are_their_content():
    tokenizer = fresh(toys.byte_level)
    tokenizer.add_tokens([AddedToken("<｜Größe▁｜>", normalized=True)])
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    token = tokenizer.token_to_id("<｜Größe▁｜>")
    assert vocabulary.token_bytes[token] == "<｜Größe▁｜>".encode()
    assert vocabulary.encode_continuation("x<｜Größe▁｜>".encode())[-1] == token
