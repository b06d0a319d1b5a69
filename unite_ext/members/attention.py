"""Attention over a long cache for several new ids, where several query heads share their keys and values.

A pass of a ragged batch feeds some rows two ids, and one over many places feeds more. With a mask transformers then
copies the whole cache once per query head of a group before it calls torch's attention, in every layer. Here the
queries of a group stand below each other, as if they were more ids: the same sums, and only the mask is copied.
"""

from __future__ import annotations

import inspect
import re
import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SDPA = "sdpa"
GROUPED = "unite_sdpa"
"""The name of `grouped_attention` in transformers' `AttentionInterface`."""

_COMPARED = re.compile(r"""_attn_implementation\s*([!=]=\s*["']sdpa|in\b|not\b)""")

TAKES_BOOL = (SDPA, GROUPED)
"""The implementations whose masks may be bool."""


def grouped_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention as transformers' `sdpa` gives it, to rounding.

    Parameters
    ----------
    module : torch.nn.Module
    query : Tensor [B, H, Q, D]
    key, value : Tensor [B, H / groups, KV, D]
    attention_mask : Tensor [B, 1, Q, KV], optional
        bool, or what is added.
    dropout, scaling, is_causal, **others
        As there.

    Returns
    -------
    Tensor [B, Q, H, D], and None
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    batch, heads, count, _ = query.shape
    shared, width = key.shape[1:3]
    groups = heads // shared
    if (
        groups == 1
        or attention_mask is None
        or attention_mask.shape[1:] != (1, count, width)
        or count >= shared * key.shape[3]  # the mask is then larger than what it saves
        or dropout
        or any(other is not None for other in (others.get("position_bias"), others.get("softcap")))
    ):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **others
        )
    found = torch.nn.functional.scaled_dot_product_attention(
        query.reshape(batch, shared, groups * count, -1),
        key,
        value,
        attn_mask=attention_mask.repeat(1, 1, groups, 1),
        scale=scaling,
    )
    return found.reshape(batch, heads, count, -1).transpose(1, 2).contiguous(), None


def use_grouped_attention(model: PreTrainedModel) -> None:
    """Let a model that runs transformers' `sdpa`, and shares keys and values, run `grouped_attention` in its place.

    One that was loaded with another implementation is left alone, and one whose own code asks for `sdpa` by name.
    """
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    shared = getattr(config, "num_key_value_heads", None)
    if not shared or shared == getattr(config, "num_attention_heads", shared):
        return
    if any(getattr(own, "_attn_implementation", None) != SDPA for own in (model.config, config)):
        return
    if any(_asks_by_name(type(part)) for part in model.modules() if hasattr(part, "set_attn_implementation")):
        return
    _register()
    model.set_attn_implementation(GROUPED)


def _asks_by_name(cls: type) -> bool:
    """Whether a model's code compares the implementation's name, or does not look it up at all."""
    try:
        code = inspect.getsource(sys.modules[cls.__module__])
    except (KeyError, OSError, TypeError):
        return True
    return "ALL_ATTENTION_FUNCTIONS" not in code or bool(_COMPARED.search(code))


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    AttentionInterface.register(GROUPED, grouped_attention)
    AttentionMaskInterface.register(GROUPED, ALL_MASK_ATTENTION_FUNCTIONS[SDPA])
