"""Align the members' vocabularies: classes of ids with the same bytes, and a hash map over all ids.

A class is EOS, or a byte string that some member has a token for. For every class and member the alignment holds one
id: the member's representative of the class, or else the first sub-token of its bytes in that member.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from .._core import EOS_CLASS, FIRST_SUB_TOKEN, ID_BITS, ID_MASK, MAX_MEMBERS, NO_CLASS, NO_ID
from . import alignment_files as cache_files
from .classes import build_table, no_garbage_collection, pack_eligible, relate
from .vocabulary import OpenedTokenizer, Vocabulary

__all__ = ["EOS_CLASS", "FIRST_SUB_TOKEN", "ID_BITS", "ID_MASK", "NO_CLASS", "NO_ID", "VocabAlignment"]


class VocabAlignment:
    """Up to eight vocabularies, related by bytes. Build it with :meth:`from_tokenizers`.

    Attributes
    ----------
    num_members, num_classes : int
        M and C.
    vocabularies : tuple of Vocabulary
        One per member.
    table : torch.Tensor, int32 [2**log2_capacity, 4]
        The hash map of csrc/core/hash_map.h: key, class, the other members' ids.
    log2_capacity : int
    class_ids : torch.Tensor, int32 [C, M]
        The id of each class in each member, plus ``FIRST_SUB_TOKEN`` when it is only the first sub-token of the
        class's bytes; -1 when the member cannot spell the class. Class 0 is EOS.
    eligible : torch.Tensor, int32 [words]
        One bit per id, set if the id is eligible. Every member has a stretch of words of its own.
    eligible_offsets : tuple of int
        The first word of each member's stretch.
    vocab_sizes : tuple of int
        Highest eligible id of each member + 1.
    eos_ids : tuple of int
        The id that represents EOS in each member, -1 if none.
    fingerprints : tuple of str
        The fingerprints of the members' tokenizers.
    """

    def __init__(
        self, vocabularies: Sequence[Vocabulary], classes: list[NDArray[np.int32]], class_ids: NDArray[np.int32]
    ) -> None:
        self.vocabularies: tuple[Vocabulary, ...] = tuple(vocabularies)
        self.num_members: int = len(self.vocabularies)
        self.num_classes: int = len(class_ids)
        self.vocab_sizes: tuple[int, ...] = tuple(v.highest_eligible_id + 1 for v in self.vocabularies)
        self.eos_ids: tuple[int, ...] = tuple(
            NO_ID if v.eos_token_id is None else v.eos_token_id for v in self.vocabularies
        )
        self.fingerprints: tuple[str, ...] = tuple(v.fingerprint for v in self.vocabularies)
        self.class_ids: torch.Tensor = torch.from_numpy(class_ids)
        self.eligible: torch.Tensor
        self.eligible_offsets: tuple[int, ...]
        self.table: torch.Tensor
        self.log2_capacity: int
        self.eligible, self.eligible_offsets = pack_eligible(classes)
        self.table, self.log2_capacity = build_table(classes, class_ids)
        self._host_classes = classes
        self._folder: Path | None = None
        self._starts: dict[tuple[tuple[bool, ...], torch.device], VocabAlignment] = {}  # see at_start
        self._appended: dict[
            int, dict[int, tuple[tuple[int, ...], ...]]
        ] = {}  # by primary, then its id: see append_ids

    @classmethod
    def from_tokenizers(
        cls,
        tokenizers: Sequence[object],
        *,
        eos_token_ids: Sequence[Iterable[int] | int | None] | None = None,
        lossy: bool = False,
        cache: bool | str | os.PathLike[str] = True,
        progress: bool | None = None,
    ) -> VocabAlignment:
        """Relate the vocabularies of 1 to 8 tokenizers.

        Parameters
        ----------
        tokenizers : sequence of transformers.PreTrainedTokenizerFast or tokenizers.Tokenizer
        eos_token_ids : sequence with one entry per member, optional
            The ids that end a text beside the tokenizer's own EOS, such as those of the generation config; or None.
        lossy : bool
            Accept tokenizers that lower-case or strip accents.
        cache : bool or path
            True keeps alignments in ``$UNITE_CACHE``, else in ``$XDG_CACHE_HOME/unite_ext``, else in
            ``~/.cache/unite_ext``. A path names another folder. False neither reads nor writes a cache.
        progress : bool, optional
            Whether to show a progress bar; by default only on a terminal.
        """
        opened = _open_all(tokenizers, eos_token_ids, lossy)
        folder = cache_files.cache_folder(cache)
        if folder is not None:
            stored = cache_files.read_cached(folder, opened)
            if stored is not None:
                alignment = cls(*stored)
                alignment._folder = folder
                return alignment
        vocabularies = _read(opened)
        alignment = cls(vocabularies, *relate(vocabularies, progress))
        if folder is not None:
            alignment._folder = folder
            cache_files.write_cached(folder, opened, alignment._stored())
        return alignment

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything that a step needs into one safetensors file, atomically."""
        cache_files.write(Path(path), self._stored())

    @classmethod
    def load(cls, path: str | os.PathLike[str], tokenizers: Sequence[object] | None = None) -> VocabAlignment:
        """Read a file that :meth:`save` wrote. A damaged or stale file raises ValueError.

        Parameters
        ----------
        path : path
        tokenizers : sequence, optional
            The members' tokenizers. Their fingerprints are compared with the file's. Without tokenizers the alignment
            is enough for steps, but not for tokenizing continuations.
        """
        return cls(*cache_files.read(Path(path), tokenizers))

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.table.device

    def to(self, device: torch.device | str | int) -> VocabAlignment:
        """Return the alignment with its tensors on another device."""
        moved = object.__new__(type(self))
        moved.__dict__.update(self.__dict__)
        moved.__dict__.pop("classes", None)
        for name in ("table", "class_ids", "eligible"):
            setattr(moved, name, getattr(self, name).to(device))
        return self if moved.table is self.table else moved

    def at_start(self, members: Sequence[bool]) -> VocabAlignment:
        """The alignment for a step in which some members are in the start state, and take their first step.

        For these a space that is not part of the text stands before it, see `StartVocabulary`. If all members are, or
        none is, their ids mean the same to each other as ever: then it is this alignment. Others are built when they
        are first asked for (or read from the cache folder), and kept.

        Parameters
        ----------
        members : sequence of bool
            One per member.

        Raises
        ------
        ValueError
            Not one per member; or the alignment was loaded without tokenizers.
        """
        flags = tuple(map(bool, members))
        if len(flags) != self.num_members:
            raise ValueError(f"members must have one entry per member, {self.num_members}, got {len(flags)}")
        if all(flags) or not any(flags):
            return self
        key = flags, self.device
        if key not in self._starts:
            self._starts[key] = self._built_start(flags).to(self.device)
        return self._starts[key]

    def _built_start(self, flags: tuple[bool, ...]) -> VocabAlignment:
        for (known, _), alignment in self._starts.items():
            if known == flags:
                return alignment
        folder, vocabularies = self._folder, self.vocabularies
        related = None if folder is None else cache_files.read_start(folder, vocabularies, flags)
        own = [v.start if at_start else v for v, at_start in zip(vocabularies, flags)]
        if related is None:
            related = relate(own, progress=None)
            if folder is not None:
                cache_files.write_start(folder, vocabularies, flags, related)
        return type(self)(own, *related)

    def only(self, members: Sequence[int]) -> VocabAlignment:
        """Return the alignment of these members alone, in this order, on the same device."""
        chosen = [self._check_member(m) for m in members]
        ids = np.ascontiguousarray(self.class_ids.cpu().numpy()[:, chosen])
        own = [self._host_classes[m] for m in chosen]
        return VocabAlignment([self.vocabularies[m] for m in chosen], own, ids).to(self.device)

    @cached_property
    def classes(self) -> list[torch.Tensor]:
        """The class of each id, -1 if it is not eligible: per member int32 [size_m] on the alignment's device."""
        return [torch.from_numpy(c).to(self.device) for c in self._host_classes]

    def class_of(self, member: int, id: int) -> int:
        """The class of one id, -1 if it is not eligible."""
        classes = self._host_classes[self._check_member(member)]
        return int(classes[id]) if 0 <= id < len(classes) else NO_CLASS

    def token_bytes(self, member: int, id: int) -> bytes:
        """The bytes one id adds to the text; empty for special tokens, EOS and unused ids."""
        vocabulary = self.vocabularies[self._check_member(member)]
        if not 0 <= id < vocabulary.size:
            raise ValueError(f"id must be an id of member {member}, 0 to {vocabulary.size - 1}, got {id}")
        return vocabulary.token_bytes[id]

    def encode_continuation(self, member: int, data: bytes) -> list[int]:
        """Tokenize bytes as they stand inside a text; see :meth:`Vocabulary.encode_continuation`."""
        return self.vocabularies[self._check_member(member)].encode_continuation(data)

    def append_ids(self, ids: Sequence[int], *, primary: int = 0) -> list[tuple[tuple[int, ...], ...]]:
        """What every member has to append when the primary emits these ids, for caches that only grow.

        Each is the member's tokenization of that one token's text; of all tokens together it spells the same bytes as
        `encode_continuation` of the whole text, but other ids wherever a token of the member reaches across. What has
        been tokenized once is kept.

        Parameters
        ----------
        ids : sequence of int
            Ids of the primary, one per row. EOS, other ids without text, and -1 append nothing.
        primary : int
            Whose ids these are.

        Returns
        -------
        list of tuple of tuple of int
            ``[len(ids)][M]``: per id, what each member appends; the primary its id.
        """
        known = self._appended.get(primary)
        if known is None:
            known = self._appended[self._check_member(primary)] = {NO_ID: ((),) * self.num_members}
        missing = [i for i in dict.fromkeys(ids) if i not in known]
        if missing:
            data = [self.token_bytes(primary, i) for i in missing]
            columns = [self._spelled(m, missing, data, primary) for m in range(self.num_members)]
            known.update(zip(missing, zip(*columns)))
        return [known[i] for i in ids]

    def _spelled(self, member: int, ids: list[int], data: list[bytes], primary: int) -> list[tuple[int, ...]]:
        """A member's ids of the texts of some ids of the primary."""
        if self.fingerprints[member] == self.fingerprints[primary]:
            return [(i,) if text else () for i, text in zip(ids, data)]
        return [tuple(own) for own in self.vocabularies[member].encode_continuation_batch(data)]

    def _stored(self) -> cache_files.Stored:
        return list(self.vocabularies), self._host_classes, self.class_ids.cpu().numpy()

    def _check_member(self, member: int) -> int:
        if not 0 <= member < self.num_members:
            raise ValueError(f"member must be from 0 to {self.num_members - 1}, got {member}")
        return member

    def __repr__(self) -> str:
        members = ", ".join(f"{v.kind} with {int(v.eligible.sum()):,} of {v.size:,} ids" for v in self.vocabularies)
        size = sum(t.numel() * t.element_size() for t in (self.table, self.class_ids, self.eligible))
        return (
            f"VocabAlignment({self.num_members} members: {members}; {self.num_classes:,} classes; "
            f"{size / 1e6:.1f} MB on {self.device})"
        )


