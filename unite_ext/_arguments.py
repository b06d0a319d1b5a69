"""Checks of the step's tensors, before any work: what was expected, what came."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._checks import check_integer
from ._core import MAX_MEMBERS, MAX_WALK
from .vocab.alignment import VocabAlignment

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_alignment(alignment: object) -> None:
    """`alignment` is a `VocabAlignment`."""
    if not isinstance(alignment, VocabAlignment):
        raise TypeError(f"alignment must be a VocabAlignment, got {type(alignment).__name__}")


def check_logits(logits: Sequence[Tensor], alignment: VocabAlignment) -> None:
    """One [B, V_m] tensor per member of the alignment, wide enough, on its device."""
    if isinstance(logits, Tensor) or not isinstance(logits, (list, tuple)):
        raise TypeError(
            f"logits must be a list of one [batch, vocabulary] tensor per member, got {type(logits).__name__}"
        )
    if not 1 <= len(logits) <= MAX_MEMBERS:
        raise ValueError(f"logits must hold 1 to {MAX_MEMBERS} members, got {len(logits)}")
    if len(logits) != alignment.num_members:
        raise ValueError(
            f"logits must hold one tensor per member of the alignment, {alignment.num_members}, got {len(logits)}"
        )
    device = alignment.device
    batch = None
    for m, (tensor, vocab_size) in enumerate(zip(logits, alignment.vocab_sizes)):
        # In order beyond doubt in a fraction of the time; check_rows decides about others, and says what is wrong.
        if not (
            isinstance(tensor, Tensor)
            and len(shape := tensor.shape) == 2
            and shape[1] >= vocab_size
            and tensor.is_contiguous()
            and tensor.dtype in DTYPES
            and tensor.device == device
        ):
            check_rows(f"logits[{m}]", tensor, vocab_size, device)
            shape = tensor.shape
        batch = shape[0] if batch is None else batch
        if shape[0] != batch:
            raise ValueError(f"logits[{m}] must have {batch} rows like logits[0], got {shape[0]}")


def check_rows(name: str, tensor: object, vocab_size: int = 0, device: torch.device | None = None) -> None:
    """A [B, V] tensor of one member's logits; wide enough and on the alignment's device, if these are given."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.dtype not in DTYPES:
        raise TypeError(f"{name} must be float32, bfloat16 or float16, got {tensor.dtype}")
    if tensor.dim() != 2:
        raise ValueError(f"{name} must be [batch, vocabulary], got shape {tuple(tensor.shape)}")
    width = tensor.shape[1]
    if width < vocab_size:
        raise ValueError(
            f"{name} must hold the member's highest eligible id, {vocab_size - 1}, got a width of {width}: "
            "is the alignment made from this model's tokenizer?"
        )
    if tensor.stride(1) != 1 and width > 1:
        raise ValueError(f"{name} must be contiguous in its last dimension, got strides {tensor.stride()}")
    if device is not None and tensor.device != device:
        raise ValueError(
            f"{name} must be on the alignment's device, {device}, got {tensor.device}: "
            "move the alignment with alignment.to(device)"
        )


def check_tensor(
    name: str,
    tensor: object,
    dtype: torch.dtype | tuple[torch.dtype, ...],
    shape: tuple[int | None, ...],
    device: torch.device | None = None,
) -> None:
    """A tensor of one of the dtypes and of the shape, in which None fits anything; on `device` if that is given."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    dtypes = dtype if isinstance(dtype, tuple) else (dtype,)
    if tensor.dtype not in dtypes:
        expected = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise TypeError(f"{name} must be {expected}, got {tensor.dtype}")
    if tensor.dim() != len(shape) or any(want not in (None, have) for want, have in zip(shape, tensor.shape)):
        expected = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} must have shape [{expected}], got {list(tensor.shape)}")
    if device is not None and tensor.device != device:
        raise ValueError(f"{name} must be on {device}, got {tensor.device}")


def check_slots(name: str, tensor: Tensor) -> None:
    """The second dimension is a number of slots that a step can have."""
    check_integer(f"the number of slots in {name}", tensor.shape[1], 1, MAX_WALK + 1)


def check_include(include: Tensor, batch: int, device: torch.device) -> None:
    """An int64 [B] tensor on `device`; its values are checked by the step."""
    if not isinstance(include, Tensor):
        raise TypeError(f"include must be an int64 tensor [batch], got {type(include).__name__}")
    if include.dtype != torch.int64:
        raise TypeError(f"include must be int64, got {include.dtype}")
    if tuple(include.shape) != (batch,):
        raise ValueError(f"include must have shape ({batch},), got {tuple(include.shape)}")
    if include.device != device:
        raise ValueError(f"include must be on {device} like the logits, got {include.device}")
