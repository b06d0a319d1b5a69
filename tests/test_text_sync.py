"""Incremental ids equal tokenizing everything again, for any text, in any pieces, on every kind of tokenizer."""

from __future__ import annotations

import random

import pytest
import toy_tokenizers
from conftest import NAMES
from hypothesis import example, given, settings
from hypothesis import strategies as st

from unite_ext import Vocabulary
from unite_ext.vocab.text_sync import TextSync, _borders_of, incomplete_suffix, top_level_alternatives

TOYS = ("byte_level", "byte_level_digits", "sentencepiece", "sentencepiece_metaspace", "gemma", "unigram", "wordpiece")

SNIPPETS = [
    "The quick brown fox", " jumps", "I'll", "don't", "'s", "foo   ", "bar", "\n", "\n\n", "  \n  ", "\t", " ",
    "   ", "x  \n  ", "123", "4", "2024", "3.14", "$5,000", "10000000", "a1b2", "Sunset Boulevard", "中文分词没有空格",
    "，", "。", "日本語の・テキスト", "한국어", "é", "e\u0301", "ñ", "क्षि", "\u200d", "👩\u200d👩\u200d👧", "😀",
    "\U0001f1e9\U0001f1ea", "▁", "▁the", "<0x0A>", "<|eot_id|>", "</s>", "<s>", "<｜User｜>", "<｜fim", "▁hole｜>",
    "<tool>", "<to", "ol>", "\u00a0", "\u3000", "\u2028", "\x00", "\x7f", "—", "’s", "“quoted”",
    "http://a.b/c?d=e&f", "def f(x):\n    return x", "!!!", "...", "!\n", "?!\r\n", "_snake_case_", "CamelCase",
    "ＡＢＣ", "ﬁ", "İ", "ß", "\u0301", "٣٤", "Ⅳ", "²",
]  # fmt: skip


def check(vocabulary: Vocabulary, pieces: list[bytes]) -> None:
    """After every piece the ids are those of the whole text, and the edits lead there: those of a branch as well."""
    sync = TextSync(vocabulary)
    branches: list[TextSync] = []
    replayed: list[int] = []
    text = b""
    for n, piece in enumerate(pieces):
        branches += [sync.branch()] if n % 4 == 1 else []
        drop, append = sync.append(piece)
        for branch in branches[-2:]:
            assert branch.append(piece) == (drop, append)
            assert sync.ids[len(sync.ids) - len(branch.ids) :] == branch.ids
        del replayed[len(replayed) - drop :]
        replayed += append
        text += piece
        assert sync.ids == replayed
        assert sync.ids == vocabulary.encode_continuation(text), (text, piece)


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces = []
    for size in sizes:
        pieces.append(data[:size])
        data = data[size:]
    return [*pieces, data]


texts = st.lists(st.one_of(st.sampled_from(SNIPPETS), st.text(max_size=6)), max_size=12).map("".join).map(str.encode)
byte_strings = st.one_of(texts, st.binary(max_size=20), st.tuples(texts, st.binary(max_size=5), texts).map(b"".join))
cuts = st.lists(st.integers(1, 7), max_size=60)


@pytest.mark.filterwarnings("ignore:.*cannot spell")
@pytest.mark.parametrize("name", TOYS)
def test_equals_tokenizing_everything_again(name):
    vocabulary = Vocabulary.from_tokenizer(getattr(toy_tokenizers, name)())

    @settings(max_examples=120, deadline=None)
    @given(byte_strings, cuts)
    @example("国好".encode(), [4, 1, 1])
    @example(b"x  \n  \n", [1, 1, 1, 1, 1, 1])
    def holds(data, sizes):
        check(vocabulary, cut(data, sizes))

    holds()


@pytest.mark.parametrize("name", NAMES)
def test_equals_tokenizing_everything_again_on_real_tokenizers(name, real_tokenizer):
    vocabulary = Vocabulary.from_tokenizer(real_tokenizer(name))

    @settings(max_examples=250, deadline=None)
    @given(byte_strings, cuts)
    @example("国好".encode(), [4, 1, 1])
    @example(b"x  \n  \n", [1, 1, 1, 1, 1, 1])
    @example("中・国<｜User｜>x".encode(), [3] * 9)
    def holds(data, sizes):
        check(vocabulary, cut(data, sizes))

    holds()


