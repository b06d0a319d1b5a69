"""Many places of a text: the ids of several continuations as a tree that branches off a row's own ids.

Places of a text are not always prefixes of each other in a member's ids, because a longer text may be tokenized
otherwise. So the ids of all places form a tree whose paths begin at the end of the cached ids, or leave them earlier.
Every node is fed once, with its depth as its position, and attends to its ancestors only, cached ones and fed ones. The
logits at a place's last node are then those of running its ids alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray


class Node:
    """One id in one context.

    Attributes
    ----------
    token, depth : int
        The id, and its position in the row.
    column : int
        Of the cache; -1 until it has been fed.
    parent : Node
        The id before it. None for a row's own ids, which are nodes only where something branches off.
    asked : int
        The number of the pass that has last gone through it.
    """

    __slots__ = ("asked", "children", "column", "depth", "parent", "token")

    def __init__(self, token: int, depth: int, parent: Node | None = None) -> None:
        self.token = token
        self.depth = depth
        self.parent = parent
        self.column = -1
        self.asked = 0
        self.children: dict[int, Node] = {}

    def adopt(self, children: dict[int, Node]) -> None:
        """Take over another node's children, but for ids that follow already."""
        for token, child in children.items():
            if self.children.setdefault(token, child) is child:
                child.parent = self


class RowTree:
    """What branches off one row's own cached ids.

    Attributes
    ----------
    fresh : list of Node
        What the next pass has to feed, parents before children.
    """

    def __init__(self) -> None:
        self.fresh: list[Node] = []
        self._roots: dict[int, Node] = {}  # by how many of the row's own ids stand before
        self._again: dict[Node, Node] = {}  # cached nodes that are asked about, and those fed in their place

    def __bool__(self) -> bool:
        """Whether anything branches off."""
        return bool(self._roots)

    def nodes(self) -> Iterator[Node]:
        """All nodes, parents before children."""
        left = [child for root in self._roots.values() for child in root.children.values()]
        while left:
            node = left.pop()
            yield node
            left += node.children.values()

    def columns(self) -> list[int]:
        """The columns of all nodes that have one."""
        return [node.column for node in self.nodes() if node.column >= 0]

    def clear(self) -> None:
        """Let go of all nodes."""
        self._roots, self.fresh, self._again = {}, [], {}

    def add(self, depth: int, ids: Sequence[int], asked: int) -> Node:
        """Go along these ids from after the row's first `depth`, and return the last node; what is not there is fresh.

        A pass gives logits where it feeds: the last node is fresh in any case.
        """
        node = self._roots.get(depth)
        if node is None:
            node = self._roots[depth] = Node(-1, depth - 1)
        for token in ids:
            child = node.children.get(token)
            if child is None:
                child = node.children[token] = self._feed(token, node)
            child.asked = asked
            node = child
        if node.column < 0:
            return node
        again = self._again.get(node)
        if again is None:
            assert node.parent is not None
            again = self._again[node] = self._feed(node.token, node.parent)
        return again

    def _feed(self, token: int, parent: Node) -> Node:
        node = Node(token, parent.depth + 1, parent)
        self.fresh.append(node)
        return node

    def keep(self, depth: int, ids: Sequence[int], asked: int) -> None:
        """Go along these ids from after the row's first `depth`, as far as they are there."""
        node = self._roots.get(depth)
        for token in ids:
            node = None if node is None else node.children.get(token)
            if node is None:
                return
            node.asked = asked

    def prune(self, asked: int) -> None:
        """Let go of the nodes that the pass of this number has not gone through."""
        left = list(self._roots.values())
        while left:
            node = left.pop()
            node.children = {token: child for token, child in node.children.items() if child.asked == asked}
            left += node.children.values()
        self._roots = {depth: root for depth, root in self._roots.items() if root.children}

    def fed(self) -> None:
        """Note that the fresh nodes have been fed."""
        self.fresh, self._again = [], {}

    def take(self, depth: int, ids: Sequence[int]) -> list[int]:
        """Let the row have the cached nodes that are its own ids from `depth` on; returns their columns."""
        columns: list[int] = []
        root = self._roots.get(depth)
        for token in ids:
            child = None if root is None else root.children.get(token)
            if root is None or child is None or child.column < 0:
                break
            del root.children[token]
            if not root.children:
                del self._roots[depth]
            columns.append(child.column)
            depth, child.parent = depth + 1, None
            root = self._roots[depth] = child
        if root is not None and not root.children:
            del self._roots[depth]
        return columns

    def give(self, depth: int, ids: Sequence[int], columns: Sequence[int]) -> None:
        """Make a branch of ids that were the row's own from `depth` on, and stand in these columns."""
        parent = self._roots.get(depth)
        if parent is None:
            parent = self._roots[depth] = Node(-1, depth - 1)
        for n, (token, column) in enumerate(zip(ids, columns), depth):
            node = self._roots.pop(n + 1, None) or Node(token, n)
            node.token, node.parent, node.column = token, parent, column
            other = parent.children.get(token)
            if other is not None:
                node.adopt(other.children)
            parent.children[token] = node
            parent = node

    def has_after(self, depth: int) -> bool:
        """Whether anything branches off after more than `depth` of the row's ids."""
        return any(own > depth for own in self._roots)

    def move(self, to: dict[int, int]) -> None:
        """Note that the cache's columns have moved."""
        for node in self.nodes():
            node.column = to.get(node.column, -1)


def is_chain(nodes: Sequence[Node], depth: int) -> bool:
    """Whether these nodes are one path, whose first follows a row's first `depth` ids."""
    first = nodes[0].parent
    assert first is not None
    if first.parent is not None or nodes[0].depth != depth:
        return False
    return all(node.parent is before for before, node in pairwise(nodes))


def tree_mask(
    fresh: Sequence[Sequence[Node]],
    columns: Sequence[Sequence[int]],
    width: int,
    feed: int,
    window: int | None,
) -> NDArray[np.bool_]:
    """What every fed node attends to, [B, feed, width + feed].

    Parameters
    ----------
    fresh : sequence of sequence of Node
        Per row those that are fed, parents before children; they stand at the right end of the `feed` new columns.
    columns : sequence of sequence of int
        Per row the columns of its own cached ids, in the order of their positions.
    width : int
        How many columns the cache had before.
    feed : int
        How many new columns there are.
    window : int, optional
        How many positions a node sees, itself included; None for all.
    """
    allowed = np.zeros((len(fresh), feed, width + feed), dtype=np.bool_)
    at = np.arange(feed)
    allowed[:, at, width + at] = True  # also for what is fed to fill up: a query that sees nothing gives NaN
    for r, nodes in enumerate(fresh):
        own = np.array(columns[r], dtype=np.int64)
        seen: dict[Node, NDArray[np.int64]] = {}
        for query, node in enumerate(nodes, feed - len(nodes)):
            before = None if node.parent is None else seen.get(node.parent)
            if before is None:
                before = _line(node, own)
            line = seen[node] = np.append(before, node.column)
            allowed[r, query, line if window is None else line[-window:]] = True
    return allowed


def _line(node: Node, own: NDArray[np.int64]) -> NDArray[np.int64]:
    """The columns of all ids before a node, of which none is fed in the same pass."""
    branch: list[int] = []
    before = node.parent
    while before is not None and before.parent is not None:
        branch.append(before.column)
        before = before.parent
    depth = node.depth - len(branch)
    return np.concatenate([own[:depth], np.array(branch[::-1], dtype=np.int64)])
