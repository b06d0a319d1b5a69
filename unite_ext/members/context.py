"""What a transformers model has read of the running requests: prompts apart, then all in one ragged batch.

A new request's prompt runs in passes of its own, between the steps of the requests that are running: one long prompt
in chunks, several short ones side by side. All its ids but the last are read there; then its columns join the batch,
and its last id is fed along with the others' new ones. What a prompt has in common with a request that is there
already is copied from that request's columns; of several new prompts with the same beginning one runs first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..options import StepOptions
from ..step_parts import gather_logits, top_k_keys
from ..vocab.alignment import VocabAlignment
from .base import Context, Place, Scores
from .kv_cache import RaggedCache
from .row_order import RowOrder
from .tree_cache import TreeCache

MIN_SHARED = 32  # ids in common for which copying columns and waiting for another prompt is worth the calls


class LogitScores(Scores):
    """Scores whose logits are at hand.

    Parameters
    ----------
    logits : Tensor [N, V]
        float32, bfloat16 or float16.
    """

    def __init__(self, logits: Tensor) -> None:
        self._logits = logits

    @property
    def logits(self) -> Tensor:
        """See `Scores.logits`."""
        return self._logits

    def top_k(self, alignment: VocabAlignment, member: int, options: StepOptions) -> tuple[Tensor, Tensor]:
        """See `Scores.top_k`."""
        return top_k_keys(self._logits, alignment, member, k=options.k, score=options.score)

    def gather(self, ids: Tensor) -> Tensor:
        """See `Scores.gather`."""
        return gather_logits(self._logits, ids)

    def select(self, rows: Sequence[int]) -> LogitScores:
        """See `Scores.select`."""
        return LogitScores(self._logits[torch.tensor(rows, device=self._logits.device)])


@dataclass(eq=False)
class _Newcomer:
    """A request whose prompt is being read."""

    key: int
    ids: list[int]
    cache: RaggedCache | None = None
    """Holds what has been read, in row `row`; prompts that were read in one pass share it."""
    row: int = 0
    read: int = 0
    """How many ids have been read."""

    def __post_init__(self) -> None:
        self._apart = len(self.ids) - 1  # the last one is fed beside the others

    @property
    def rest(self) -> int:
        """How many are to be read before it can run beside others."""
        return self._apart - self.read

    def edit(self, drop: int, append: Sequence[int]) -> None:
        """Change its ids, as a gate does for members that it does not ask; more than the prompt is not read apart."""
        kept = len(self.ids) - drop
        self.ids[kept:] = append
        if self.cache is not None and kept < self.read:
            self.cache.edit(self.row, self.read - kept, [])
        self.read, self._apart = min(self.read, kept), min(self._apart, kept)


class TransformersContext(Context):
    """The context of a `Member`.

    Parameters
    ----------
    new_batch : callable
        Makes an empty cache for running requests.
    new_row : callable
        Makes a cache of one empty row, for a prompt.
    reads_apart : bool
        Whether prompts are read apart; not where every pass recomputes everything.
    """

    def __init__(
        self, new_batch: Callable[[], RaggedCache], new_row: Callable[[], RaggedCache], *, reads_apart: bool
    ) -> None:
        self._new_batch = new_batch
        self._new_row = new_row
        self._reads_apart = reads_apart
        self._batch = new_batch()
        self._order: list[int] = []  # the requests of the batch's rows
        self._row_of: dict[int, int] = {}  # of those that have not left
        self._next_order = RowOrder()  # of the rows at the next pass, without those that have left
        self._newcomers: dict[int, _Newcomer] = {}
        self._unread: set[int] = set()  # newcomers that may run at once because nobody is kept waiting
        self._held: list[Place] = []

    def join(self, key: int, ids: Sequence[int]) -> None:
        """See `Context.join`."""
        self._newcomers[key] = _Newcomer(key, list(ids))

    def leave(self, key: int) -> None:
        """See `Context.leave`. Rows are given back at the next pass, all at once, or with the last of them."""
        self._unread.discard(key)
        self._newcomers.pop(key, None)
        self._row_of.pop(key, None)
        self._next_order.remove(key)
        if not self._row_of and self._batch.ids:
            self._batch = self._new_batch()
            self._order = []

    def edit(self, key: int, drop: int, append: Sequence[int]) -> None:
        """See `Context.edit`."""
        row = self._row_of.get(key)
        if row is None:
            self._newcomers[key].edit(drop, append)
        else:
            self._batch.edit(row, drop, append)

    def lengths(self, keys: Sequence[int]) -> list[int]:
        """See `Context.lengths`."""
        if self._newcomers:
            return [len(self.ids(key)) for key in keys]
        ids, row_of = self._batch.ids, self._row_of
        return [len(ids[row_of[key]]) for key in keys]

    def ids(self, key: int) -> list[int]:
        """See `Context.ids`."""
        row = self._row_of.get(key)
        return self._newcomers[key].ids if row is None else self._batch.ids[row]

    def ready(self, key: int) -> bool:
        """See `Context.ready`."""
        newcomer = self._newcomers.get(key)
        return newcomer is None or not self._reads_apart or key in self._unread or newcomer.rest <= 0

    def prefill(self, budget: int) -> None:
        """See `Context.prefill`. One pass at most."""
        if not self._newcomers or not self._reads_apart:
            return
        self._unread = set()
        if self._may_run_unread(budget):
            self._unread = set(self._newcomers)
            return
        pack = self._choose(budget)
        if not pack:
            return
        cache = self._shared_cache(pack)
        for row, newcomer in enumerate(pack):
            end = newcomer.read + min(newcomer.rest, budget)
            cache.edit(row, 0, newcomer.ids[newcomer.read : end])
            newcomer.read = end
        cache.next_logits()

    def _may_run_unread(self, budget: int) -> bool:
        """Whether the newcomers are the first and few enough for one pass, and no two begin alike."""
        newcomers = list(self._newcomers.values())
        if self._row_of or any(n.read for n in newcomers):
            return False
        if len(newcomers) * max(len(n.ids) for n in newcomers) > budget:
            return False
        return not any(common_length(a.ids, b.ids) >= MIN_SHARED for a, b in pairwise(newcomers))

    def _choose(self, budget: int) -> list[_Newcomer]:
        """The prompts of the next pass: the oldest, and others that fit beside it and need nothing it will have."""
        pack: list[_Newcomer] = []
        widest = 0
        for newcomer in self._newcomers.values():
            if newcomer.rest <= 0:
                continue
            if newcomer.cache is None:
                source, count = self._source(newcomer)
                if any(common_length(newcomer.ids, n.ids) >= count + MIN_SHARED for n in pack):
                    continue  # once that one has been read, its columns are copied
                newcomer.cache = self._new_row() if source is None else source[0].take(source[1], count)
                newcomer.row, newcomer.read = 0, count
            if newcomer.rest <= 0 or (pack and (len(pack) + 1) * max(widest, newcomer.rest) > budget):
                continue
            pack.append(newcomer)
            widest = max(widest, newcomer.rest)
            if widest >= budget:
                break
        return pack

    def _source(self, newcomer: _Newcomer) -> tuple[tuple[RaggedCache, int] | None, int]:
        """The cache and row that hold the longest beginning of a prompt, and how many of its ids that is."""
        held = [(self._batch, row) for row in self._row_of.values()]
        held += [(n.cache, n.row) for n in self._newcomers.values() if n.cache is not None]
        best, most = None, MIN_SHARED - 1
        for cache, row in held:
            count = min(common_length(newcomer.ids, cache.ids[row]), cache.computed(row), len(newcomer.ids) - 1)
            if count > most:
                best, most = (cache, row), count
        return best, 0 if best is None else most

    def _shared_cache(self, pack: list[_Newcomer]) -> RaggedCache:
        """One cache with a row for each prompt, in this order."""
        caches = [self._own_cache(newcomer) for newcomer in pack]
        for cache in caches[1:]:
            caches[0].absorb(cache)
        for row, newcomer in enumerate(pack):
            newcomer.cache, newcomer.row = caches[0], row
        return caches[0]

    def _own_cache(self, newcomer: _Newcomer) -> RaggedCache:
        """A cache of this prompt alone."""
        if newcomer.cache is None:
            return self._new_row()
        if len(newcomer.cache.ids) == 1:
            return newcomer.cache
        return newcomer.cache.take(newcomer.row, newcomer.read)

    def evaluate(self, keys: Sequence[int]) -> LogitScores:
        """See `Context.evaluate`. Every request of the batch takes part in the pass, asked for or not."""
        self._settle(keys)
        scores = LogitScores(self._batch.next_logits())
        if list(keys) == self._order:
            return scores
        return scores.select([self._row_of[key] for key in keys])

    def hold(self, places: Sequence[Place]) -> None:
        """See `Context.hold`."""
        self._held = list(places)

    def evaluate_places(self, places: Sequence[Place]) -> Scores:
        """See `Context.evaluate_places`. In one pass where the model gives trees."""
        batch = self._batch
        if not isinstance(batch, TreeCache):
            return super().evaluate_places(places)
        self._settle([key for key, _, _ in places])
        held, self._held = self._held, []
        row_of = self._row_of
        return LogitScores(
            batch.place_logits(
                [(row_of[key], drop, append) for key, drop, append in places],
                held=[(row_of[key], drop, append) for key, drop, append in held if key in row_of],
            )
        )

    def _settle(self, keys: Sequence[int]) -> None:
        """Let go of those that have left, and take in newcomers that are asked for."""
        if len(self._row_of) < len(self._order):
            self._order = list(self._next_order)
            self._batch.select([self._row_of[key] for key in self._order])
            self._row_of = {key: row for row, key in enumerate(self._order)}
        if not self._newcomers:
            return
        for cache, newcomers in self._arrivals(keys):
            for row, newcomer in enumerate(newcomers):
                cache.edit(row, 0, newcomer.ids[len(cache.ids[row]) :])
                self._row_of[newcomer.key] = len(self._order)
                self._order.append(newcomer.key)
                self._unread.discard(newcomer.key)
            self._batch.absorb(cache)
        self._next_order.add(self._order)

    def _arrivals(self, keys: Sequence[int]) -> list[tuple[RaggedCache, list[_Newcomer]]]:
        """The newcomers that are asked for, with the caches that hold them and nobody else."""
        arriving = [self._newcomers.pop(key) for key in keys if key in self._newcomers]
        together: dict[int, list[_Newcomer]] = {}
        for newcomer in arriving:
            together.setdefault(id(newcomer.cache or newcomer), []).append(newcomer)
        arrivals = []
        for newcomers in together.values():
            cache = newcomers[0].cache
            if cache is not None and [n.row for n in newcomers] == list(range(len(cache.ids))):
                arrivals.append((cache, newcomers))
            else:
                arrivals += [(self._own_cache(n), [n]) for n in newcomers]
        return arrivals


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids two lists have in common at their beginning."""
    equal, different = 0, min(len(a), len(b))
    if a[:different] == b[:different]:
        return different
    while different - equal > 1:  # slices are compared in C: halving beats walking
        middle = (equal + different) // 2
        if a[equal:middle] == b[equal:middle]:
            equal = middle
        else:
            different = middle
    return equal