@pytest.mark.parametrize("name", NAMES)
def test_long_texts_on_real_tokenizers(name, real_tokenizer):
    """Thousands of bytes in steps of a token's length, checked now and then."""
    vocabulary = Vocabulary.from_tokenizer(real_tokenizer(name))
    rng = random.Random(0)
    text = "".join(rng.choice(SNIPPETS) + rng.choice(["", " ", "", " ", "\n"]) for _ in range(800)).encode()
    sync = TextSync(vocabulary)
    done = 0
    while done < len(text):
        size = rng.randint(1, 6)
        sync.append(text[done : done + size])
        done += size
        if rng.random() < 0.02:
            assert sync.ids == vocabulary.encode_continuation(text[:done])
    assert sync.ids == vocabulary.encode_continuation(text)


@pytest.mark.parametrize("name", NAMES)
def test_only_the_tail_is_tokenized(name, real_tokenizer):
    """In prose of any length, only a few words are tokenized again."""
    vocabulary = Vocabulary.from_tokenizer(real_tokenizer(name))
    borders = _borders_of(vocabulary)
    sentence = b"The committee, which met in 2024, couldn't agree; nobody was surprised. "
    sync = TextSync(vocabulary)
    longest = 0
    for i in range(0, len(sentence * 40), 4):
        sync.append((sentence * 40)[i : i + 4])
        longest = max(longest, len(sync._text) - sync._border)
    assert borders.last(sentence, len(sentence) - 1)[0] > len(sentence) - 15
    assert longest < 40


def test_no_character_is_looked_at_again(real_tokenizer):
    """In a run without borders, every character is examined for a border once."""
    vocabulary = Vocabulary.from_tokenizer(real_tokenizer("llama-3"))
    borders = _borders_of(vocabulary)
    pairs = []
    inner = borders._is_border
    borders._is_border = lambda a, b: (pairs.append(a + b), inner(a, b))[1]
    try:
        sync = TextSync(vocabulary)
        for _ in range(300):
            sync.append("wörd".encode())
    finally:
        borders._is_border = inner
    assert len(pairs) < 4 * 300


def test_unknown_expressions_tokenize_everything(caplog):
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    base = toy_tokenizers.byte_level().backend_tokenizer
    tokenizer = Tokenizer(base.model)
    assert isinstance(tokenizer.model, models.BPE)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"(?<=a)\s+b|\s+|\p{L}+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    check(vocabulary, [b"a ", b"b", b" a", b" b c"])
    assert "every step tokenizes the whole text" in caplog.text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", 0), (b"a", 0), ("é".encode(), 0), ("é".encode()[:1], 1), ("中".encode()[:1], 1), ("中".encode()[:2], 2),
        ("😀".encode()[:3], 3), ("😀".encode(), 0), (b"\xff", 0), (b"\x80", 0), (b"a\x80\x80\x80", 0), (b"\xc0", 0),
    ],
)  # fmt: skip
def test_incomplete_suffix(text, expected):
    assert incomplete_suffix(text) == expected


def test_top_level_alternatives():
    assert top_level_alternatives(r"(a|b)|[|\]]+|\||c") == ["(a|b)", r"[|\]]+", r"\|", "c"]


@pytest.mark.parametrize("name", ["qwen2", "mistral", "llama", "gpt-neox"])
def test_bundled_tokenizers_start_again_at_words(name, caplog):
    from transformers import AutoTokenizer

    from unite_ext.demo import model_folder

    vocabulary = Vocabulary.from_tokenizer(AutoTokenizer.from_pretrained(model_folder(name)))
    check(vocabulary, cut("Zoë has 12*3=36 shells. 36-8=28 are left. The answer is 28.".encode(), [3] * 25))
    assert not caplog.records
