"""The methods that the UNITE paper compares with, through the same members, caches and decode loop.

Token-level methods choose every next token: they replace `unite_step` in the loop, see `Method`. Output-level methods
let every member answer alone and choose one of the answers, see `AnswerMethod`. What is listed here can be used as
``method=`` of `UniteEnsemble`; docs/methods.md says what each was compared with.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from .._arguments import check_choice
from ..members.transformers import load_tokenizer
from ..vocab.alignment import VocabAlignment
from .answers import AnswerMethod, choose_rows
from .base import Method

UNITE = "unite"
TOKEN_METHODS = {
    "gac": ("gac", "GaC"),
    "deepen-avg": ("deepen", "DeepenAvg"),
    "deepen-adapt": ("deepen", "DeepenAdapt"),
    "mined": ("mined", "MinED"),
    "packllm": ("packllm", "PackLLM"),
    "eva": ("eva", "EVA"),
}
"""Name to module and class."""
OUTPUT_METHODS = {
    "voting": ("voting", "Voting"),
    "mbr": ("mbr", "MBR"),
    "pair-ranker": ("pair_ranker", "PairRanker"),
}
METHODS = (UNITE, *TOKEN_METHODS, *OUTPUT_METHODS)

__all__ = [
    "METHODS",
    "OUTPUT_METHODS",
    "TOKEN_METHODS",
    "UNITE",
    "AnswerMethod",
    "Method",
    "check_loadable",
    "check_method",
    "choose_rows",
    "make_method",
    "method_class",
    "parse_options",
]


def method_class(name: str) -> type[Any]:
    """The class behind a method's name, "unite" excepted."""
    module, attribute = {**TOKEN_METHODS, **OUTPUT_METHODS}[name]
    return getattr(importlib.import_module(f".{module}", __package__), attribute)


def check_method(name: str | Method, options: Mapping[str, Any] | None, members: int) -> None:
    """A method's name and options, as far as they can be checked without tokenizers.

    Raises
    ------
    TypeError, ValueError
        The method is unknown, has no such option, or needs more members.
    """
    if isinstance(name, Method):
        if options:
            raise TypeError("method_options must be None with a method that is made already")
        return
    check_choice("method", name, METHODS)
    if options is not None and not isinstance(options, Mapping):
        raise TypeError(f"method_options must map names to values, got {type(options).__name__}")
    options = options or {}
    if name == UNITE:
        if options:
            raise TypeError(f"method 'unite' has no method_options, got {', '.join(map(repr, options))}")
        return
    if members < 2:
        raise ValueError(f"method {name!r} needs at least two members, got {members}")
    method_class(name).check_options(options)


def parse_options(text: str | None) -> dict[str, Any] | None:
    """Method options from a command line: "name:value;name:value", with JSON values where they are JSON.

    >>> parse_options("eta:0.1;anchors:1000;path:models/ranker")
    {'eta': 0.1, 'anchors': 1000, 'path': 'models/ranker'}
    """
    if text is None:
        return None
    options: dict[str, Any] = {}
    for part in text.split(";"):
        name, colon, value = part.partition(":")
        if not colon:
            raise ValueError(f"method_options must be 'name:value;name:value', got {text!r}")
        try:
            options[name.strip()] = json.loads(value)
        except json.JSONDecodeError:
            options[name.strip()] = value
    return options


def check_loadable(
    names: Sequence[str], step_options: Mapping[str, Any], member_options: Sequence[Mapping[str, Any]], lossy: bool
) -> None:
    """Check from the tokenizers alone whether a method can run with these members, before any model is loaded.

    Parameters
    ----------
    names : sequence of str
        What `UniteEnsemble.from_pretrained` is to load.
    step_options : mapping
    member_options : sequence of mapping
        Per member, those of `Member.from_pretrained`.
    lossy : bool

    Raises
    ------
    ValueError
        The method cannot run; says why.
    """
    if step_options["method"] == UNITE or isinstance(step_options["method"], Method):
        return
    cls = method_class(step_options["method"])
    tokenizers = [load_tokenizer(name, dict(options)) for name, options in zip(names, member_options)]
    alignment = VocabAlignment.from_tokenizers(tokenizers, lossy=lossy)
    device = member_options[step_options["primary"]].get("device")
    cls.check(alignment if device is None else alignment.to(device), step_options)


def make_method(name: str, ensemble: Any, step_options: Mapping[str, Any]) -> Method:
    """A token-level method for an ensemble's members, with its primary and weights from `step_options`."""
    options = dict(step_options["method_options"] or {})
    cls = method_class(name)
    alignment = ensemble.alignment.to(ensemble.members[step_options["primary"]].device)
    cls.check(alignment, step_options)
    return cls(alignment, ensemble.members, step_options, **options)
