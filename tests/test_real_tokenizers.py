"""Facts about real tokenizers: Llama-3, Qwen2, DeepSeek-V3, Mistral. Skipped where UNITE_TEST_TOKENIZERS is unset."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import NAMES
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from unite_ext.vocab.alignment import FIRST_SUB_TOKEN, ID_MASK, VocabAlignment
from unite_ext.vocab.vocabulary import Vocabulary

_VOCABULARIES: dict[str, Vocabulary] = {}


@pytest.fixture
def vocabulary(real_tokenizer):
    """The vocabulary of a real tokenizer, read once."""

    def read(name: str) -> Vocabulary:
        if name not in _VOCABULARIES:
            _VOCABULARIES[name] = Vocabulary.from_tokenizer(real_tokenizer(name))
        return _VOCABULARIES[name]

    return read


def spelled(vocabulary: Vocabulary, ids: list[int]) -> bytes:
    return b"".join(vocabulary.token_bytes[i] for i in ids)


def test_surface_tokens_of_the_papers_table_5(real_tokenizer):
    llama, qwen = (set(real_tokenizer(n).get_vocab()) for n in ("llama-3", "qwen2"))
    assert len(llama & qwen) == 109_566
    assert len(llama | qwen) == 170_336


@pytest.mark.parametrize(
    ("one", "two", "common"),
    [
        ("llama-3", "qwen2", 109_566),
        ("llama-3", "mistral-7b-v0.3", 29_110),
        ("qwen2", "mistral-7b-v0.3", 29_234),
        ("llama-3", "deepseek-v3", 70_663),
        ("qwen2", "deepseek-v3", 84_030),
    ],
)
def test_classes_in_common(vocabulary, one, two, common):
    assert len(set(vocabulary(one).representatives()) & set(vocabulary(two).representatives())) == common


@pytest.mark.parametrize(
    ("name", "size", "kind", "eos"),
    [
        ("llama-3", 128_256, "byte-level", 128_009),
        ("qwen2", 151_646, "byte-level", 151_645),
        ("deepseek-v3", 129_280, "byte-level", 1),
        ("mistral-7b-v0.1", 32_000, "sentencepiece", 2),
        ("mistral-7b-v0.3", 32_768, "sentencepiece", 2),
    ],
)
def test_sizes(vocabulary, name, size, kind, eos):
    v = vocabulary(name)
    assert (v.size, v.kind, v.eos_token_id, v.eos_token_ids) == (size, kind, eos, (eos,))


def test_mistral_has_125_classes_with_two_ids(vocabulary):
    v = vocabulary("mistral-7b-v0.3")
    counts = Counter(b for b in v.token_bytes if b)
    assert Counter(counts.values())[2] == 125
    assert max(counts.values()) == 2
    for data, i in v.representatives().items():
        if counts[data] == 2:
            assert not v.is_byte_piece[i]


@pytest.mark.parametrize(
    ("name", "data", "first"),
    [
        ("mistral-7b-v0.3", b" Sunset Boulevard", 7825),
        ("mistral-7b-v0.3", b"James", 29566),
        ("qwen2", b"2024", 17),
        ("llama-3", b"2024", 2366),
        ("mistral-7b-v0.3", b"\xe4\xb8", 999),
    ],
)
def test_first_sub_tokens(vocabulary, name, data, first):
    assert vocabulary(name).encode_continuation(data)[0] == first


@pytest.mark.parametrize("name", NAMES)
def test_bytes_of_every_id_agree_with_decode(real_tokenizer, vocabulary, name):
    backend, v = real_tokenizer(name).backend_tokenizer, vocabulary(name)
    added = backend.get_added_tokens_decoder()
    ids = [i for i in np.flatnonzero(v.eligible).tolist() if i not in added]
    anchor = v.representatives()[b"the"]
    if v.kind == "byte-level":
        decoded = backend.decode_batch([[i] for i in ids], skip_special_tokens=False)
        assert decoded == [v.token_bytes[i].decode("utf-8", "replace") for i in ids]
    else:
        decoded = backend.decode_batch([[anchor, i] for i in ids], skip_special_tokens=False)
        assert decoded == ["the" + v.token_bytes[i].decode("utf-8", "replace") for i in ids]
    for i, token in added.items():
        assert v.token_bytes[i] == (b"" if token.special else token.content.encode())


TEXTS = [
    "Answer: James met Jam at 12:30 on 3,141,592 occasions!\n\n\t  Don't you  think?\n",
    "e\u0301 é \u212b ﬁ ｆｕｌｌ \u1100\u1161\u11a8 각",
    "中文分词没有空格，日本語 한국어 ไทย العربية हिन्दी",
    "👩‍👩‍👧 😀 ➡️ \ufffd\x00\x7f\u2028 \u3000",
    "a\u2581b \u2581\u2581 c",
    "<|eot_id|><|im_end|></s><s><unk>[INST] <0x41> <｜User｜>hi<｜end▁of▁sentence｜>",
    "def f(x):\n        return x  # ok\r\n\r\n",
]
PIECES = st.sampled_from(
    [*TEXTS, " ", "  ", "\n", "\u2581", "</s>", "<|eot_id|>", "[INST]", "<｜fim▁hole｜>", "\u0301", "1"]
)
DATA = st.one_of(
    st.text(max_size=60).map(str.encode),
    st.binary(max_size=60),
    st.lists(PIECES, max_size=6).map("".join).map(str.encode),
    st.tuples(st.sampled_from(TEXTS), st.integers(0, 40), st.integers(0, 60)).map(lambda t: t[0].encode()[t[1] : t[2]]),
)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=DATA)
@example(data="".join(TEXTS).encode())
@example(data=b"\xe4\xb8\xe4\xb8\xad\xff\xf0\x9f\x98")
def test_round_trip(vocabulary, name, data):
    v = vocabulary(name)
    ids = v.encode_continuation(data)
    assert spelled(v, ids) == data
    assert v.eligible[ids].all()
    assert not set(ids) & set(v.eos_token_ids)


@pytest.mark.parametrize("name", NAMES)
def test_continuations_equal_the_tokenizer_on_plain_text(real_tokenizer, vocabulary, name):
    """Where no rule of a continuation bites, it is the tokenizer's own encoding (a dummy prefix stands for a space)."""
    tokenizer, v = real_tokenizer(name), vocabulary(name)
    for text in (TEXTS[0], TEXTS[2], TEXTS[6]):
        want = tokenizer(text, add_special_tokens=False).input_ids
        prefix = b" " if v.kind == "sentencepiece" else b""
        assert v.encode_continuation(prefix + text.encode()) == want


