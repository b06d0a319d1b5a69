"""Continuation tokenization: the bytes of the ids are the text, and nothing but pre-tokenizer and model runs."""

from __future__ import annotations

import json
import warnings

import pytest
import toy_tokenizers as toys
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from unite_ext.vocab.vocabulary import Vocabulary

ODD_TEXTS = [
    "",
    " ",
    "  \n\n\t a  ",
    "a\u2581b \u2581",
    "<|eot|></s><s> [UNK]<tool> <tool>x",
    "<0x41><0x0A>",
    "e\u0301 é \u212b ﬁ",
    "👩‍👩‍👧 中文中 \ufffd \x00",
]


def spelled(vocabulary: Vocabulary, ids: list[int]) -> bytes:
    return b"".join(vocabulary.pieces[i] for i in ids)


def names(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> list[str]:
    return tokenizer.convert_ids_to_tokens(ids)


@pytest.mark.parametrize("make", toys.COVERING, ids=lambda m: m.__name__)
@pytest.mark.parametrize("text", ODD_TEXTS)
def test_odd_texts_come_back(make, text):
    vocabulary = Vocabulary.from_tokenizer(make())
    ids = vocabulary.encode_continuation(text.encode())
    assert spelled(vocabulary, ids) == text.encode()
    assert all(vocabulary.token_bytes[i] for i in ids)


_VOCABULARIES: dict[str, Vocabulary] = {}


def vocabulary_of(make) -> Vocabulary:
    if make.__name__ not in _VOCABULARIES:
        _VOCABULARIES[make.__name__] = Vocabulary.from_tokenizer(make())
    return _VOCABULARIES[make.__name__]


@pytest.mark.parametrize("make", toys.COVERING, ids=lambda m: m.__name__)
@settings(max_examples=60, deadline=None)
@given(
    data=st.one_of(
        st.text().map(str.encode), st.binary(), st.lists(st.sampled_from(ODD_TEXTS)).map("".join).map(str.encode)
    )
)
@example(data=b"\xe4\xb8")
@example(data=b"a\xffb\xf0\x9f\x98")
def test_any_bytes_come_back(make, data):
    vocabulary = vocabulary_of(make)
    assert spelled(vocabulary, vocabulary.encode_continuation(data)) == data


@pytest.mark.parametrize("make", [*toys.COVERING, *toys.NOT_COVERING], ids=lambda m: m.__name__)
def test_batch_is_one_by_one(make):
    data = [*(t.encode() for t in ODD_TEXTS), b"\xe4\xb8", b" James", b"", b"x\xffy \xe2\x96\x81"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        vocabulary = Vocabulary.from_tokenizer(make())
        assert vocabulary.encode_continuation_batch(data) == [vocabulary.encode_continuation(d) for d in data]


@pytest.mark.parametrize("text", ["James met Jam at 2024", "don't\n\n  x", "привет 日本語"])
def test_byte_level_equals_the_tokenizer_on_plain_text(text):
    tokenizer = toys.byte_level()
    got = Vocabulary.from_tokenizer(tokenizer).encode_continuation(text.encode())
    assert got == tokenizer(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize(
    "make", [toys.sentencepiece, toys.sentencepiece_metaspace, toys.unigram, toys.wordpiece], ids=lambda m: m.__name__
)
def test_after_a_space_equals_the_tokenizer_with_its_dummy_prefix(make):
    """``James`` with a dummy prefix and `` James`` without one are the same tokens."""
    tokenizer = make()
    got = Vocabulary.from_tokenizer(tokenizer).encode_continuation(b" James met Jam at the Jamboree")
    assert got == tokenizer("James met Jam at the Jamboree", add_special_tokens=False).input_ids


@pytest.mark.parametrize(
    "make", [toys.sentencepiece, toys.sentencepiece_metaspace, toys.gemma], ids=lambda m: m.__name__
)
def test_no_dummy_prefix(make):
    tokenizer = make()
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    assert names(tokenizer, vocabulary.encode_continuation(b"Jam"))[0].startswith("Ja")
    assert names(tokenizer, vocabulary.encode_continuation(b" James")) == ["▁James"]


def test_byte_tokens_for_what_is_no_text():
    tokenizer = toys.sentencepiece()
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    assert names(tokenizer, vocabulary.encode_continuation(b"the\xe4\xb8the")) == ["the", "<0xE4>", "<0xB8>", "the"]
    assert names(tokenizer, vocabulary.encode_continuation("\u2581the".encode())) == [
        "<0xE2>",
        "<0x96>",
        "<0x81>",
        "the",
    ]
    assert names(tokenizer, vocabulary.encode_continuation(b"\n")) == ["<0x0A>"]
    tokenizer = toys.byte_level()
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    assert names(tokenizer, vocabulary.encode_continuation(b"the\xe4\xb8the")) == ["the", "ä", "¸", "the"]


def test_special_strings_are_text_and_added_tokens_match():
    tokenizer = toys.byte_level()
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    ids = vocabulary.encode_continuation(b"<|eot|><|bos|>")
    assert not set(ids) & set(tokenizer.all_special_ids)
    tool = tokenizer.convert_tokens_to_ids("<tool>")
    assert tool in vocabulary.encode_continuation(b"a <tool> b")
    # the tokenizer itself swallows the spaces around this one; a continuation may not
    assert spelled(vocabulary, vocabulary.encode_continuation(b"a <tool> b")) == b"a <tool> b"


@pytest.mark.parametrize("make", [toys.byte_level, toys.gemma], ids=lambda m: m.__name__)
def test_special_strings_are_tokenized_like_any_other(make):
    """Not only spelled: merged as a tokenizer that never heard of them would."""
    tokenizer = Tokenizer.from_str(make().backend_tokenizer.to_str())
    bare = Tokenizer(tokenizer.model)
    bare.pre_tokenizer, bare.normalizer = tokenizer.pre_tokenizer, tokenizer.normalizer
    tokenizer.add_special_tokens([" James"])
    for text in ("the<|eot|> James <|bos|>the", "the<eos> James<bos>the"):
        got = Vocabulary.from_tokenizer(tokenizer).encode_continuation(text.encode())
        assert got == bare.encode(text, add_special_tokens=False).ids


def test_an_added_token_that_ends_the_text_does_not_match():
    tokenizer = toys.byte_level()
    tool = tokenizer.convert_tokens_to_ids("<tool>")
    vocabulary = Vocabulary.from_tokenizer(tokenizer, eos_token_ids=[tool])
    ids = vocabulary.encode_continuation(b"a <tool> b")
    assert tool not in ids
    assert spelled(vocabulary, ids) == b"a <tool> b"


def test_gemma_runs_of_spaces():
    tokenizer = toys.gemma()
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    assert names(tokenizer, vocabulary.encode_continuation(b"x  \n\n  y")) == ["x", "▁▁", "\n\n", "▁▁", "y"]


@pytest.mark.parametrize("make", [toys.byte_level, toys.sentencepiece], ids=lambda m: m.__name__)
def test_prefix_space_and_normalizer_are_off(make):
    tokenizer = Tokenizer.from_str(make().backend_tokenizer.to_str())
    plain = Vocabulary.from_tokenizer(tokenizer)
    if make is toys.byte_level:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [tokenizer.pre_tokenizer[0], pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)]
        )
        tokenizer.normalizer = normalizers.NFD()
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFD(), tokenizer.normalizer])
    data = "The ﬁre çafé naïve e\u0301".encode()
    assert len(plain.encode_continuation("çafé".encode())) < 4, "merged, so that spelling it letter by letter differs"
    assert Vocabulary.from_tokenizer(tokenizer).encode_continuation(data) == plain.encode_continuation(data)


