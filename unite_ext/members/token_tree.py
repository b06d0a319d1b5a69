"""Many places of a text in one pass: the ids of several continuations as a tree on top of the cached ones.

Places of a text are not always prefixes of each other in a member's ids, because a longer text may be tokenized
otherwise. So the ids of all places form a tree whose paths begin at the end of the cached ids, or leave them earlier.
Every node is fed once, with its depth as its position, and attends to its ancestors only, cached ones and fed ones. The
logits at a place's last node are then those of running its ids alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass
class TokenTree:
    """The nodes of one row, parents before children."""

    base: int
    """How many ids are cached."""
    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    """Index of each node's parent, -1 for none."""
    depths: list[int] = field(default_factory=list)
    cached: list[int] = field(default_factory=list)
    """How many cached ids each node's path begins with."""
    columns: list[int] = field(default_factory=list)
    """The cache's column of each node, once they have been fed."""
    children: dict[tuple[int, int], int] = field(default_factory=dict)
    """(parent, id) to node; of those without a parent (-1 - depth, id)."""

    def add(self, ids: Sequence[int], depth: int | None = None) -> int:
        """Add the path of these ids, of which the first stands at `depth`, by default `base`; returns its last node."""
        depth = self.base if depth is None else depth
        node = -1 - depth
        for i in ids:
            child = self.children.get((node, i))
            if child is None:
                child = self.children[node, i] = len(self.tokens)
                self.tokens.append(i)
                self.parents.append(max(node, -1))
                self.depths.append(depth if node < 0 else self.depths[node] + 1)
                self.cached.append(depth)
            node = child
        return node

    def follow(self, ids: Sequence[int], depth: int | None = None) -> list[int]:
        """The nodes of the longest beginning of these ids, of which the first stands at `depth`, by default `base`."""
        nodes: list[int] = []
        node = -1 - (self.base if depth is None else depth)
        for i in ids:
            child = self.children.get((node, i))
            if child is None:
                break
            nodes.append(child)
            node = child
        return nodes

    @property
    def is_chain(self) -> bool:
        """Whether it is a single path."""
        return all(parent == node - 1 for node, parent in enumerate(self.parents))

    def ancestors(self) -> NDArray[np.bool_]:
        """[nodes, nodes]: whether the second is the first or an ancestor of it."""
        count = len(self.tokens)
        seen = np.eye(count, dtype=np.bool_)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                seen[node] |= seen[parent]
        return seen


def tree_mask(
    trees: Sequence[TokenTree],
    mask: NDArray[np.bool_],
    columns: Sequence[Sequence[int]],
    feed: int,
    window: int | None,
) -> NDArray[np.bool_]:
    """What every fed node attends to, [B, feed, width + feed].

    Parameters
    ----------
    trees : sequence of TokenTree
        One per row; its nodes stand at the right end of the `feed` new columns.
    mask : array, bool [B, width]
        Which columns of the cache are a row's own.
    columns : sequence of sequence of int
        Per row the columns of its cached ids, in the order of their positions.
    feed : int
        How many new columns there are.
    window : int, optional
        How many positions a node sees, itself included; None for all.
    """
    rows, width = mask.shape
    allowed = np.zeros((rows, feed, width + feed), dtype=np.bool_)
    at = np.arange(feed)
    allowed[:, at, width + at] = True  # also for what is fed to fill up: a query that sees nothing gives NaN
    for r, tree in enumerate(trees):
        count = len(tree.tokens)
        if not count:
            continue
        first = feed - count
        seen = tree.ancestors()
        past = np.broadcast_to(mask[r], (count, width))
        if window is not None or min(tree.cached) < len(columns[r]):
            own, cached = np.array(columns[r], dtype=np.int64), np.array(tree.cached)
            at = np.arange(len(own))[None, :]
            visible = at < cached[:, None]
            if window is not None:
                depths = np.array(tree.depths)
                seen = seen & (depths[:, None] - depths[None, :] < window)
                visible &= depths[:, None] - at < window
            past = np.zeros((count, width), dtype=np.bool_)
            past[:, own] = visible
        allowed[r, first:, :width] = past
        allowed[r, first:, width + first :] = seen
    return allowed
