"""Find the nearest text by edit distance, for as many texts as a vocabulary has. All pairs would take minutes.

Most tokens have a neighbour at distance 1, which is found by look-up. The others are compared in groups of similar
texts. A group is compared only with texts that can be nearer than the nearest found so far: the number of characters
that two texts have in common bounds their distance from below.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

_GROUP = 128  # texts with the same candidates; larger groups have more characters, so fewer candidates are excluded
_SEEDS = 1024  # targets that every text is compared with first, to have distances that exclude others
_PAIRS = 2**24  # distances computed at a time


def nearest_texts(queries: Sequence[str], targets: Sequence[str], *, progress: bool | None = None) -> NDArray[np.int64]:
    """Find the nearest target of every query by Levenshtein distance in characters.

    Parameters
    ----------
    queries, targets : sequence of str
        At least one target.
    progress : bool, optional
        Whether to show a progress bar; by default only on a terminal.

    Returns
    -------
    ndarray, int64 [len(queries)]
        Indices of targets; of equally near ones the lowest.
    """
    if not targets:
        raise ValueError("targets must hold at least one text, got none")
    distinct = list(dict.fromkeys(queries))
    found = _Nearest(distinct)
    off = None if progress is None else not progress
    with tqdm(total=len(distinct), desc="Nearest tokens by edit distance", unit="token", disable=off) as bar:
        _find_neighbours(found, targets)
        bar.update(int((found.distance <= 1).sum()))
        _compare(found, targets, bar)
    place = {text: i for i, text in enumerate(distinct)}
    return found.index[[place[text] for text in queries]]


class _Nearest:
    """The nearest target of every query so far: its distance and index."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts
        self.distance = np.full(len(texts), np.iinfo(np.int32).max, np.int64)
        self.index = np.full(len(texts), np.iinfo(np.int64).max, np.int64)

    def settle(self, query: int, distance: int, indices: list[int | None]) -> None:
        """Keep the first of several targets at the same distance, if it is nearer, or as near and earlier."""
        index = min((i for i in indices if i is not None), default=None)
        if index is not None and (distance, index) < (self.distance[query], self.index[query]):
            self.distance[query], self.index[query] = distance, index

    def update(self, rows: NDArray[np.int64], distance: NDArray[np.int64], index: NDArray[np.int64]) -> None:
        """Keep a target for each of several queries, if it is nearer, or as near and earlier."""
        better = (distance < self.distance[rows]) | ((distance == self.distance[rows]) & (index < self.index[rows]))
        self.distance[rows[better]], self.index[rows[better]] = distance[better], index[better]


def _by_length(texts: Sequence[str]) -> dict[int, list[int]]:
    lengths: dict[int, list[int]] = {}
    for i, text in enumerate(texts):
        lengths.setdefault(len(text), []).append(i)
    return lengths


def _find_neighbours(found: _Nearest, targets: Sequence[str]) -> None:
    """Find targets at distance 0 or 1 by look-up."""
    queries, lengths = _by_length(found.texts), _by_length(targets)
    characters = set().union(*found.texts, *targets)
    blank = next(c for c in map(chr, range(0x110000)) if c not in characters)  # stands for one replaced character
    for length, own in lengths.items():
        whole: dict[str, int] = {}
        replaced: dict[str, int] = {}
        shorter: dict[str, int] = {}
        same, longer, less = (queries.get(length + d, []) for d in (0, 1, -1))
        for i in own:
            text = targets[i]
            whole.setdefault(text, i)
            for j in range(length):
                if same:
                    replaced.setdefault(text[:j] + blank + text[j + 1 :], i)
                if less:
                    shorter.setdefault(text[:j] + text[j + 1 :], i)
        for q in same:
            text = found.texts[q]
            found.settle(q, 0, [whole.get(text)])
            found.settle(q, 1, [replaced.get(text[:j] + blank + text[j + 1 :]) for j in range(length)])
        for q in longer:
            text = found.texts[q]
            found.settle(q, 1, [whole.get(text[:j] + text[j + 1 :]) for j in range(length + 1)])
        for q in less:
            found.settle(q, 1, [shorter.get(found.texts[q])])


def _compare(found: _Nearest, targets: Sequence[str], bar: tqdm[None]) -> None:
    """Compare the other queries, group by group, with every target that may be nearest to one of the group."""
    left = np.flatnonzero(found.distance > 1)
    if not len(left):
        return
    texts = np.empty(len(targets), object)
    texts[:] = targets
    lengths = np.fromiter(map(len, targets), np.int64, len(targets))
    codes, starts = _codes(targets)
    _measure(found, left, texts, np.arange(min(_SEEDS, len(targets))))
    groups = _groups(found, left.tolist(), codes)
    counted = np.zeros(0x110000, bool)
    # In random order, so that the progress bar's estimate is right.
    for g in np.random.default_rng(0).permutation(len(groups)).tolist():
        rows = groups[g]
        own = np.unique(_codes([found.texts[q] for q in rows.tolist()])[0])
        counted[own] = True
        shared = np.add.reduceat(np.append(counted[codes], False), starts, dtype=np.int64) * (lengths > 0)
        counted[own] = False
        length = len(found.texts[rows[0]])
        # Every character of the longer text that the other text lacks costs one edit.
        least = np.maximum(lengths, length) - np.minimum(shared, length)
        worst = found.distance[rows].max()
        last = found.index[rows][found.distance[rows] == worst].max()
        candidates = np.flatnonzero((least < worst) | ((least == worst) & (np.arange(len(texts)) < last)))
        _measure(found, rows, texts, candidates[candidates >= _SEEDS])
        bar.update(len(rows))


def _groups(found: _Nearest, left: list[int], codes: NDArray[np.uint32]) -> list[NDArray[np.int64]]:
    """Split queries into groups of the same length, with the same distance so far and few different characters."""
    count = np.bincount(codes, minlength=0x110000)

    def likeness(query: int) -> tuple[int, int, list[tuple[int, str]]]:
        text = found.texts[query]
        return len(text), int(found.distance[query]), sorted((int(count[ord(c)]), c) for c in set(text))

    keys = {query: likeness(query) for query in left}
    groups = []
    for _, same in groupby(sorted(left, key=keys.__getitem__), key=lambda query: keys[query][:2]):
        rows = np.array(list(same))
        groups += np.array_split(rows, -(-len(rows) // _GROUP))
    return groups


def _measure(
    found: _Nearest, rows: NDArray[np.int64], texts: NDArray[np.object_], candidates: NDArray[np.int64]
) -> None:
    """Compute the distances of some queries to some targets, given in ascending order."""
    from rapidfuzz.distance import Levenshtein
    from rapidfuzz.process import cdist

    if not len(candidates):
        return
    strings = texts[candidates].tolist()
    own = [found.texts[q] for q in rows.tolist()]
    step = max(1, _PAIRS // len(candidates))
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        cutoff = int(found.distance[part].max())
        distances = cdist(
            own[start : start + step],
            strings,
            scorer=Levenshtein.distance,
            score_cutoff=cutoff,
            dtype=np.uint32,
            workers=-1,
        )
        nearest = distances.argmin(axis=1)  # the first of equals
        found.update(part, distances[np.arange(len(part)), nearest].astype(np.int64), candidates[nearest])


def _codes(texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """The characters of all texts in one array, and where each text begins."""
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    joined = "".join(texts).encode("utf-32-le", "surrogatepass")
    return np.frombuffer(joined, np.uint32), np.cumsum(lengths) - lengths
