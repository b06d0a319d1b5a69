"""A ragged KV cache of fixed shape, for compiled models and CUDA graphs.

The shapes that a compiled pass sees are few: as many rows as the batch began with (rows that stop early are played by
copies of the first), a capacity that doubles when it must, and 1, 2, 4 or 8 new ids per row. A row that has fewer feeds
some of its last ids again, as `RaggedCache` does anyway. Prompts run uncompiled into the same memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .kv_cache import Change, RaggedCache

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedConfig, PreTrainedModel

FEEDS = (1, 2, 4, 8)
MIN_CAPACITY = 256


class StaticRaggedCache(RaggedCache):
    """`RaggedCache` on memory that never moves.

    Parameters
    ----------
    model, rows, reuse
        As `RaggedCache`; a model whose cache cannot be reused ("recompute") has none to keep.
    max_rows : int, optional
        How many rows there is memory for; `rows` by default.
    forward : callable
        The compiled pass, called for feeds of 1, 2, 4 and 8 ids; see `compile_forward`.
    expected_length : int
        How long the rows are likely to become; the capacity to start from.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        rows: int,
        *,
        reuse: str,
        forward: Callable[..., Any],
        max_rows: int | None = None,
        expected_length: int = MIN_CAPACITY,
    ) -> None:
        if reuse == "recompute":
            raise ValueError("a model whose cache cannot be reused has no static cache")
        super().__init__(model, rows, reuse=reuse)
        self._forward_compiled = forward
        self._rows = rows if max_rows is None else max_rows
        self._capacity = _power_of_two(max(MIN_CAPACITY, expected_length + expected_length // 4))
        self.mask = np.zeros((self._rows, self._capacity), dtype=np.bool_)

    def absorb(self, other: RaggedCache) -> None:
        """Copy another cache's rows behind one's own, to the right end of what is used; the other one is used up."""
        first = len(self.ids)
        if first + len(other.ids) > self._rows:
            raise ValueError(f"other must have at most {self._rows - first} rows, got {len(other.ids)}")
        if other.width > self.width:
            self._shift(other.width - self.width)
        start = self.width - other.width
        self.mask[first:] = False
        self.mask[first : first + len(other.ids), start : self.width] = other.mask[:, : other.width]
        if other.width:
            self._allocate(other)
            for layer, others in zip(self.kv.layers, other.kv.layers):
                for memory, held in ((layer.keys, others.keys), (layer.values, others.values)):
                    memory[first : first + len(other.ids), :, start : self.width].copy_(held)
        self.ids += other.ids
        self.columns += [[column + start for column in columns] for columns in other.columns]

    def _shift(self, by: int) -> None:
        """Move the rows to the right by so many columns."""
        old, width = self.width, self.width + by
        if width > self._capacity:
            self._grow(_power_of_two(width))
        if old and self.kv is not None:
            for layer in self.kv.layers:
                for memory in (layer.keys, layer.values):
                    memory[:, :, by:width] = memory[:, :, :old].clone()
        self.mask[:, by:width] = self.mask[:, :old].copy()
        self.mask[:, :by] = False
        for columns in self.columns:
            columns[:] = [column + by for column in columns]
        self.width = width

    def _allocate(self, like: RaggedCache) -> None:
        """Make the memory, if no pass has yet, in the shape of another cache's."""
        if self.kv is None:
            self.kv = _static_cache(self.model.config, self._capacity)
        for layer, others in zip(self.kv.layers, like.kv.layers):
            if not layer.is_initialized:
                layer.lazy_initialization(
                    *(t.new_zeros((self._rows, *t.shape[1:])) for t in (others.keys, others.values))
                )

    def select(self, rows: list[int]) -> None:
        """Keep only these rows, in this order; copies of the first take the places of the others."""
        self.ids = [list(self.ids[r]) for r in rows]
        self.columns = [list(self.columns[r]) for r in rows]
        places = torch.tensor(rows + [rows[0]] * (self._rows - len(rows)), device="cpu")
        self.mask = self.mask[places.numpy()]
        if self.kv is not None:
            self._replace(lambda t: t.index_select(0, places.to(t.device)))

    def _feed(self, least: int) -> int:
        return next((feed for feed in FEEDS if feed >= least), least)

    def has_to_move(self) -> bool:
        # A pass reads the whole capacity: holes cost nothing until it is full.
        return self.reuse == "compact" and super().has_to_move()

    def _reserve(self, width: int) -> None:
        if width <= self._capacity:
            return
        feed = width - self.width
        if self.width > max(map(len, self.columns)):
            self.compact()
        if self.width + feed > self._capacity:
            self._grow(_power_of_two(self.width + feed))

    def _run(self, input_ids: list[list[int]], positions: list[list[int]], width: int) -> Tensor:
        active = len(input_ids)
        copies = self._rows - active
        feed = len(input_ids[0])
        self.mask[active:] = self.mask[0]
        if self.kv is None:
            self.kv = _static_cache(self.model.config, self._capacity)
        for layer in self.kv.layers:
            layer.cumulative_length.fill_(width - feed)
        arguments = {
            "input_ids": self.to_device(input_ids + input_ids[:1] * copies),
            "position_ids": self.to_device(positions + positions[:1] * copies),
            "attention_mask": self.to_device(self.mask),
            self.cache_name: self.kv,
            "use_cache": True,
            "logits_to_keep": 1,
        }
        if width > feed and feed in FEEDS:
            torch.compiler.cudagraph_mark_step_begin()
            # A graph's output lives until its next replay.
            return self._forward_compiled(**arguments).logits[:active, -1].clone()
        return self.model(**arguments).logits[:active, -1]

    def _forget(self) -> None:
        self.width = 0
        for columns in self.columns:
            columns.clear()

    def trim(self) -> None:
        self.width = max((columns[-1] + 1 for columns in self.columns if columns), default=0)

    def _replace(self, change: Change) -> None:
        for layer in self.kv.layers:
            for memory in (layer.keys, layer.values):
                changed = change(memory)
                rows, _, width, _ = changed.shape
                memory[:rows, :, :width].copy_(changed)
                memory[rows:, :, :width].copy_(changed[:1])

    def _grow(self, capacity: int) -> None:
        self.mask = np.pad(self.mask, ((0, 0), (0, capacity - self.mask.shape[1])))
        if self.kv is not None:
            old, self.kv = self.kv, _static_cache(self.model.config, capacity)
            for layer, before in zip(self.kv.layers, old.layers):
                layer.lazy_initialization(before.keys, before.values)
                layer.keys[:, :, : self._capacity].copy_(before.keys)
                layer.values[:, :, : self._capacity].copy_(before.values)
        self._capacity = capacity


def compile_forward(model: PreTrainedModel) -> Callable[..., Any]:
    """The model's pass, compiled as one graph on first use; on CUDA devices it is captured into CUDA graphs."""
    mode = "reduce-overhead" if model.device.type == "cuda" else "default"
    return torch.compile(model.forward, mode=mode, fullgraph=True, dynamic=False)


def check_static_cache() -> None:
    """Raise RuntimeError where this transformers has no static cache that can be cut back."""
    import transformers
    from transformers.cache_utils import StaticLayer

    if not hasattr(StaticLayer(1), "cumulative_length"):
        raise RuntimeError(
            f"compile must be False with transformers {transformers.__version__}: it needs 5.4 or newer, whose static "
            "caches can be cut back"
        )


def _static_cache(config: PreTrainedConfig, capacity: int) -> Cache:
    """Full-length layers whatever the model's own kinds: the mask says what a window sees."""
    from transformers.cache_utils import Cache, StaticLayer

    layers = config.get_text_config().num_hidden_layers
    with torch.device("cpu"):  # a layer makes its counter where the default is, and moves it to its keys later
        return Cache(layers=[StaticLayer(capacity) for _ in range(layers)])


def _power_of_two(length: int) -> int:
    return 1 << (length - 1).bit_length()
