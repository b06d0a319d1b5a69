"""Drawing a slot from the averaged probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

from ..options import GenerationOptions


def warped(probs: Tensor, options: GenerationOptions) -> Tensor:
    """The distribution that a request draws from, warped in the order of Hugging Face.

    First the temperature, p^(1/T) renormalised, then the `top_k` most likely, then the smallest set of them that holds
    `top_p` of the mass. Equal probabilities: lower slots first.

    Parameters
    ----------
    probs : Tensor, float64 [U]
        Averaged probabilities.
    options : GenerationOptions

    Returns
    -------
    Tensor, float64 [U]
    """
    probs = (probs.log() / options.temperature).softmax(dim=0)
    order = torch.sort(probs, descending=True, stable=True).indices
    if options.top_k:
        order = order[: options.top_k]
    kept = probs[order] / probs[order].sum()
    inside = kept.cumsum(0) - kept < options.top_p
    result = torch.zeros_like(probs)
    result[order[inside]] = kept[inside]
    return result / result.sum()


def sample(probs: Tensor, options: GenerationOptions, generator: torch.Generator | None) -> int:
    """Draw one slot from `warped` averaged probabilities [U] (float64, on the CPU)."""
    cumulative = warped(probs, options).cumsum(0)
    draw = torch.rand((), generator=generator, dtype=torch.float64, device="cpu") * cumulative[-1]
    return int(torch.searchsorted(cumulative, draw, right=True).clamp(max=len(probs) - 1))
