"""Small tokenizers of every supported kind, trained in a fraction of a second, for tests without downloads.

Every function returns the same `PreTrainedTokenizerFast` on each call.
"""

from __future__ import annotations

import json
from functools import cache

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "The quick brown fox jumps over the lazy dog. James met Jam at the Jamboree in January 2024.",
    "Sunset Boulevard runs 123 km; 1,234.5 metres, or 2024 feet? I'll say: don't!",
    "def main(argv):\n    return [int(x) for x in argv]\n\n\nif __name__ == '__main__':\n\tmain()\n",
    "Ünïcödé çafé naïve Straße Ωmega Москва привет мир",
    "中文分词没有空格 日本語のテキスト 한국어 문장",
    "Emoji 😀 😃 👩‍👩‍👧 ➡️ and   runs    of     spaces  ",
    "answer: yes answer: no answer: 42 the the then there their theory thermal",
    "James Jamie Jameson James's jams jammed Janus, Jane and Jan",
] * 4

_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPACE = "\u2581"


def _wrap(tokenizer: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def _byte_level(digits: str, corpus: list[str], size: int, specials: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT.replace("DIGITS", digits)), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens(specials)
    return tokenizer


@cache
def byte_level() -> PreTrainedTokenizerFast:
    """Like Llama-3: digits in threes, a BOS, two ids that end a text, and an ordinary added token."""
    tokenizer = _byte_level(r"\p{N}{1,3}", CORPUS, 560, ["<|bos|>", "<|eos|>", "<|eot|>"])
    tokenizer.add_tokens([AddedToken("<tool>", lstrip=True, rstrip=True, normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", tokenizer.token_to_id("<|bos|>"))]
    )
    return _wrap(tokenizer, bos_token="<|bos|>", eos_token="<|eot|>")


@cache
def byte_level_digits() -> PreTrainedTokenizerFast:
    """Like Qwen2: single digits, NFC, another training text; a family of its own."""
    tokenizer = _byte_level(r"\p{N}", CORPUS[1:8:2] + CORPUS[6:8], 480, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.normalizer = normalizers.NFC()
    return _wrap(tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def _sentencepiece_model(size: int, first: list[str]) -> models.BPE:
    """A BPE over '▁' text whose vocabulary starts with special tokens and the 256 byte pieces."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False)
    trained.train_from_iterator(CORPUS, trainer)
    model = json.loads(trained.to_str())["model"]
    pieces = [*first, *(f"<0x{b:02X}>" for b in range(256))]
    left_out = {*"中\n\t", *pieces}  # the characters are left to byte fallback
    pieces += sorted(set(model["vocab"]) - left_out, key=model["vocab"].get)
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in model["merges"]]
    merges.append((SPACE, SPACE))
    known = set(pieces)
    merges = [m for m in merges if m[0] in known and m[1] in known and m[0] + m[1] in known]
    return models.BPE(
        vocab={p: i for i, p in enumerate(pieces)}, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )


def _fallback_decoder(*, strip: bool) -> decoders.Decoder:
    parts = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if strip else parts)


@cache
def sentencepiece() -> PreTrainedTokenizerFast:
    """Like Llama-2 and Mistral: byte fallback, dummy prefix by the Prepend + Replace normalizer."""
    tokenizer = Tokenizer(_sentencepiece_model(420, ["<unk>", "<s>", "</s>"]))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.decoder = _fallback_decoder(strip=True)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return _wrap(tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@cache
def sentencepiece_metaspace() -> PreTrainedTokenizerFast:
    """The same model with the dummy prefix of a Metaspace pre-tokenizer (``prepend_scheme="first"``)."""
    tokenizer = Tokenizer(_sentencepiece_model(420, ["<unk>", "<s>", "</s>"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = _fallback_decoder(strip=True)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return _wrap(tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@cache
def gemma() -> PreTrainedTokenizerFast:
    """Like Gemma: byte fallback, no dummy prefix, runs of spaces and newlines listed as added tokens."""
    tokenizer = Tokenizer(_sentencepiece_model(460, ["<pad>", "<eos>", "<bos>", "<unk>", "\n\n", SPACE * 2, SPACE * 3]))
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = _fallback_decoder(strip=False)
    tokenizer.add_special_tokens(["<pad>", "<eos>", "<bos>", "<unk>"])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in ("\n\n", SPACE * 2, SPACE * 3)])
    return _wrap(tokenizer, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>", pad_token="<pad>")


@cache
def unigram() -> PreTrainedTokenizerFast:
    """Like T5: Unigram with Metaspace and no byte tokens, so some text cannot be spelled."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator([t for t in CORPUS if "Emoji" not in t], trainer)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return _wrap(tokenizer, eos_token="</s>", unk_token="<unk>", pad_token="<pad>")


@cache
def wordpiece(lowercase: bool = False) -> PreTrainedTokenizerFast:
    """Like BERT, cased or lower-casing; no EOS."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=500, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], show_progress=False
    )
    tokenizer.train_from_iterator([t for t in CORPUS if "Emoji" not in t], trainer)
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return _wrap(tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]")


def wordpiece_lowercase() -> PreTrainedTokenizerFast:
    """BERT, uncased."""
    return wordpiece(lowercase=True)


COVERING = [byte_level, byte_level_digits, sentencepiece, sentencepiece_metaspace, gemma]
"""Kinds that can spell any bytes."""

NOT_COVERING = [unigram, wordpiece]
"""Kinds without byte tokens."""
