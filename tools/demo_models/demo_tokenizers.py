"""Train the demo's four tokenizers on its training problems. Each splits the same text differently.

Digits differ on purpose: single digits, single digits with a preceding space, whole numbers, and SentencePiece's single
digits after a `▁` of its own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SPACE = "\u2581"
# A word with the character before it, digits by a rule of their own, punctuation with line ends, white space.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _byte_level(texts: Sequence[str], size: int, digits: str, specials: Sequence[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS.replace("DIGITS", digits)), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size - len(specials), initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(list(specials))
    return tokenizer


def _wrap(tokenizer: Tokenizer, **special: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=256, **special)


def spaced_digits(texts: Sequence[str], size: int) -> Any:
    """Train a tokenizer with words, BOS and special tokens like Llama-3's, and single digits that include a space."""
    tokenizer = _byte_level(texts, size, r" ?\p{N}", ["<|begin_of_text|>", "<|end_of_text|>"])
    bos = tokenizer.token_to_id("<|begin_of_text|>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", bos)]
    )
    return _wrap(tokenizer, bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>")


def single_digits(texts: Sequence[str], size: int) -> Any:
    """Train a tokenizer by Qwen2's rules: NFC, no BOS, single digits. transformers would replace any other rules."""
    tokenizer = _byte_level(texts, size, r"\p{N}", ["<|endoftext|>", "<|im_end|>"])
    tokenizer.normalizer = normalizers.NFC()
    return _wrap(tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def whole_numbers(texts: Sequence[str], size: int) -> Any:
    """Train a tokenizer like those of GPT-2 and GPT-NeoX: a number is one word and gets merges."""
    tokenizer = _byte_level(texts, size, r" ?\p{N}+", ["<|endoftext|>"])
    return _wrap(tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>")


def sentencepiece(texts: Sequence[str], size: int) -> Any:
    """Train a tokenizer like Mistral's: `▁`, a dummy prefix, byte fallback (for ë, é, line ends too), single digits."""
    specials = ["<unk>", "<s>", "</s>"]
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="always"), pre_tokenizers.Punctuation(), pre_tokenizers.Digits(True)]
    )
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False)
    trained.train_from_iterator(texts, trainer)
    model = json.loads(trained.to_str())["model"]
    first = [*specials, *(f"<0x{b:02X}>" for b in range(256))]
    learned = [p for p in sorted(model["vocab"], key=model["vocab"].get) if p.replace(SPACE, "").isascii()]
    pieces = [*first, *(p for p in learned if "\n" not in p)][:size]
    merges = [tuple(m) for m in model["merges"] if {m[0], m[1], m[0] + m[1]} <= set(pieces)]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={p: i for i, p in enumerate(pieces)}, merges=merges, unk_token="<unk>", fuse_unk=True,
            byte_fallback=True,
        )
    )  # fmt: skip
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(specials)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return _wrap(tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def continuation(tokenizer: Any) -> Tokenizer:
    """Copy a tokenizer for use in the middle of a text: without dummy prefix and BOS."""
    copy = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    copy.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    if copy.token_to_id("<0x0A>") is not None:
        copy.normalizer = normalizers.Replace(" ", SPACE)
    return copy
