"""Find, check and make methods by name.

`UniteEnsemble` takes a method by its name or as an object. docs/methods.md says how each was verified. No other file
compares a method's name.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence

from .._checks import check_choice
from ..members.base import BaseMember
from ..options import StepOptions
from ..vocab.alignment import VocabAlignment
from .base import AnswerMethod, Method, TokenMethod

UNITE = "unite"
TOKEN_METHODS = {
    UNITE: ("unite", "Unite"),
    "gac": ("gac", "GaC"),
    "deepen-avg": ("deepen", "DeepenAvg"),
    "deepen-adapt": ("deepen", "DeepenAdapt"),
    "mined": ("mined", "MinED"),
    "packllm": ("packllm", "PackLLM"),
    "eva": ("eva", "EVA"),
}
"""Name to module and class."""
ANSWER_METHODS = {
    "voting": ("voting", "Voting"),
    "mbr": ("mbr", "MBR"),
    "pair-ranker": ("pair_ranker", "PairRanker"),
}
METHODS = (*TOKEN_METHODS, *ANSWER_METHODS)


def method_class(name: str) -> type[Method]:
    """Import the class of a method."""
    module, attribute = {**TOKEN_METHODS, **ANSWER_METHODS}[name]
    found: type[Method] = getattr(importlib.import_module(f".{module}", __package__), attribute)
    return found


def check_method(method: str | Method, own: Mapping[str, object] | None, members: int) -> None:
    """Check a method and its options, as far as that is possible without tokenizers.

    Raises
    ------
    TypeError, ValueError
        The method is unknown, has no such option, or needs more members.
    """
    if isinstance(method, Method):
        if own:
            raise TypeError(f"method_options must be None if method is an object, got {dict(own)}")
        return
    check_choice("method", method, METHODS)
    if own is not None and not isinstance(own, Mapping):
        raise TypeError(f"method_options must map names to values, got {type(own).__name__}")
    cls = method_class(method)
    if members < 2 and not cls.takes_one:
        raise ValueError(f"method {method!r} needs at least two members, got {members}")
    cls.check_options(own or {})


def check_combine(method: str | Method, options: StepOptions) -> None:
    """Raise ValueError if a method cannot combine members as the options say."""
    cls = type(method) if isinstance(method, Method) else method_class(method)
    if options.combine != "mean" and not cls.multiplies:
        raise ValueError(f"combine must be 'mean' with method {cls.name!r}, got {options.combine!r}")


def check_vocabularies(
    method: str | Method, own: Mapping[str, object] | None, alignment: VocabAlignment, options: StepOptions
) -> None:
    """Raise ValueError if a method cannot run on these vocabularies."""
    if not isinstance(method, Method):
        method_class(method).check(alignment, options, own or {})


def needs_vocabularies(method: str | Method) -> bool:
    """Whether `check_vocabularies` checks anything for this method."""
    cls = type(method) if isinstance(method, Method) else method_class(method)
    return getattr(cls.check, "__func__", cls.check) is not Method.check.__func__  # type: ignore[attr-defined]


def make_method(
    method: str | Method,
    own: Mapping[str, object] | None,
    alignment: VocabAlignment,
    members: Sequence[BaseMember],
    options: StepOptions,
) -> Method:
    """Make a method for these members, with the primary and the weights in `options`."""
    if isinstance(method, Method):
        return method
    cls = method_class(method)
    if issubclass(cls, AnswerMethod):
        weights = options.step_weights(len(members))
        primary = options.primary
        return cls([weights[primary], *weights[:primary], *weights[primary + 1 :]], **(own or {}))
    assert issubclass(cls, TokenMethod)
    cls.check(alignment, options, own or {})
    return cls(alignment, members, options, **(own or {}))


def is_answer_method(method: str | Method) -> bool:
    """Whether a method chooses among whole answers, and has no steps."""
    return isinstance(method, AnswerMethod) or method in ANSWER_METHODS


def parse_options(text: str | None) -> dict[str, object] | None:
    """Read method options from a command line: "name:value;name:value". A value that is not JSON is a string.

    >>> parse_options("eta:0.1;anchors:1000;path:models/ranker")
    {'eta': 0.1, 'anchors': 1000, 'path': 'models/ranker'}
    """
    if text is None:
        return None
    options: dict[str, object] = {}
    for part in text.split(";"):
        name, colon, value = part.partition(":")
        if not colon:
            raise ValueError(f"method_options must be 'name:value;name:value', got {text!r}")
        try:
            options[name.strip()] = json.loads(value)
        except json.JSONDecodeError:
            options[name.strip()] = value
    return options