def test_special_and_ordinary_added_tokens_in_turn_keep_their_ids():
    tokenizer = Tokenizer.from_str(toys.byte_level().backend_tokenizer.to_str())
    for i in range(6):
        (tokenizer.add_tokens if i % 2 else tokenizer.add_special_tokens)([f"<extra {i}>"])
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    data = b"".join(b"x<extra %d>" % i for i in range(6))
    ids = vocabulary.encode_continuation(data)
    assert spelled(vocabulary, ids) == data
    for i in range(6):
        assert (tokenizer.token_to_id(f"<extra {i}>") in ids) == bool(i % 2)


def test_dropout_is_off_and_the_tokenizer_keeps_it():
    tokenizer = Tokenizer.from_str(toys.byte_level().backend_tokenizer.to_str())
    tokenizer.model.dropout = 0.7
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    plain = Vocabulary.from_tokenizer(toys.byte_level())
    for _ in range(5):
        data = b" James met <tool> Jameson<|eot|>"
        assert vocabulary.encode_continuation(data) == plain.encode_continuation(data)
    assert tokenizer.model.dropout == pytest.approx(0.7)


def test_literal_pieces_are_not_taken_for_bytes_or_specials():
    """A model that looks whole pre-tokens up first (ignore_merges) would return ``</s>`` and ``<0x41>`` themselves."""
    state = json.loads(toys.sentencepiece().backend_tokenizer.to_str())
    state["model"]["ignore_merges"] = True
    vocabulary = Vocabulary.from_tokenizer(Tokenizer.from_str(json.dumps(state)), eos_token_ids=[2])
    for text in (b"</s>", b"<0x41>", b"<unk>"):
        ids = vocabulary.encode_continuation(text)
        assert b"".join(vocabulary.token_bytes[i] for i in ids) == text
    vocabulary = Vocabulary.from_tokenizer(toys.unigram())
    with pytest.warns(UserWarning, match="cannot spell"):
        assert 1 not in vocabulary.encode_continuation(b"a</s>")


