"""A ragged KV cache that gives the logits of many places of a text in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .attention import TAKES_BOOL
from .base import Place
from .few_rows import leaving_out
from .forward import uses_window, without_gradients
from .kv_cache import RaggedCache, new_cache
from .token_tree import Node, RowTree, is_chain, tree_mask

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


class TreeCache(RaggedCache):
    """`RaggedCache` with `place_logits`: the ids of all places form a tree, and every node is fed once.

    What was fed stays in the cache until the next pass: if a row has then grown along a path of the tree, its nodes on
    that path are its own, and the others become holes. So do ids that a row has dropped. A branch of which the caller
    says that it will be gone on from stays beside the row's own ids.
    """

    def __init__(self, model: PreTrainedModel, rows: int, *, reuse: str) -> None:
        super().__init__(model, rows, reuse=reuse)
        self.trees = [RowTree() for _ in range(rows)]
        self._passes = 0

    @without_gradients
    def place_logits(self, places: Sequence[Place], held: Sequence[Place] = ()) -> Tensor:
        """[P, V]: the logits after each place, in the model's dtype and on its device. No row's ids change.

        Parameters
        ----------
        places : sequence of (row, drop, append)
            Rows are named by their number in place of a request's key.
        held : sequence of (row, drop, append)
            What is cached of these stays so at least until the next pass.
        """
        self.adopt()
        ends = self._grow(places, held)
        feed = max(len(tree.fresh) for tree in self.trees)
        order = {node: n - len(tree.fresh) for tree in self.trees for n, node in enumerate(tree.fresh)}
        at = [feed + order[node] for node in ends]
        chained = self._make_chains(feed)
        self.trim()
        # Masks by position see through holes, which then only cost time; a 2-D mask of a window does not.
        if self.has_to_move() if chained else self.has_many_holes():
            self.compact()
        kept = sorted(set(at))
        index = {column: n for n, column in enumerate(kept)}
        rows, columns = [r for r, _, _ in places], [index[column] for column in at]
        read = np.zeros((len(self.ids), feed), dtype=np.bool_)
        for r, tree in enumerate(self.trees):
            read[r, feed - len(tree.fresh) :] = True
        asked = np.zeros((len(self.ids), len(kept)), dtype=np.bool_)
        asked[rows, columns] = True
        with leaving_out(read, asked):
            logits = self._feed_trees(feed, kept, masked=not chained)
        return logits[torch.tensor(rows, device=logits.device), torch.tensor(columns, device=logits.device)]

    def adopt(self) -> None:
        """Take the nodes that rows have grown along since they were fed as the rows' own."""
        for r, (tree, ids, columns) in enumerate(zip(self.trees, self.ids, self.columns)):
            if tree and len(columns) < len(ids):
                taken = tree.take(len(columns), ids[len(columns) :])
                columns += taken
                self.mask[r, taken] = True

    def held(self, row: int) -> list[int]:
        """See `RaggedCache.held`."""
        tree = self.trees[row]
        return sorted(self.columns[row] + tree.columns()) if tree else self.columns[row]

    def renumber(self, row: int, first: int) -> None:
        """See `RaggedCache.renumber`."""
        if not self.trees[row]:
            super().renumber(row, first)
            return
        to = {column: n for n, column in enumerate(self.held(row), first)}
        self.columns[row][:] = [to[column] for column in self.columns[row]]
        self.mask[row, self.columns[row]] = True
        self.trees[row].move(to)

    def edit(self, row: int, drop: int, append: Sequence[int]) -> None:
        """See `RaggedCache.edit`."""
        ids = self.ids[row]
        left = len(ids) - drop
        if left < len(self.columns[row]):
            self.trees[row].give(left, ids[left:], self.columns[row][left:])
        super().edit(row, drop, append)

    def _grow(self, places: Sequence[Place], held: Sequence[Place]) -> list[Node]:
        """Let every row's tree grow by its places; returns the last node of each. Its branches without a place go.

        A row without any place keeps all its branches and feeds nothing, but for one that has nothing in the cache:
        what fills it up has to see something.
        """
        self._passes += 1
        for r, drop, append in places:
            if not drop and not append:
                self._release_last(r)
        ends = [self.trees[r].add(*self._path(r, drop, append), self._passes) for r, drop, append in places]
        for r, drop, append in held:
            self.trees[r].keep(*self._path(r, drop, append), self._passes)
        for r, tree in enumerate(self.trees):
            if tree.fresh:
                tree.prune(self._passes)
            elif not self.columns[r]:
                tree.add(*self._path(r, 0, ()), self._passes)
        return ends

    def _path(self, r: int, drop: int, append: Sequence[int]) -> tuple[int, list[int]]:
        """Where a place leaves a row's own cached ids, and its ids from there on, one at least."""
        ids = self.ids[r]
        kept = len(ids) - drop
        depth = min(len(self.columns[r]), kept if append else kept - 1)
        return depth, [*ids[depth:kept], *append]

    def _release_last(self, r: int) -> None:
        """Let go of a row's last id, which is fed again, unless something that is cached follows it."""
        last = len(self.ids[r]) - 1
        if last < len(self.columns[r]) and not self.trees[r].has_after(last):
            self.keep(r, last)

    def _make_chains(self, feed: int) -> bool:
        """Whether all rows feed one path at their end, which needs no mask of its own.

        Shorter ones are padded where the model sees through holes, else made to begin earlier.
        """
        sees_through = self.reuse == "holes"
        if not sees_through and any(tree.columns() for tree in self.trees):
            return False
        lacks = []
        for tree, columns in zip(self.trees, self.columns):
            lack = 0 if sees_through else feed - len(tree.fresh)
            if lack > len(columns) or (tree.fresh and not is_chain(tree.fresh, len(columns))):
                return False
            lacks.append(lack)
        for r, lack in enumerate(lacks):
            if lack:
                first = len(self.columns[r]) - lack
                path = [node.token for node in self.trees[r].fresh]
                self.keep(r, first)
                self.trees[r].clear()
                self.trees[r].add(first, [*self.ids[r][first : first + lack], *path], self._passes)
        return True

    def _feed_trees(self, feed: int, kept: Sequence[int], *, masked: bool) -> Tensor:
        """One pass over all fresh nodes, which stand at the right end of the new columns.

        Returns
        -------
        Tensor [B, kept, V]
            The logits of these of the new columns.
        """
        past, width = self.width, self.width + feed
        if width > self.mask.shape[1]:
            self.mask = np.pad(self.mask, ((0, 0), (0, max(width, 64))))
        self.mask[:, past:width] = False
        input_ids, positions = [], []
        for tree in self.trees:
            padding = [0] * (feed - len(tree.fresh))
            input_ids.append(padding + [node.token for node in tree.fresh])
            positions.append(padding + [node.depth for node in tree.fresh])
            for column, node in enumerate(tree.fresh, past + len(padding)):
                node.column = column
        arguments: dict[str, Any] = {
            "input_ids": self.to_device(input_ids),
            "position_ids": self.to_device(positions),
        }
        if masked:
            arguments["attention_mask"] = self._tree_masks(feed)
        elif any(len(columns) + len(tree.fresh) < width for columns, tree in zip(self.columns, self.trees)):
            mask = self.mask[:, :width].copy()
            for r, tree in enumerate(self.trees):
                mask[r, width - len(tree.fresh) :] = True
            arguments["attention_mask"] = self.to_device(mask)
        if self.kv is None:
            self.kv = new_cache()
        arguments[self.cache_name] = self.kv
        # A head over a large vocabulary may cost more than all layers: it runs where somebody asked.
        wanted = torch.tensor(kept, device=self.device) if len(kept) < feed else feed
        logits = self.model(**arguments, use_cache=True, logits_to_keep=wanted).logits
        self.width = width
        for tree in self.trees:
            tree.fed()
        return logits

    def _tree_masks(self, feed: int) -> Tensor | dict[str, Tensor]:
        """The model's masks, one per type of its layers where it has several."""
        windows = layer_windows(self.model.config)
        masks: dict[int | None, Tensor] = {}
        fresh = [tree.fresh for tree in self.trees]
        for window in set(windows.values()):
            allowed = tree_mask(fresh, self.columns, self.width, feed, window)
            masks[window] = self._as_model_mask(torch.from_numpy(allowed)[:, None])
        if len(windows) == 1:
            return next(iter(masks.values()))
        return {kind: masks[window] for kind, window in windows.items()}

    def _as_model_mask(self, allowed: Tensor) -> Tensor:
        """[B, 1, Q, KV] on the model's device: bool for torch's attention, else 0 and the lowest number."""
        allowed = allowed.to(self.model.device, non_blocking=True)
        if getattr(self.model.config, "_attn_implementation", "") in TAKES_BOOL:
            return allowed
        lowest = torch.finfo(self.model.dtype).min
        return torch.zeros(allowed.shape, dtype=self.model.dtype, device=allowed.device).masked_fill(~allowed, lowest)

    def next_logits(self) -> Tensor:
        """See `RaggedCache.next_logits`. No branch stays."""
        self.adopt()
        for tree in self.trees:
            tree.clear()
        return super().next_logits()

    def select(self, rows: list[int]) -> None:
        """See `RaggedCache.select`."""
        self.adopt()
        super().select(rows)
        self.trees = [self.trees[r] for r in rows]

    def absorb(self, other: RaggedCache) -> None:
        """See `RaggedCache.absorb`. No branch stays."""
        self.adopt()
        for tree in self.trees:
            tree.clear()
        super().absorb(other)
        self.trees += [RowTree() for _ in other.ids]

    def take(self, row: int, count: int) -> RaggedCache:
        """See `RaggedCache.take`."""
        self.adopt()
        return super().take(row, count)

    def computed(self, row: int) -> int:
        """See `RaggedCache.computed`."""
        self.adopt()
        return super().computed(row)


def layer_windows(config: PreTrainedConfig) -> dict[str, int | None]:
    """Per type of a model's layers how many positions its attention sees, None for all."""
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ["sliding" if uses_window(config) else "full"])
    return {kind: window if "sliding" in kind else None for kind in kinds}
