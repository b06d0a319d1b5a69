"""The options of a step that an ensemble keeps and a call may override."""

from __future__ import annotations

from typing import Any

from .._arguments import check_step_options, normalize_weights
from ..methods.registry import UNITE, check_method

STEP_DEFAULTS: dict[str, Any] = {
    "k": 10, "primary": 0, "weights": None, "score": "logits", "duplicates": "repeat", "method": UNITE,
    "method_options": None,
}  # fmt: skip
"""As `unite_step`, and which method decides a step."""


def take_step_options(options: dict[str, Any], defaults: dict[str, Any], members: int) -> dict[str, Any]:
    """The options of a step, taken out of `options` and checked."""
    step = {name: options.pop(name, default) for name, default in defaults.items()}
    check_step_options(members, step["k"], step["primary"], step["score"], step["duplicates"])
    normalize_weights(step["weights"], members)
    check_method(step["method"], step["method_options"], members)
    return step
