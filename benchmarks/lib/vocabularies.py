"""Vocabularies for benchmarks: those of real tokenizers where there are some, else made-up ones of the same sizes.

Members are Llama-3, Qwen2, Mistral and DeepSeek, from the fifth on the same again.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from unite_ext import VocabAlignment
from unite_ext.testing import alignment_from_classes
from unite_ext.vocab.alignment import EOS_CLASS, FIRST_SUB_TOKEN, NO_CLASS, NO_ID

FOLDERS = ("llama-3", "qwen2", "mistral-7b-v0.3", "deepseek-v3")
SIZES = (128_010, 151_646, 32_768, 129_271)  # highest eligible id + 1
WIDTHS = (128_256, 152_064, 32_768, 129_280)  # logits: heads are padded
SPECIAL_TOKENS = 60  # in made-up vocabularies


@dataclass(frozen=True)
class Family:
    """Members, how their vocabularies relate, and tokens that all of them have."""

    source: str  # "tokenizers" or "synthetic"
    alignment: VocabAlignment
    tokenizers: list
    widths: tuple[int, ...]
    shared_ids: (
        torch.Tensor
    )  # [n, members]: ids of one class, whole tokens, spelled alike in the first two vocabularies


@functools.cache
def load_family(members: int) -> Family:
    """The real tokenizers if UNITE_TEST_TOKENIZERS names their folder."""
    kinds = [m % len(SIZES) for m in range(members)]
    folder = os.environ.get("UNITE_TEST_TOKENIZERS")
    if folder:
        from transformers import AutoTokenizer

        distinct = [AutoTokenizer.from_pretrained(Path(folder) / name) for name in FOLDERS[:members]]
        tokenizers = [distinct[kind] for kind in kinds]
        alignment = VocabAlignment.from_tokenizers(tokenizers)
    else:
        alignment = synthetic_alignment(SIZES, kinds)
        tokenizers = stand_ins(alignment)
    widths = tuple(WIDTHS[kind] for kind in kinds)
    source = "tokenizers" if folder else "synthetic"
    return Family(source, alignment, tokenizers, widths, shared_ids(alignment, tokenizers))


def made_up_family(widths: Sequence[int], padding: int) -> Family:
    """One made-up vocabulary per member, `padding` smaller than the member's logits."""
    alignment = synthetic_alignment([width - padding for width in widths], range(len(widths)))
    tokenizers = stand_ins(alignment)
    return Family("synthetic", alignment, tokenizers, tuple(widths), shared_ids(alignment, tokenizers))


def synthetic_alignment(sizes: Sequence[int], kinds: Sequence[int], seed: int = 0) -> VocabAlignment:
    """Members of the given kinds; `sizes` holds the vocabulary size of each kind, one kind is one vocabulary.

    Every vocabulary is drawn from one pool, so that two large ones share most of their tokens. A class that a member
    lacks has one of its tokens as first sub-token, an eighth of which serve for that. The last ids are special:
    ineligible, and one EOS.
    """
    rng = np.random.default_rng(seed)
    pool = int(1.25 * max(sizes))
    drawn = {}
    for kind in sorted(set(kinds)):
        class_of = 1 + rng.permutation(pool)[: sizes[kind]]
        class_of[-SPECIAL_TOKENS:] = NO_CLASS
        class_of[-1] = EOS_CLASS
        drawn[kind] = class_of
    used = np.unique(np.concatenate(list(drawn.values())))
    used = used[used > EOS_CLASS]
    columns = {}
    for kind, class_of in drawn.items():
        text = np.flatnonzero(class_of > EOS_CLASS)
        class_of[text] = 1 + np.searchsorted(used, class_of[text])
        ids = np.full(len(used) + 1, NO_ID)
        ids[class_of[text]] = text
        ids[EOS_CLASS] = len(class_of) - 1
        missing = np.flatnonzero(ids == NO_ID)
        heads = rng.choice(text, len(text) // 8)
        ids[missing] = rng.choice(heads, len(missing)) | FIRST_SUB_TOKEN
        columns[kind] = ids
    return alignment_from_classes([drawn[kind] for kind in kinds], np.stack([columns[kind] for kind in kinds], axis=1))


class StandIn:
    """As much of a tokenizer as DictionaryStep uses, for made-up vocabularies: a token is named after its class."""

    def __init__(self, classes: list[int]) -> None:
        self.tokens = [f"Ġ{c}" if c > EOS_CLASS else f"<special {i}>" for i, c in enumerate(classes)]
        self.vocabulary = {token: i for i, token in enumerate(self.tokens)}

    def get_vocab(self) -> dict[str, int]:
        return self.vocabulary

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [self.tokens[i] for i in ids]

    def __call__(self, text: str, add_special_tokens: bool = False) -> SimpleNamespace:
        return SimpleNamespace(input_ids=[0])


def stand_ins(alignment: VocabAlignment) -> list[StandIn]:
    """A tokenizer for every member of a made-up alignment."""
    return [StandIn(classes.tolist()) for classes in alignment.classes]


def shared_ids(alignment: VocabAlignment, tokenizers: list) -> torch.Tensor:
    """[n, members]: the ids of classes that every member holds as one token, spelled alike by the first two."""
    tagged = alignment.class_ids[1:]
    ids = tagged[((tagged >= 0) & (tagged & FIRST_SUB_TOKEN == 0)).all(dim=1)].long()
    if len(tokenizers) < 2:
        return ids
    spelled = [tokenizer.convert_ids_to_tokens(ids[:, m].tolist()) for m, tokenizer in enumerate(tokenizers[:2])]
    alike = torch.tensor([a == b and "Ċ" not in a for a, b in zip(*spelled)])
    return ids[alike]
