"""A KV cache whose layers grow in place: a pass writes its columns, and copies nothing.

transformers' own growing layers concatenate, so that every pass copies all that has been read before.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicLayer

COLUMNS = 64
"""How many columns are made at once: so many passes of one id copy the cache once."""


def _part(name: str) -> Any:
    """A layer's keys or values, whose room is let go of when something else takes their place."""
    return property(lambda layer: layer._used.get(name), lambda layer, used: layer._set(name, used))


class GrowingLayer(DynamicLayer):
    """`DynamicLayer` with room behind its columns.

    Attributes
    ----------
    keys, values : Tensor [B, H, columns, D] or None
        What is in use. With fewer of their first columns in their place the room stays; with others it is let go.
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

    def _grown(self, name: str, used: Tensor, new: Tensor) -> Tensor:
        width = used.shape[2] + new.shape[2]
        memory = self._memory.get(name)
        if memory is None or memory.shape[2] < width:
            room = -(-(width + 1) // COLUMNS) * COLUMNS
            memory = used.new_empty((*used.shape[:2], room, used.shape[3]))
            memory[:, :, : used.shape[2]] = used
            self._memory[name] = memory
        memory[:, :, used.shape[2] : width] = new
        return memory[:, :, :width]

    def _set(self, name: str, used: Tensor | None) -> None:
        self._used[name] = used
        memory = self._memory.get(name)
        if memory is not None and (used is None or not _begins(memory, used)):
            del self._memory[name]


def _begins(memory: Tensor, used: Tensor) -> bool:
    """Whether `used` is the first columns of this memory."""
    same = memory.data_ptr() == used.data_ptr() and memory.stride() == used.stride()
    return same and memory.shape[:2] == used.shape[:2] and memory.shape[3] == used.shape[3]
