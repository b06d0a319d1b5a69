"""A ragged KV cache that gives the logits of many places of a text in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .base import Place
from .forward import uses_window
from .kv_cache import RaggedCache, new_cache
from .token_tree import TokenTree, tree_mask

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


class TreeCache(RaggedCache):
    """`RaggedCache` with `place_logits`: the ids of all places form a tree, and every node is fed once.

    What was fed stays in the cache until the next pass: if a row has then grown along a path of the tree, its nodes on
    that path are kept, and the others become holes.
    """

    def __init__(self, model: PreTrainedModel, rows: int, *, reuse: str) -> None:
        super().__init__(model, rows, reuse=reuse)
        self.trees: dict[int, TokenTree] = {}

    @torch.no_grad()
    def place_logits(self, places: Sequence[Place]) -> Tensor:
        """[P, V]: the logits after each place, in the model's dtype and on its device. No row's ids change.

        Rows are named by their number in place of a request's key.
        """
        self.adopt()
        trees, ends = self._grow(places)
        feed = max(len(tree.tokens) for tree in trees)
        chained = self._as_chains(trees, feed)
        if chained is not None:
            ends = [(r, node + len(chained[r].tokens) - len(trees[r].tokens)) for r, node in ends]
            trees = chained
            for r, tree in enumerate(trees):
                if tree.base < len(self.columns[r]):
                    self.keep(r, tree.base)
        self.trim()
        # Masks by position see through holes, which then only cost time; a 2-D mask of a window does not.
        if (chained is not None or self.reuse == "holes") and self.has_to_move():
            self.compact()
        at = [feed - len(trees[r].tokens) + node for r, node in ends]
        kept = sorted(set(at))
        logits = self._feed_trees(trees, feed, kept, masked=chained is None)
        self.trees = dict(enumerate(trees))
        place_of = {column: n for n, column in enumerate(kept)}
        rows = torch.tensor([r for r, _ in ends], device=logits.device)
        return logits[rows, torch.tensor([place_of[column] for column in at], device=logits.device)]

    def adopt(self) -> None:
        """Keep the nodes that rows have grown along since they were fed; let go of the others."""
        if not self.trees:
            return
        trees, self.trees = self.trees, {}
        for r, tree in trees.items():
            self.mask[r, tree.columns] = False
            cached = len(self.columns[r])
            kept = [tree.columns[node] for node in tree.follow(self.ids[r][cached:], cached)]
            self.columns[r] += kept
            self.mask[r, kept] = True

    def _grow(self, places: Sequence[Place]) -> tuple[list[TokenTree], list[tuple[int, int]]]:
        """Every row's tree, and per place its row and last node. A row without a place feeds its last ids."""
        # Where the last id has to be fed again, because it is cached and asked about, other paths go on from there.
        beyond = {r for r, _, _ in places} - {r for r, drop, append in places if not drop and not append}
        trees = [
            TokenTree(len(columns) if r in beyond else min(len(columns), len(ids) - 1))
            for r, (columns, ids) in enumerate(zip(self.columns, self.ids))
        ]
        ends = [(r, self._add(r, trees[r], drop, append)) for r, drop, append in places]
        for r, tree in enumerate(trees):
            if not tree.tokens:
                self._add(r, tree, 0, [])
        return trees, ends

    def _add(self, r: int, tree: TokenTree, drop: int, append: Sequence[int]) -> int:
        """Add a place to a row's tree: what is not cached of its ids, the last one in any case. Returns its node."""
        ids = self.ids[r]
        kept = len(ids) - drop
        depth = min(tree.base, kept if append else kept - 1)
        return tree.add([*ids[depth:kept], *append], depth)

    def _as_chains(self, trees: Sequence[TokenTree], feed: int) -> list[TokenTree] | None:
        """The same paths, all of one length, which need no mask of their own: shorter ones begin earlier.

        None where a row's tree is no single path from the end of its cached ids or the last of them, or too short.
        """
        chains = []
        for r, tree in enumerate(trees):
            first = tree.depths[0]
            lack = feed - len(tree.tokens)
            if not tree.is_chain or first < len(self.columns[r]) - 1 or lack > first:
                return None
            chain = TokenTree(first - lack)
            chain.add([*self.ids[r][first - lack : first], *tree.tokens])
            chains.append(chain)
        return chains

    def _feed_trees(self, trees: Sequence[TokenTree], feed: int, kept: Sequence[int], *, masked: bool) -> Tensor:
        """One pass over all nodes, which stand at the right end of the new columns.

        Returns
        -------
        Tensor [B, kept, V]
            The logits of these of the new columns.
        """
        past, width = self.width, self.width + feed
        if width > self.mask.shape[1]:
            self.mask = np.pad(self.mask, ((0, 0), (0, max(width, 64))))
        input_ids, positions = [], []
        for r, tree in enumerate(trees):
            padding = [0] * (feed - len(tree.tokens))
            input_ids.append(padding + tree.tokens)
            positions.append(padding + tree.depths)
            tree.columns = list(range(past + len(padding), width))
            self.mask[r, past:width] = False
        arguments: dict[str, Any] = {
            "input_ids": self.to_device(input_ids),
            "position_ids": self.to_device(positions),
        }
        if masked:
            arguments["attention_mask"] = self._tree_masks(trees, feed)
        elif any(len(columns) + feed < width for columns in self.columns):
            for r, tree in enumerate(trees):
                self.mask[r, tree.columns] = True
            arguments["attention_mask"] = self.to_device(self.mask[:, :width])
        if self.kv is None:
            self.kv = new_cache()
        arguments[self.cache_name] = self.kv
        # A head over a large vocabulary may cost more than all layers: it runs where somebody asked.
        wanted = torch.tensor(kept, device=self.device) if len(kept) < feed else feed
        logits = self.model(**arguments, use_cache=True, logits_to_keep=wanted).logits
        self.width = width
        return logits

    def _tree_masks(self, trees: Sequence[TokenTree], feed: int) -> Tensor | dict[str, Tensor]:
        """The model's masks, one per type of its layers where it has several."""
        windows = layer_windows(self.model.config)
        masks: dict[int | None, Tensor] = {}
        for window in set(windows.values()):
            allowed = tree_mask(trees, self.mask[:, : self.width], self.columns, feed, window)
            masks[window] = self._as_model_mask(torch.from_numpy(allowed)[:, None])
        if len(windows) == 1:
            return next(iter(masks.values()))
        return {kind: masks[window] for kind, window in windows.items()}

    def _as_model_mask(self, allowed: Tensor) -> Tensor:
        """[B, 1, Q, KV] on the model's device: bool for torch's attention, else 0 and the lowest number."""
        allowed = allowed.to(self.model.device, non_blocking=True)
        if getattr(self.model.config, "_attn_implementation", "") == "sdpa":
            return allowed
        lowest = torch.finfo(self.model.dtype).min
        return torch.zeros(allowed.shape, dtype=self.model.dtype, device=allowed.device).masked_fill(~allowed, lowest)

    def next_logits(self) -> Tensor:
        """See `RaggedCache.next_logits`."""
        self.adopt()
        return super().next_logits()

    def select(self, rows: list[int]) -> None:
        """See `RaggedCache.select`."""
        self.adopt()
        super().select(rows)

    def absorb(self, other: RaggedCache) -> None:
        """See `RaggedCache.absorb`."""
        self.adopt()
        super().absorb(other)

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
