"""One model's KV cache over a batch of rows that drop and append different numbers of ids.

A row's ids stand in the cache in order, but not side by side: a dropped id leaves its column behind as a *hole*,
0 in the 2-D attention mask, because other rows may need that column. Positions are passed explicitly, so holes
cost memory and time, and change nothing. They are removed, by gathering every row's columns to the right end, when
passes have read so many in vain that moving the cache would have cost as much: however often a member's ids change,
this costs at most about twice what the best moments would have. Models whose attention looks at columns instead of
positions (sliding windows) are gathered before every pass.

Every row takes part in a pass with its last C ids, C being the most that any row has to feed: rows with fewer feed some
again, so that all end in the last column and no row needs padding there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .forward import cache_argument

Change = Callable[[Tensor], Tensor]

REUSE = ("holes", "compact", "recompute")
MOVE_COST = 2.0  # of moving a column, in columns that a pass reads; from 0.5 to 4 it hardly matters (bench_holes.py)
MIN_HOLES = 64  # fewer are not worth the calls


class RaggedCache:
    """What a model has seen of every row, and the next logits.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A causal language model.
    rows : int
        B, the number of rows; they start empty.
    reuse : {"holes", "compact", "recompute"}
        How the model's cache may be reused, see `cache_probe.probe_reuse`.
    """

    def __init__(self, model: Any, rows: int, *, reuse: str) -> None:
        self.model = model
        self.reuse = reuse
        self.ids: list[list[int]] = [[] for _ in range(rows)]
        self._columns: list[list[int]] = [[] for _ in range(rows)]  # of the ids that are in the cache, ascending
        self._width = 0  # columns of the cache
        # [B, at least width]: which columns are a row's own. NumPy writes to a few places in a quarter of torch's time.
        self._mask = np.zeros((rows, 0), dtype=np.bool_)
        self._cache: Any = None
        self._read_in_vain = 0  # holes, summed over the passes since the last gathering

    def edit(self, row: int, drop: int, append: Sequence[int]) -> None:
        """Drop the last `drop` ids of a row and append others; nothing is computed yet."""
        ids = self.ids[row]
        if drop:
            del ids[len(ids) - drop :]
            if len(ids) < len(self._columns[row]):
                self._keep(row, len(ids))
        ids += append

    def select(self, rows: list[int]) -> None:
        """Keep only these rows, in this order."""
        self.ids = [self.ids[r] for r in rows]
        self._columns = [self._columns[r] for r in rows]
        self._mask = self._mask[rows]
        if self._cache is not None and self._width:
            index = torch.tensor(rows, device=self._first_keys().device)
            self._replace(lambda t: t.index_select(0, index.to(t.device)))

    def computed(self, row: int) -> int:
        """How many of a row's ids are in the cache."""
        return len(self._columns[row])

    def take(self, row: int, count: int) -> RaggedCache:
        """A cache of one row with a copy of the first `count` ids of a row here, all of them computed."""
        copy = RaggedCache(self.model, 1, reuse=self.reuse)
        copy.ids[0] = self.ids[row][:count]
        if count:
            index = torch.tensor(self._columns[row][:count], device="cpu")
            copy._columns[0] = list(range(count))
            copy._mask = np.ones((1, count), dtype=np.bool_)
            copy._width = count
            copy._cache = new_cache()
            for n, layer in enumerate(self._cache.layers):
                keys, values = (
                    t[row : row + 1].index_select(2, index.to(t.device)) for t in (layer.keys, layer.values)
                )
                copy._cache.update(keys, values, n)
        return copy

    def absorb(self, other: RaggedCache) -> None:
        """Append another cache's rows to one's own, both at the right end; the other one is used up."""
        width, own_rows, rows = max(self._width, other._width), len(self.ids), len(self.ids) + len(other.ids)
        mask = np.zeros((rows, width), dtype=np.bool_)
        for cache, at in ((self, 0), (other, own_rows)):
            shift = width - cache._width
            mask[at : at + len(cache.ids), shift:] = cache._mask[:, : cache._width]
            if shift:
                for columns in cache._columns:
                    columns[:] = [column + shift for column in columns]
        if width:
            self._cache = self._joined(other, width)
        self._mask, self._width = mask, width
        self.ids += other.ids
        self._columns += other._columns

    def _joined(self, other: RaggedCache, width: int) -> Any:
        """The keys and values of both, padded on the left."""
        holder = self if self._width else other
        if not self.ids:
            return other._cache

        def padded(cache: RaggedCache, n: int, name: str, like: Tensor) -> Tensor:
            rows = len(cache.ids)
            if not cache._width:
                return like.new_zeros((rows, like.shape[1], width, like.shape[3]))
            held = getattr(cache._cache.layers[n], name)
            if cache._width == width:
                return held
            return torch.cat([held.new_zeros((rows, held.shape[1], width - cache._width, held.shape[3])), held], dim=2)

        for n, layer in enumerate(holder._cache.layers):
            for name in ("keys", "values"):
                like = getattr(layer, name)
                setattr(layer, name, torch.cat([padded(self, n, name, like), padded(other, n, name, like)]))
        return holder._cache

    @torch.no_grad()
    def next_logits(self) -> Tensor:
        """[B, V]: every row's logits after its last id, in the model's dtype and on its device."""
        for row, ids in enumerate(self.ids):
            if not ids:
                raise ValueError(f"row {row} has no ids to run the model on")
        if self.reuse == "recompute":
            self._forget()
        # A row whose ids are all in the cache runs its last one again.
        feed = self._feed(max(max(1, len(ids) - len(columns)) for ids, columns in zip(self.ids, self._columns)))
        kept = [max(0, min(len(columns), len(ids) - feed)) for ids, columns in zip(self.ids, self._columns)]
        for r, n in enumerate(kept):
            if n < len(self._columns[r]):
                self._keep(r, n)
        self._trim()
        if self._has_to_move():
            self.compact()
        self._reserve(self._width + feed)
        return self._forward(feed, kept)

    def _feed(self, least: int) -> int:
        """How many ids of every row a pass takes, when some row has `least` to feed."""
        return least

    def _reserve(self, width: int) -> None:
        """Make room for so many columns."""

    def _forward(self, feed: int, kept: list[int]) -> Tensor:
        """Run the model on the last `feed` ids of every row, of which `kept` stay in the cache before them."""
        past, width = self._width, self._width + feed
        if width > self._mask.shape[1]:
            self._mask = np.pad(self._mask, ((0, 0), (0, max(width, 64))))  # doubling, to copy seldom
        self._mask[:, past:width] = True
        input_ids, positions = [], []
        for r, (ids, columns, n) in enumerate(zip(self.ids, self._columns, kept)):
            new = len(ids) - n
            padding = [0] * (feed - new)
            input_ids.append(padding + ids[n:])
            positions.append(padding + list(range(n, len(ids))))
            columns.extend(range(width - new, width))
            if padding:
                self._mask[r, past : width - new] = False
        logits = self._run(input_ids, positions, width)
        self._width = width
        if self.reuse == "recompute":
            self._forget()
        return logits

    def _run(self, input_ids: list[list[int]], positions: list[list[int]], width: int) -> Tensor:
        """One pass of the model, after which the cache has `width` columns."""
        device = self.model.device
        arguments: dict[str, Any] = {
            "input_ids": torch.tensor(input_ids, device="cpu").to(device, non_blocking=True),
            "position_ids": torch.tensor(positions, device="cpu").to(device, non_blocking=True),
        }
        if any(len(ids) < width for ids in self.ids):
            arguments["attention_mask"] = torch.from_numpy(self._mask[:, :width]).to(device, non_blocking=True)
        if self.reuse != "recompute":
            if self._cache is None:
                self._cache = new_cache()
            arguments[cache_argument(self.model)] = self._cache
        output = self.model(**arguments, use_cache=self.reuse != "recompute", logits_to_keep=1)
        return output.logits[:, -1]

    def _keep(self, row: int, count: int) -> None:
        """Let go of a row's columns after the first `count`."""
        columns = self._columns[row]
        self._mask[row, columns[count:]] = False
        del columns[count:]

    def _forget(self) -> None:
        self._cache = None
        self._width = 0
        for columns in self._columns:
            columns.clear()

    def _trim(self) -> None:
        """Give back the columns at the right end that no row uses."""
        used = max((columns[-1] + 1 for columns in self._columns if columns), default=0)
        if used < self._width:
            if used:
                self._replace(lambda t: t[..., :used, :])
                self._width = used
            else:
                self._forget()

    def _has_to_move(self) -> bool:
        if self._width == 0:
            return False
        if self.reuse == "compact":
            # Columns ascend, so these two make them the last ones without a gap.
            return any(
                columns and (columns[-1] != self._width - 1 or columns[0] != self._width - len(columns))
                for columns in self._columns
            )
        holes = self._width - max(map(len, self._columns))
        self._read_in_vain += holes
        return holes > MIN_HOLES and self._read_in_vain > MOVE_COST * self._width

    def compact(self) -> None:
        """Gather every row's columns to the right end."""
        self._read_in_vain = 0
        width = max(map(len, self._columns))
        if width == 0:
            self._forget()
            return
        index = torch.zeros(len(self._columns), width, dtype=torch.long, device="cpu")
        for r, columns in enumerate(self._columns):
            if columns:
                index[r, width - len(columns) :] = torch.tensor(columns, device="cpu")
        self._mask[:, :width] = False
        for r, columns in enumerate(self._columns):
            columns[:] = range(width - len(columns), width)
            self._mask[r, width - len(columns) : width] = True

        def gather(t: Tensor) -> Tensor:
            at = index.to(t.device)[:, None, :, None].expand(-1, t.shape[1], -1, t.shape[3])
            return t.gather(2, at)

        self._replace(gather)
        self._width = width

    def _first_keys(self) -> Tensor:
        return next(layer.keys for layer in self._cache.layers if layer.keys is not None)

    def _replace(self, change: Change) -> None:
        for layer in self._cache.layers:
            if getattr(layer, "keys", None) is not None and layer.keys.numel():
                layer.keys, layer.values = change(layer.keys), change(layer.values)


def new_cache() -> Any:
    """A cache of plain growing layers, whatever the model's default: window layers forget what a drop needs back."""
    from transformers import DynamicCache

    return DynamicCache()