def test_qwen_keeps_characters_that_its_normalizer_removes(vocabulary):
    """Ids that the tokenizer itself can never produce still represent their bytes."""
    v = vocabulary("qwen2")
    decomposed = [b for b in v.representatives() if len(b) > 2 and b"\xcc\x81" in b]
    unreachable = 0
    for data in decomposed:
        unreachable += v.encode_continuation(data) != [v.representatives()[data]]
    assert decomposed
    assert spelled(v, v.encode_continuation("e\u0301".encode())) == "e\u0301".encode()


def test_added_tokens_of_deepseek_match_and_special_ones_do_not(real_tokenizer, vocabulary):
    v, tokenizer = vocabulary("deepseek-v3"), real_tokenizer("deepseek-v3")
    ids = v.encode_continuation("a<｜User｜>b<｜end▁of▁sentence｜>".encode())
    assert ids[1] == tokenizer.convert_tokens_to_ids("<｜User｜>")
    assert not set(ids) & set(tokenizer.all_special_ids)


def test_alignment_of_three(real_tokenizer, real_alignment):
    alignment = real_alignment
    assert alignment.num_classes == 172_167
    assert alignment.vocab_sizes == (128_010, 151_646, 32_768)
    assert alignment.class_ids[0].tolist() == [128_009, 151_645, 2]
    llama, qwen, mistral = (real_tokenizer(n) for n in ("llama-3", "qwen2", "mistral-7b-v0.3"))
    james = alignment.class_of(0, llama.convert_tokens_to_ids("James"))
    assert alignment.class_ids[james].tolist() == [
        llama.convert_tokens_to_ids("James"),
        qwen.convert_tokens_to_ids("James"),
        mistral.convert_tokens_to_ids("J") | FIRST_SUB_TOKEN,
    ]
    newline = alignment.class_of(0, llama.convert_tokens_to_ids("Ċ"))
    assert int(alignment.class_ids[newline, 2]) == mistral.convert_tokens_to_ids("<0x0A>")
    assert bool((alignment.class_ids >= 0).all())
    own = (alignment.class_ids & FIRST_SUB_TOKEN) == 0
    both = own[1:, 0] & own[1:, 1]
    assert int(both.sum()) == 109_566
    assert int((own[1:, 0] | own[1:, 1]).sum()) == 128_000 + 151_643 - 109_566
    assert int((own[1:, 0] & own[1:, 2]).sum()) == 29_110
    assert int((own[1:, 1] & own[1:, 2]).sum()) == 29_234


def test_first_sub_tokens_start_the_class(real_alignment):
    """A first sub-token's bytes begin the bytes of its class."""
    alignment = real_alignment
    spelled = [b""] * alignment.num_classes
    for m, vocabulary in enumerate(alignment.vocabularies):
        for c, data in zip(alignment.classes[m].tolist(), vocabulary.token_bytes):
            if c > 0:
                spelled[c] = data
    for m, vocabulary in enumerate(alignment.vocabularies):
        for c, tagged in enumerate(alignment.class_ids[:, m].tolist()):
            piece = vocabulary.token_bytes[tagged & ID_MASK]
            assert spelled[c].startswith(piece) if tagged & FIRST_SUB_TOKEN else spelled[c] == piece


def test_size_and_time(real_tokenizer, tmp_path):
    """Generous bounds, so that only a blunder fails here; the benchmark has the figures."""
    tokenizers = [real_tokenizer(n) for n in ("llama-3", "qwen2", "mistral-7b-v0.3")]
    start = time.perf_counter()
    built = VocabAlignment.from_tokenizers(tokenizers, cache=tmp_path)
    cold = time.perf_counter() - start
    start = time.perf_counter()
    loaded = VocabAlignment.from_tokenizers(tokenizers, cache=tmp_path)
    warm = time.perf_counter() - start
    assert torch.equal(built.table, loaded.table)
    assert torch.equal(built.class_ids, loaded.class_ids)
    assert sum(t.numel() * t.element_size() for t in (built.table, built.class_ids, built.eligible)) < 40e6
    assert cold < 12
    assert warm < 3
    assert warm < cold
