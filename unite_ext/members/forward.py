"""How a model's forward is called: names that differ between versions of transformers, and without gradients."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

CACHE_NAMES = ("cache", "past_key_values")
"""The newest first: transformers 5.24 renamed `past_key_values`, and announces its removal."""

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

_found: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


def cache_argument(model: PreTrainedModel) -> str:
    """The name under which a model's forward takes its KV cache, found once per model.

    A forward that only takes `**kwargs` hands them on: then the first module inside that names the cache decides. A
    name that a forward swallows would make the model forget; the cache probe notices that.
    """
    name = _found.get(model)
    if name is None:
        name = _found[model] = _named_by(model)
    return name


def _named_by(model: PreTrainedModel) -> str:
    for module in model.modules():
        parameters = forward_parameters(module)
        for name in CACHE_NAMES:
            if name in parameters:
                return name
    return CACHE_NAMES[-1]


def forward_parameters(module: Any) -> Mapping[str, inspect.Parameter]:
    """The parameters of a module's forward, decorators seen through; empty where they cannot be read."""
    try:
        return inspect.signature(module.forward).parameters
    except (TypeError, ValueError):
        return {}


def lacks_argument(model: PreTrainedModel, name: str) -> bool:
    """Whether a model's forward certainly refuses an argument: it neither names it nor takes `**kwargs`."""
    parameters = forward_parameters(model)
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    return bool(parameters) and not takes_any and name not in parameters


def uses_window(config: PreTrainedConfig) -> bool:
    """Whether some layer's attention is limited to a window, which counts columns."""
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return any("sliding" in kind or "chunked" in kind for kind in kinds)
    if getattr(config, "use_sliding_window", True) is False:
        return False
    return any(getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))


def without_gradients(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """`torch.no_grad()` as a decorator that costs next to nothing where gradients are off already."""

    @wraps(function)
    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        if not torch.is_grad_enabled():
            return function(*args, **kwargs)
        with torch.no_grad():
            return function(*args, **kwargs)

    return call