def test_text_that_the_pre_tokenizer_would_drop_comes_back():
    tokenizer = Tokenizer.from_str(toys.byte_level().backend_tokenizer.to_str())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("-", "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    for data in (b"a-b--c", b"-", b"the - the", "é-中-".encode()):
        assert spelled(vocabulary, vocabulary.encode_continuation(data)) == data


@pytest.mark.parametrize("make", toys.NOT_COVERING, ids=lambda m: m.__name__)
def test_unspellable_text_is_unknown_and_said_once(make):
    tokenizer = make()
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert spelled(vocabulary, vocabulary.encode_continuation(b" the James")) == b" the James"
    with pytest.warns(UserWarning, match=r"tokenizer: its vocabulary cannot spell .* unknown token"):
        ids = vocabulary.encode_continuation(" the 😀😀\n the".encode())
    assert ids.count(tokenizer.unk_token_id) == 1  # a run of unknown characters is one token, as in a fresh text
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vocabulary.encode_continuation(b"\xff the \xff")
    kept = [i for i in ids if i != tokenizer.unk_token_id]
    assert spelled(vocabulary, kept).replace(b" ", b"") == b"thethe"


def test_unspellable_bytes_without_an_unknown_token_vanish():
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    with pytest.warns(UserWarning, match="cannot spell"):
        assert vocabulary.encode_continuation(b"acb\xff") == [0, 1]


def test_unigram_keeps_every_space():
    vocabulary = Vocabulary.from_tokenizer(toys.unigram())
    for data in (b"the  the", b" the ", b"the", b"   "):
        assert spelled(vocabulary, vocabulary.encode_continuation(data)) == data


# --- WordPiece ---------------------------------------------------------------------------------------


def wordpiece(*pieces: str) -> Tokenizer:
    vocab = {p: i for i, p in enumerate(["[UNK]", *pieces])}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    tokenizer.add_special_tokens(["[UNK]"])
    return tokenizer


@pytest.mark.parametrize(
    ("data", "pieces"),
    [
        (b" the", ["the"]),
        (b"the", ["##the"]),
        (b" them, the", ["them", "##,", "the"]),
        (b"m the", ["##m", "the"]),
        (b" them", ["them"]),
        (b" mthe", ["m", "##the"]),
        (b" abc", ["a", "##bc"]),  # the longest match "ab" would leave a c that nothing spells
        (b"", []),
    ],
)
def test_wordpiece_spells(data, pieces):
    tokenizer = wordpiece("the", "##the", "them", "##m", "m", "##,", ",", "a", "ab", "##bc")
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    ids = vocabulary.encode_continuation(data)
    assert [tokenizer.id_to_token(i) for i in ids] == pieces
    assert spelled(vocabulary, ids) == data


def test_wordpiece_added_token_with_a_space():
    tokenizer = wordpiece("the", "##the", "##x")
    tokenizer.add_tokens(["New York"])
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    ids = vocabulary.encode_continuation(b"xNew York the")
    assert [tokenizer.id_to_token(i) for i in ids] == ["##x", "New York", "the"]


def test_lossy_wordpiece_normalizes():
    tokenizer = toys.wordpiece_lowercase()
    vocabulary = Vocabulary.from_tokenizer(tokenizer, lossy=True)
    assert names(tokenizer, vocabulary.encode_continuation(" JAMES çafé\n中文".encode())) == [
        "james", *names(tokenizer, tokenizer(" cafe", add_special_tokens=False).input_ids), "中", "文",
    ]  # fmt: skip


def test_lossy_byte_level_lower_cases():
    tokenizer = Tokenizer.from_str(toys.byte_level().backend_tokenizer.to_str())
    tokenizer.normalizer = normalizers.Lowercase()
    vocabulary = Vocabulary.from_tokenizer(tokenizer, lossy=True)
    assert spelled(vocabulary, vocabulary.encode_continuation(b" The James")) == b" the james"


def test_lossy_sentencepiece_has_no_dummy_prefix():
    tokenizer = Tokenizer.from_str(toys.sentencepiece().backend_tokenizer.to_str())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), tokenizer.normalizer])
    vocabulary = Vocabulary.from_tokenizer(tokenizer, lossy=True)
    assert spelled(vocabulary, vocabulary.encode_continuation(b"The Theory")) == b"the theory"


def test_bad_data():
    vocabulary = Vocabulary.from_tokenizer(toys.byte_level())
    with pytest.raises(TypeError, match="data must be bytes, got str"):
        vocabulary.encode_continuation("text")


def test_single_word_added_tokens_still_spell():
    tokenizer = Tokenizer.from_str(toys.byte_level().backend_tokenizer.to_str())
    tokenizer.add_tokens([AddedToken("wordy", single_word=True, lstrip=True, rstrip=True)])
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    for data in (b" wordy ", b"wordywordy wordy"):
        assert spelled(vocabulary, vocabulary.encode_continuation(data)) == data
