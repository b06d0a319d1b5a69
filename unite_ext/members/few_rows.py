"""Linear layers on CPUs for passes over a handful of new ids.

Matrix products are made for many rows: with two torch's take twice as long as with one, with four up to four times,
though the weight has to be read once in either case. Speculation, batches and exact boundaries consist of such passes.
`csrc/cpu/few_rows.cpp` reads the weight once, where it lies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .. import _backend  # noqa: F401  # registers the operator

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_HAS_AVX512 = "AVX512" in torch.backends.cpu.get_cpu_capability()

MOST_ROWS = 16 if _HAS_AVX512 else 32
"""With more, torch is as fast. 32 is measured with AVX2; with AVX-512 torch's products have twice the arithmetic."""
_DTYPES = (torch.float32,) if _HAS_AVX512 else (torch.float32, torch.bfloat16)
_LEAST_WEIGHT = 1 << 18  # entries; a smaller weight lies in a core's cache, and there torch is as fast


class FewRowsLinear(nn.Linear):
    """`nn.Linear`, as it is but for few rows on a CPU without gradients.

    A row's result there is the same whatever rows stand beside it, and that of `nn.Linear` to rounding. bfloat16 on
    processors without AVX-512 comes here with any number of rows: torch widens such weights again for every row.
    """

    def forward(self, input: Tensor) -> Tensor:
        """See `nn.Linear`: [..., in_features] to [..., out_features]."""
        weight = self.weight
        rows = input.numel() // max(1, self.in_features)
        if (
            input.shape[-1:] != (self.in_features,)
            or (rows > MOST_ROWS and weight.dtype is not torch.bfloat16)
            or torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or torch.is_autocast_enabled("cpu")
            or not (input.is_cpu and weight.is_cpu and weight.is_contiguous() and input.dtype is weight.dtype)
            or weight.dtype not in _DTYPES
        ):
            return super().forward(input)
        found = torch.ops.unite_ext.few_rows_linear(
            input.reshape(rows, self.in_features).contiguous(), weight, self.bias
        )
        return found.view(*input.shape[:-1], self.out_features)


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
