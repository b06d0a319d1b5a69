"""Linear layers on CPUs for passes over a handful of new ids.

Matrix products are made for many rows: with two torch's take twice as long as with one, with four up to four times,
though the weight has to be read once in either case. Speculation, batches and exact boundaries consist of such passes.
`csrc/cpu/few_rows.cpp` reads the weight once, where it lies.

Where the requests of a pass have different numbers of new ids, all are filled up to the most. What only fills up is
left out here (`leaving_out`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .. import _backend  # noqa: F401  # registers the operator

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_HAS_AVX512 = "AVX512" in torch.backends.cpu.get_cpu_capability()

MOST_ROWS = 16 if _HAS_AVX512 else 64
"""With more, torch is as fast. 64 is measured with AVX2; with AVX-512 torch's products have twice the arithmetic."""
_NARROW, _MOST_ROWS_OF_NARROW = 256, 16
"""A layer with fewer inputs computes little for each result it has to write, and torch writes as fast sooner."""
_DTYPES = (torch.float32,) if _HAS_AVX512 else (torch.float32, torch.bfloat16)
_LEAST_WEIGHT = 1 << 18  # entries; a smaller weight lies in a core's cache, and there torch is as fast
_MOST_USED = 0.9  # the share of rows that are used up to which leaving out the others pays for gathering these


class _Pass(threading.local):
    """What the running pass of this thread's model uses, by batch size and number of ids or of logits."""

    used: dict[tuple[int, ...], Tensor] | None = None


_PASS = _Pass()


@contextmanager
def leaving_out(*used: NDArray[np.bool_]) -> Iterator[None]:
    """Let `FewRowsLinear` layers, while a model runs, leave out what nobody uses: their results there are 0.

    Parameters
    ----------
    *used : array [B, Q] of bool
        What is used of inputs [B, Q, ...]. Of several with the same shape the first counts.
    """
    by_shape = {own.shape: own for own in reversed(used)}
    found = {
        shape: torch.from_numpy(np.flatnonzero(own))
        for shape, own in by_shape.items()
        if np.count_nonzero(own) <= _MOST_USED * own.size
    }
    before, _PASS.used = _PASS.used, found
    try:
        yield
    finally:
        _PASS.used = before


class FewRowsLinear(nn.Linear):
    """`nn.Linear`, as it is but for few rows on a CPU without gradients.

    A row's result there is the same whatever rows stand beside it, and that of `nn.Linear` to rounding. bfloat16 on
    processors without AVX-512 comes here with any number of rows: torch widens such weights again for every row.
    """

    def forward(self, input: Tensor) -> Tensor:
        """See `nn.Linear`: [..., in_features] to [..., out_features]."""
        weight = self.weight
        if (
            input.shape[-1:] != (self.in_features,)
            or torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or torch.is_autocast_enabled("cpu")
            or not (input.is_cpu and weight.is_cpu and weight.is_contiguous() and input.dtype is weight.dtype)
            or weight.dtype not in _DTYPES
        ):
            return super().forward(input)
        rows = input.reshape(-1, self.in_features)
        used = _PASS.used.get(input.shape[:-1]) if _PASS.used else None
        if used is None:
            found = self._of_rows(rows)
        else:
            found = rows.new_zeros((len(rows), self.out_features))
            found[used] = self._of_rows(rows[used])
        return found.view(*input.shape[:-1], self.out_features)

    def _of_rows(self, rows: Tensor) -> Tensor:
        """[rows, in_features] to [rows, out_features]."""
        most = MOST_ROWS if self.in_features >= _NARROW else min(MOST_ROWS, _MOST_ROWS_OF_NARROW)
        if len(rows) > most and rows.dtype is not torch.bfloat16:
            return super().forward(rows)
        return torch.ops.unite_ext.few_rows_linear(rows.contiguous(), self.weight, self.bias)


def use_few_rows_linear(model: PreTrainedModel) -> None:
    """Make a model's linear layers `FewRowsLinear`, but for small ones and for other classes than `nn.Linear`.

    On a processor without AVX2 nothing happens.
    """
    if torch.ops.unite_ext.cpu_instruction_set() == "scalar":
        return
    for module in model.modules():
        if type(module) is nn.Linear and type(module.weight) is nn.Parameter and module.weight.numel() >= _LEAST_WEIGHT:
            module.__class__ = FewRowsLinear


@torch.library.register_fake("unite_ext::few_rows_linear")
def _(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return rows.new_empty((rows.shape[0], weight.shape[0]))
