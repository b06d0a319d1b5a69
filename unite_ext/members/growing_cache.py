"""A KV cache whose layers grow in place: passes write their columns, rows that join their own, and nothing is copied.

transformers' own growing layers concatenate, so that every pass copies all that has been read before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

COLUMNS = 64
"""How many columns are made at once: so many passes of one id copy the cache once."""


def _part(name: str) -> Any:
    """A layer's keys or values, whose room is let go of when something else takes their place."""
    return property(lambda layer: layer._used.get(name), lambda layer, used: layer._set(name, used))


class GrowingLayer(DynamicLayer):
    """`DynamicLayer` with room behind its columns, and behind its rows where some have left.

    Attributes
    ----------
    keys, values : Tensor [B, H, columns, D] or None
        What is in use. With fewer of their first rows and columns in their place the room stays; with others it is let
        go.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        self._used: dict[str, Tensor | None] = {}
        self._memory: dict[str, Tensor] = {}
        super().__init__(*args, **options)

    keys = _part("keys")
    values = _part("values")

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        """Append columns.

        Parameters
        ----------
        key_states, value_states : Tensor [B, H, new, D]

        Returns
        -------
        keys, values : Tensor [B, H, columns, D]
        """
        keys, values = self.keys, self.values
        if keys is None or values is None or not keys.numel():
            return super().update(key_states, value_states, *args, **options)
        self.keys = keys = self._grown("keys", keys, key_states)
        self.values = values = self._grown("values", values, value_states)
        return keys, values

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Keep only these rows, in this order.

        Those that stay where they are are not copied, as long as the others come from behind them and no more than half
        of the memory becomes room.
        """
        count = len(rows)
        in_place = all(source == row or source >= count for row, source in enumerate(rows))
        for name in ("keys", "values"):
            used = self._used.get(name)
            if used is None or not used.numel():
                continue
            memory = self._memory.get(name, used)
            if not in_place or 2 * count < memory.shape[0]:
                setattr(self, name, used.index_select(0, torch.tensor(rows, device=used.device)))
                continue
            for row, source in enumerate(rows):
                if source != row:
                    used[row] = used[source]
            setattr(self, name, used[:count])

    def add_rows(self, count: int, keys: Tensor | None, values: Tensor | None) -> None:
        """Append rows.

        Parameters
        ----------
        count : int
        keys, values : Tensor [count, H, at most columns, D] or None
            What stands at their right end; nothing of them does where there is none.
        """
        for name, new in (("keys", keys), ("values", values)):
            used = self._used.get(name)
            if used is None or not used.numel():
                continue
            rows, _, width, _ = used.shape
            memory = self._memory.get(name)
            if memory is None or memory.shape[0] < rows + count:
                memory = self._made(name, used, rows + count, width)
            own = memory[rows : rows + count, :, :width]
            start = width if new is None else width - new.shape[2]
            own[:, :, :start] = 0  # no place is seen there, but what is no number would be felt
            if new is not None:
                own[:, :, start:] = new
            setattr(self, name, memory[: rows + count, :, :width])

    def _grown(self, name: str, used: Tensor, new: Tensor) -> Tensor:
        rows, width = used.shape[0], used.shape[2] + new.shape[2]
        memory = self._memory.get(name)
        if memory is None or memory.shape[2] < width:
            memory = self._made(name, used, rows, width)
        memory[:rows, :, used.shape[2] : width] = new
        return memory[:rows, :, :width]

    def _made(self, name: str, used: Tensor, rows: int, width: int) -> Tensor:
        """Memory for so many rows, and more columns than this, which holds what is in use."""
        room = -(-(width + 1) // COLUMNS) * COLUMNS
        memory = used.new_empty((rows, used.shape[1], room, used.shape[3]))
        memory[: used.shape[0], :, : used.shape[2]] = used
        self._memory[name] = memory
        return memory

    def _set(self, name: str, used: Tensor | None) -> None:
        self._used[name] = used
        memory = self._memory.get(name)
        if memory is not None and (used is None or not _begins(memory, used)):
            del self._memory[name]


def _begins(memory: Tensor, used: Tensor) -> bool:
    """Whether `used` is the first rows and columns of this memory."""
    same = memory.data_ptr() == used.data_ptr() and memory.stride() == used.stride()
    return same and memory.shape[1] == used.shape[1] and memory.shape[3] == used.shape[3]
