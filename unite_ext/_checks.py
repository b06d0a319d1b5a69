"""Checks of plain arguments, before any work: what was expected, what came."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ._core import MAX_K, MAX_WALK

SCORES = ("logits", "probs")
DUPLICATES = ("repeat", "drop")
COMBINES = ("mean", "product")
MAX_WEIGHT = 1e6
"""Of a product: the largest absolute weight; then no sum of scores overflows."""
BOUNDARIES = ("plain", "exact")


def check_integer(name: str, value: object, low: int, high: int) -> None:
    """`value` is an int (not a bool) from low to high."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be from {low} to {high}, got {value}")


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """`value` is one of the strings in `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_proposals(members: int, k: int) -> None:
    """`k` proposals of each member are not too many for one step."""
    check_integer("k", k, 1, MAX_K)
    if members * k > MAX_WALK:
        raise ValueError(f"members * k must be at most {MAX_WALK}, got {members} * {k} = {members * k}")


def check_step_options(members: int, k: int, primary: int, score: str, duplicates: str, combine: str) -> None:
    """The options of a step that do not depend on its tensors."""
    check_proposals(members, k)
    check_integer("primary", primary, 0, members - 1)
    check_choice("score", score, SCORES)
    check_choice("duplicates", duplicates, DUPLICATES)
    check_choice("combine", combine, COMBINES)


def step_weights(weights: Sequence[float] | None, members: int, combine: str, primary: int) -> list[float]:
    """The weights that a step takes, one per member; uniform for None, together 1.

    Of a mean they are not negative, and scaled to sum 1; of a product any, but the primary's is above 0.
    """
    check_choice("combine", combine, COMBINES)
    if weights is None:
        return [1.0 / members] * members
    values = _numbers(weights, members)
    if combine == "mean":
        return _normalized(values)
    if any(abs(value) > MAX_WEIGHT for value in values):
        raise ValueError(f"weights must be from -{MAX_WEIGHT:,.0f} to {MAX_WEIGHT:,.0f}, got {values}")
    if not values[primary] > 0:
        raise ValueError(
            f"weights must be above 0 for the primary, member {primary}, with combine='product', got {values}: "
            "members without a positive weight do not propose"
        )
    return values


def _numbers(weights: Sequence[float], members: int) -> list[float]:
    """Finite weights, one per member."""
    if hasattr(weights, "tolist"):  # a tensor or an array
        weights = weights.tolist()
    try:
        values = [float(weight) for weight in weights]
    except (TypeError, ValueError) as error:
        raise TypeError(f"weights must be numbers, one per member, got {weights!r}") from error
    if len(values) != members:
        raise ValueError(f"weights must have one entry per member, {members}, got {len(values)}")
    if not all(map(math.isfinite, values)):
        raise ValueError(f"weights must be finite, got {values}")
    return values


def _normalized(values: list[float]) -> list[float]:
    """Non-negative weights scaled to sum 1."""
    if any(value < 0 for value in values):
        raise ValueError(f"weights must not be negative with combine='mean', got {values}")
    total = sum(values)
    if total == 0:
        raise ValueError("weights must not all be zero")
    if not math.isfinite(total):
        raise ValueError(f"weights must have a finite sum, got {values}")
    return [value / total for value in values]