def _open_all(
    tokenizers: Sequence[object], eos_token_ids: Sequence[Iterable[int] | int | None] | None, lossy: bool
) -> list[OpenedTokenizer]:
    if not isinstance(tokenizers, (list, tuple)):
        raise TypeError(f"tokenizers must be a list of tokenizers, got {type(tokenizers).__name__}")
    if not 1 <= len(tokenizers) <= MAX_MEMBERS:
        raise ValueError(f"tokenizers must be 1 to {MAX_MEMBERS} tokenizers, got {len(tokenizers)}")
    if eos_token_ids is None:
        eos_token_ids = [None] * len(tokenizers)
    if not isinstance(eos_token_ids, (list, tuple)):
        raise TypeError(f"eos_token_ids must be a list with one entry per member, got {type(eos_token_ids).__name__}")
    if len(eos_token_ids) != len(tokenizers):
        raise ValueError(f"eos_token_ids must have one entry per member, {len(tokenizers)}, got {len(eos_token_ids)}")
    return [
        OpenedTokenizer(t, eos_token_ids=e, lossy=lossy, name=f"tokenizers[{m}]")
        for m, (t, e) in enumerate(zip(tokenizers, eos_token_ids))
    ]


@no_garbage_collection()
def _read(opened: list[OpenedTokenizer]) -> list[Vocabulary]:
    """The vocabularies; members of one family share a tokenizer, which is read once."""
    read: dict[tuple[str, tuple[int, ...], int | None], Vocabulary] = {}
    for o in opened:
        if o.identity not in read:
            read[o.identity] = o.read()
    return [read[o.identity] for o in opened]
