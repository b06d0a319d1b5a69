"""Relate vocabularies: number the classes of their ids, find every class an id in every member, pack both for kernels.

The parts of `VocabAlignment`, which says what they mean.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from .._core import EOS_CLASS, FIRST_SUB_TOKEN, MAX_LOG2_CAPACITY, NO_CLASS, NO_ID
from .alignment_files import Related
from .vocabulary import Vocabulary

_STRETCH_WORDS = 16  # the kernels read eligibility 64 bytes at a time
_CHUNK = 16384  # byte strings per call of the tokenizer; the progress bar moves after each call


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Switch the cycle collector off: it would spend a quarter of the build on half a million strings that all live."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@no_garbage_collection()
def relate(vocabularies: list[Vocabulary], progress: bool | None) -> Related:
    """The class of every member's ids, and the tagged ids of every class."""
    classes, class_bytes = classify(vocabularies)
    num_classes = len(class_bytes) + 1
    class_ids = np.full((num_classes, len(vocabularies)), NO_ID, np.int32)
    for m, (vocabulary, class_of) in enumerate(zip(vocabularies, classes)):
        # Later assignments win: byte pieces first, then the others, each from the highest id down
        ids = np.flatnonzero((class_of > EOS_CLASS) & vocabulary.represents)[::-1]
        for group in (ids[vocabulary.is_byte_piece[ids]], ids[~vocabulary.is_byte_piece[ids]]):
            class_ids[class_of[group], m] = group
        if vocabulary.eos_token_id is not None:
            class_ids[EOS_CLASS, m] = vocabulary.eos_token_id
    fill_first_sub_tokens(vocabularies, class_bytes, class_ids, progress)
    return classes, class_ids


def classify(vocabularies: list[Vocabulary]) -> tuple[list[NDArray[np.int32]], list[bytes]]:
    """Number the classes: 0 is EOS, then follow the first member's in order of ids, then what each later member adds.

    Returns
    -------
    classes : list of int32 arrays, shape (size_m,)
    class_bytes : list of bytes
        The bytes of class 1, 2, ...
    """
    numbers: dict[bytes, int] = {}
    number = numbers.setdefault
    classes: list[NDArray[np.int32]] = []
    for vocabulary in vocabularies:
        class_of = np.full(vocabulary.size, NO_CLASS, np.int32)
        token_bytes = vocabulary.token_bytes
        text_ids = [i for i, data in enumerate(token_bytes) if data]
        class_of[text_ids] = [number(token_bytes[i], len(numbers) + 1) for i in text_ids]
        class_of[list(vocabulary.eos_token_ids)] = EOS_CLASS
        classes.append(class_of)
    return classes, list(numbers)


def fill_first_sub_tokens(
    vocabularies: list[Vocabulary],
    class_bytes: list[bytes],
    class_ids: NDArray[np.int32],
    progress: bool | None,
) -> None:
    """Tokenize the classes for which a member has no id. A class that it cannot spell keeps -1."""
    from tqdm import tqdm

    missing = [np.flatnonzero(class_ids[1:, m] == NO_ID) + 1 for m in range(len(vocabularies))]
    total = sum(map(len, missing))
    with tqdm(
        total=total,
        desc="Aligning vocabularies",
        unit="token",
        disable=None if progress is None else not progress,
    ) as bar:
        for m, vocabulary in enumerate(vocabularies):
            for start in range(0, len(missing[m]), _CHUNK):
                chunk = missing[m][start : start + _CHUNK]
                data = [class_bytes[c - 1] for c in chunk.tolist()]
                first = np.array(vocabulary.first_sub_tokens(data), np.int32)
                usable = first >= 0
                class_ids[chunk[usable], m] = first[usable] | FIRST_SUB_TOKEN
                bar.update(len(chunk))


def pack_eligible(classes: list[NDArray[np.int32]]) -> tuple[torch.Tensor, tuple[int, ...]]:
    """Pack one bit per id. Members' stretches start at multiples of 16 words and end in at least 16 zero words."""
    stretches, offsets, start = [], [], 0
    for class_of in classes:
        words = -(-len(class_of) // 32)
        words = -(-words // _STRETCH_WORDS) * _STRETCH_WORDS + _STRETCH_WORDS
        bits = np.zeros(words * 32, bool)
        bits[: len(class_of)] = class_of >= 0
        stretches.append(np.packbits(bits, bitorder="little").view("<i4"))
        offsets.append(start)
        start += words
    return torch.from_numpy(np.concatenate(stretches)), tuple(offsets)


def build_table(classes: list[NDArray[np.int32]], class_ids: NDArray[np.int32]) -> tuple[torch.Tensor, int]:
    """Build the hash map: at most half full, and larger if some key would need too many probes."""
    from .. import _host

    keys = sum(int((c >= 0).sum()) for c in classes)
    log2_capacity = max(4, (2 * keys - 1).bit_length())
    while log2_capacity <= MAX_LOG2_CAPACITY:
        table = torch.empty((1 << log2_capacity, 4), dtype=torch.int32, device="cpu")
        if _host.fill_table(classes, class_ids, table.numpy(), log2_capacity):
            return table, log2_capacity
        log2_capacity += 1
    raise ValueError(f"tokenizers must have ids for a table of at most 2^{MAX_LOG2_CAPACITY} entries, got {keys:,} ids")
