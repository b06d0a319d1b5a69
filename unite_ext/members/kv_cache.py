"""One model's KV cache over a batch of rows that drop and append different numbers of ids.

A row's ids stand in the cache in order, but not side by side: a dropped id leaves its column behind as a *hole*,
0 in the 2-D attention mask, because other rows may need that column. Positions are passed explicitly, so holes
cost memory and time, and change nothing. They are removed, by gathering every row's columns to the right end, when
passes have read so many in vain that moving the cache would have cost as much: however often a member's ids change,
this costs at most about twice what the best moments would have. Models whose attention looks at columns instead of
positions (sliding windows) are gathered before every pass.

Every row takes part in a pass with C columns, C being the most ids that any row has to feed. Rows with fewer are padded
on the left, which makes holes. Models that do not see through these feed some ids again instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .few_rows import leaving_out
from .forward import cache_argument, without_gradients

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

Change = Callable[[Tensor], Tensor]

REUSE = ("holes", "compact", "recompute")
MOVE_COST = 2.0  # of moving a column, in columns that a pass reads; from 0.5 to 4 it hardly matters (bench_holes.py)
MIN_HOLES = 64  # fewer are not worth the calls
FEW_COLUMNS = 8  # so many are written one by one in the time of one call with a list of them


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

    def __init__(self, model: PreTrainedModel, rows: int, *, reuse: str) -> None:
        self.model = model
        self.reuse = reuse
        self.ids: list[list[int]] = [[] for _ in range(rows)]
        self.columns: list[list[int]] = [[] for _ in range(rows)]  # of the ids that are in the cache, ascending
        self.width = 0  # columns of the cache
        # [B, at least width]: which columns are a row's own. NumPy writes to a few places in a quarter of torch's time.
        self.mask = np.zeros((rows, 0), dtype=np.bool_)
        self.kv: Any = None
        self._read_in_vain = 0  # holes, summed over the passes since the last gathering

    def edit(self, row: int, drop: int, append: Sequence[int]) -> None:
        """Drop the last `drop` ids of a row and append others; nothing is computed yet."""
        ids = self.ids[row]
        if drop:
            del ids[len(ids) - drop :]
            if len(ids) < len(self.columns[row]):
                self.keep(row, len(ids))
        ids += append

    def select(self, rows: list[int]) -> None:
        """Keep only these rows, in this order. Little is copied where they stay, but for gaps that later ones fill."""
        self.ids = [self.ids[r] for r in rows]
        self.columns = [self.columns[r] for r in rows]
        self.mask = self.mask[rows]
        if self.kv is not None and self.width:
            for layer in self.kv.layers:
                layer.keep_rows(rows)

    def computed(self, row: int) -> int:
        """How many of a row's ids are in the cache."""
        return len(self.columns[row])

    def take(self, row: int, count: int) -> RaggedCache:
        """A cache of one row with a copy of the first `count` ids of a row here, all of them computed."""
        copy = RaggedCache(self.model, 1, reuse=self.reuse)
        copy.ids[0] = self.ids[row][:count]
        if count:
            index = torch.tensor(self.columns[row][:count], device="cpu")
            copy.columns[0] = list(range(count))
            copy.mask = np.ones((1, count), dtype=np.bool_)
            copy.width = count
            copy.kv = new_cache()
            for n, layer in enumerate(self.kv.layers):
                keys, values = (
                    t[row : row + 1].index_select(2, index.to(t.device)) for t in (layer.keys, layer.values)
                )
                copy.kv.update(keys, values, n)
        return copy

    def absorb(self, other: RaggedCache) -> None:
        """Append another cache's rows to one's own, both at the right end; the other one is used up.

        Where it is no wider, its rows alone are copied.
        """
        width, own_rows, rows = max(self.width, other.width), len(self.ids), len(self.ids) + len(other.ids)
        mask = np.zeros((rows, width), dtype=np.bool_)
        for cache, at in ((self, 0), (other, own_rows)):
            shift = width - cache.width
            mask[at : at + len(cache.ids), shift:] = cache.mask[:, : cache.width]
            if shift:
                for columns in cache.columns:
                    columns[:] = [column + shift for column in columns]
        if width:
            self.kv = self._joined(other, width)
        self.mask, self.width = mask, width
        self.ids += other.ids
        self.columns += other.columns

    def _joined(self, other: RaggedCache, width: int) -> Cache:
        """The keys and values of both, padded on the left."""
        if not self.ids:
            return other.kv
        if other.width <= self.width:
            theirs = other.kv.layers if other.width else [None] * len(self.kv.layers)
            for own, new in zip(self.kv.layers, theirs):
                own.add_rows(len(other.ids), getattr(new, "keys", None), getattr(new, "values", None))
            return self.kv
        holder = self if self.width else other
        for n, layer in enumerate(holder.kv.layers):
            for name in ("keys", "values"):
                new = getattr(other.kv.layers[n], name)
                room = new.new_zeros((len(self.ids), new.shape[1], width - self.width, new.shape[3]))
                old = [room, getattr(self.kv.layers[n], name)] if self.width else [room]
                setattr(layer, name, torch.cat([torch.cat(old, dim=2), new]))
        return holder.kv

    @without_gradients
    def next_logits(self) -> Tensor:
        """[B, V]: every row's logits after its last id, in the model's dtype and on its device."""
        if self.reuse == "recompute":
            self._forget()
        least = 1  # a row whose ids are all in the cache runs its last one again
        for row, (ids, columns) in enumerate(zip(self.ids, self.columns)):
            if not ids:
                raise ValueError(f"row {row} has no ids to run the model on")
            least = max(least, len(ids) - len(columns))
        feed = self._feed(least)
        kept = []
        for r, (ids, columns) in enumerate(zip(self.ids, self.columns)):
            fed = feed
            if self.reuse == "holes":  # what this row has less than the one with the most stays empty
                fed += max(1, len(ids) - len(columns)) - least
            n = max(0, len(ids) - fed)
            if n < len(columns):
                self.keep(r, n)
            kept.append(len(columns))
        self.trim()
        if self.has_to_move():
            self.compact()
        self._reserve(self.width + feed)
        return self._forward(feed, kept)

    def _feed(self, least: int) -> int:
        """How many ids of every row a pass takes, when some row has `least` to feed."""
        return least

    def _reserve(self, width: int) -> None:
        """Make room for so many columns."""

    def _forward(self, feed: int, kept: list[int]) -> Tensor:
        """Run the model on the last `feed` ids of every row, of which `kept` stay in the cache before them."""
        past, width = self.width, self.width + feed
        if width > self.mask.shape[1]:
            self.mask = np.pad(self.mask, ((0, 0), (0, max(width, 64))))  # doubling, to copy seldom
        self.mask[:, past:width] = True
        input_ids, positions, padded = [], [], False
        for r, (ids, columns, n) in enumerate(zip(self.ids, self.columns, kept)):
            new, own, places = len(ids) - n, ids[n:], list(range(n, len(ids)))
            columns.extend(range(width - new, width))
            if new < feed:
                padding, padded = [0] * (feed - new), True
                own, places = padding + own, padding + places
                self.mask[r, past : width - new] = False
            input_ids.append(own)
            positions.append(places)
        if padded:
            with leaving_out(self.mask[:, past:width]):
                logits = self._run(input_ids, positions, width)
        else:
            logits = self._run(input_ids, positions, width)
        self.width = width
        if self.reuse == "recompute":
            self._forget()
        return logits

    def _run(self, input_ids: list[list[int]], positions: list[list[int]], width: int) -> Tensor:
        """One pass of the model, after which the cache has `width` columns."""
        arguments: dict[str, Any] = {
            "input_ids": self.to_device(input_ids),
            "position_ids": self.to_device(positions),
        }
        if any(len(ids) < width for ids in self.ids):
            arguments["attention_mask"] = self.to_device(self.mask[:, :width])
        if self.reuse != "recompute":
            if self.kv is None:
                self.kv = new_cache()
            arguments[self.cache_name] = self.kv
        output = self.model(**arguments, use_cache=self.reuse != "recompute", logits_to_keep=1)
        return output.logits.select(1, -1)

    @cached_property
    def device(self) -> torch.device:
        """Where the model takes its ids; a model walks its parameters to answer."""
        return self.model.device

    @cached_property
    def cache_name(self) -> str:
        """The argument of the model's forward that takes `kv`."""
        return cache_argument(self.model)

    def to_device(self, values: list[list[int]] | NDArray[np.bool_]) -> Tensor:
        """Rows of ids as int64, or a mask, where the model takes them. NumPy reads lists faster than torch does."""
        array = np.array(values, dtype=np.int64) if isinstance(values, list) else values
        tensor = torch.from_numpy(array)
        return tensor if self.device.type == "cpu" else tensor.to(self.device, non_blocking=True)

    def keep(self, row: int, count: int) -> None:
        """Let go of a row's columns after the first `count`."""
        columns = self.columns[row]
        dropped = columns[count:]
        if len(dropped) > FEW_COLUMNS:
            self.mask[row, dropped] = False
        else:
            own = self.mask[row]
            for column in dropped:
                own[column] = False
        del columns[count:]

    def _forget(self) -> None:
        self.kv = None
        self.width = 0
        for columns in self.columns:
            columns.clear()

    def trim(self) -> None:
        """Give back the columns at the right end that no row uses."""
        last = self.width - 1
        for columns in self.columns:
            if columns and columns[-1] == last:
                return
        used = max((columns[-1] + 1 for columns in map(self.held, range(len(self.ids))) if columns), default=0)
        if used < self.width:
            if used:
                self._replace(lambda t: t[..., :used, :])
                self.width = used
            else:
                self._forget()

    def has_to_move(self) -> bool:
        if self.width == 0:
            return False
        if self.reuse == "compact":
            # Columns ascend, so these two make them the last ones without a gap.
            return any(
                columns and (columns[-1] != self.width - 1 or columns[0] != self.width - len(columns))
                for columns in self.columns
            )
        return self.has_many_holes()

    def has_many_holes(self) -> bool:
        """Whether passes have read so many holes that moving the cache would have cost as much; asked once a pass."""
        holes = self.width - max(len(self.held(row)) for row in range(len(self.ids)))
        self._read_in_vain += holes
        return holes > MIN_HOLES and self._read_in_vain > MOVE_COST * self.width

    def held(self, row: int) -> list[int]:
        """The columns that hold something of a row, ascending."""
        return self.columns[row]

    def renumber(self, row: int, first: int) -> None:
        """What a row holds stands side by side from column `first` on."""
        columns = self.columns[row]
        columns[:] = range(first, first + len(columns))
        self.mask[row, first : first + len(columns)] = True

    def compact(self) -> None:
        """Gather every row's columns to the right end."""
        self._read_in_vain = 0
        held = [self.held(row) for row in range(len(self.ids))]
        width = max(map(len, held))
        if width == 0:
            self._forget()
            return
        index = torch.zeros(len(held), width, dtype=torch.long, device="cpu")
        for r, columns in enumerate(held):
            if columns:
                index[r, width - len(columns) :] = torch.tensor(columns, device="cpu")
        firsts = [width - len(columns) for columns in held]
        self.mask[:, : self.width] = False
        for r, first in enumerate(firsts):
            self.renumber(r, first)

        def gather(t: Tensor) -> Tensor:
            at = index.to(t.device)[:, None, :, None].expand(-1, t.shape[1], -1, t.shape[3])
            return t.gather(2, at)

        self._replace(gather)
        self.width = width

    def _replace(self, change: Change) -> None:
        for layer in self.kv.layers:
            if getattr(layer, "keys", None) is not None and layer.keys.numel():
                layer.keys, layer.values = change(layer.keys), change(layer.values)


def new_cache() -> Cache:
    """A cache of plain growing layers, whatever the model's default: window layers forget what a drop needs back."""
    from transformers import DynamicCache

    from .growing_cache import GrowingLayer

    cache = DynamicCache()
    cache.layer_class_to_replicate = GrowingLayer
    return cache
