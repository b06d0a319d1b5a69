"""The options of a step and of a generation: checked once, when they are made, and passed on as they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from typing import Any

from ._checks import (
    BOUNDARIES,
    COMBINES,
    DUPLICATES,
    SCORES,
    check_choice,
    check_integer,
    check_step_options,
    step_weights,
)
from ._core import MAX_K
from .structured.compiled import KINDS, Structure


@dataclass(frozen=True)
class StepOptions:
    """The options of one step, see `unite_step`.

    Raises
    ------
    TypeError, ValueError
        A value is wrong whatever the members are; `check` looks at the rest.
    """

    k: int = 10
    primary: int = 0
    weights: tuple[float, ...] | None = None
    """One per member; of any scale for a mean, as they are for a product; None for uniform."""
    score: str = "logits"
    duplicates: str = "repeat"
    combine: str = "mean"
    boundaries: str = "plain"
    """Whether members vote on tokens, or on the bytes that follow the text, see docs/boundaries.md."""

    def __post_init__(self) -> None:
        check_integer("k", self.k, 1, MAX_K)
        check_integer("primary", self.primary, 0, 2**31)
        check_choice("score", self.score, SCORES)
        check_choice("duplicates", self.duplicates, DUPLICATES)
        check_choice("combine", self.combine, COMBINES)
        check_choice("boundaries", self.boundaries, BOUNDARIES)
        if self.weights is not None:
            values = self.weights.tolist() if hasattr(self.weights, "tolist") else self.weights
            if isinstance(values, str) or not isinstance(values, Sequence):
                raise TypeError(f"weights must be numbers, one per member, got {values!r}")
            step_weights(values, len(values), self.combine, min(self.primary, len(values) - 1))
            object.__setattr__(self, "weights", tuple(float(value) for value in values))

    def check(self, members: int) -> StepOptions:
        """Raise ValueError where the options do not fit so many members. Returns itself."""
        check_step_options(members, self.k, self.primary, self.score, self.duplicates, self.combine)
        step_weights(self.weights, members, self.combine, self.primary)
        return self

    def step_weights(self, members: int) -> list[float]:
        """One weight per member, as a step takes them: of a mean together 1."""
        return list(_step_weights(self.weights, members, self.combine, self.primary))


@dataclass(frozen=True)
class GenerationOptions:
    """The options of `UniteEnsemble.generate` that do not belong to a single step.

    Names and meanings are those of Hugging Face's `GenerationConfig`, applied to the averaged probabilities of the
    union. They change nothing by default: decoding is greedy.

    Raises
    ------
    TypeError, ValueError
        A value is wrong.
    """

    max_new_tokens: int = 256
    min_new_tokens: int = 0
    """Until then no member may propose EOS."""
    stop: str | Sequence[str] | None = ()
    """Strings that end the text; they are cut off, together with whatever follows."""
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """Sample among this many slots, 0 for all. The paper's k is `k`."""
    seed: int | None = None
    """Prompt i draws from a generator seeded with seed + i; None takes the seed from torch's global generator."""
    repetition_penalty: float = 1.0
    """Applied by every member to the ids of its own context."""
    logits_processor: Sequence[Any] | None = None
    """Per member a `LogitsProcessor`, a list of them, or None."""
    gate: float | None = None
    """A step takes the primary's token without asking the others when its probability there is above this."""
    json_schema: Mapping[str, Any] | str | type[Any] | None = None
    """The text is JSON that follows this schema: a mapping, its JSON text, or a pydantic model."""
    regex: str | None = None
    """The whole text matches this regular expression."""
    grammar: str | None = None
    """The text follows this grammar, in GBNF (EBNF as llama.cpp writes it), from its rule `root`."""

    on_member_failure: str = "stop"
    """What becomes of a text when a member stays away.

    "stop" ends it with an error that names the member; with "drop" the others go on without it, their weights scaled to
    sum 1, and the result says from which token on. The primary cannot be dropped.
    """
    speculate: bool | int | str | None = False
    """Draft some tokens, and ask all members about them in one pass each: the same text in fewer passes.

    True or "auto": what is measured to be fastest; a number: so many tokens by the primary; "ngram": what followed the
    last tokens where they stood before; a member's name: by that one. False or None: no drafts. With exact boundaries
    texts that are drawn may be drafted as well, and "auto" is not to be had.
    """

    def __post_init__(self) -> None:
        check_integer("max_new_tokens", self.max_new_tokens, 1, 2**31)
        check_integer("min_new_tokens", self.min_new_tokens, 0, self.max_new_tokens)
        stop = () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if any(not isinstance(s, str) for s in stop):
            raise TypeError(f"stop must be a string or strings, got {self.stop!r}")
        if "" in stop:
            raise ValueError("stop must not hold an empty string")
        object.__setattr__(self, "stop", stop)
        check_integer("top_k", self.top_k, 0, 2**31)
        _check_number("temperature", self.temperature, lambda v: v > 0, "above 0")
        _check_number("top_p", self.top_p, lambda v: 0 < v <= 1, "above 0 and at most 1")
        _check_number("repetition_penalty", self.repetition_penalty, lambda v: v > 0, "above 0")
        check_choice("on_member_failure", self.on_member_failure, MEMBER_FAILURES)
        if self.gate is not None:
            _check_number("gate", self.gate, lambda v: 0 <= v <= 1, "from 0 to 1")
        if self.seed is not None:
            check_integer("seed", self.seed, 0, 2**63 - 1)
        if self.speculate is not None and not isinstance(self.speculate, (bool, str)):
            check_integer("speculate", self.speculate, 1, MAX_DRAFT)
        if self.speculate and self.gate is not None:
            raise ValueError("speculate must be False with a gate, which leaves members out")
        if (schema_of := getattr(self.json_schema, "model_json_schema", None)) is not None:
            object.__setattr__(self, "json_schema", schema_of())
        _ = self.structure  # wrong ones raise here

    @cached_property
    def structure(self) -> Structure | None:
        """What the text has to be, if one of `json_schema`, `regex` and `grammar` says so."""
        given = {kind: value for kind in KINDS if (value := getattr(self, kind)) is not None}
        if len(given) > 1:
            raise ValueError(f"one of {', '.join(KINDS)} must be given, got {' and '.join(given)}")
        return next((Structure(kind, value) for kind, value in given.items()), None)

    @cached_property
    def processes(self) -> bool:
        """Whether members' logits are changed before a step by more than `min_new_tokens`."""
        return any(needs for name, needs in self.needs_logits.items() if name not in ("gate", "min_new_tokens"))

    @cached_property
    def needs_logits(self) -> dict[str, bool]:
        """By name whether an option needs whole logits: `gate` of the primary, the others of every member."""
        return {
            "logits_processor": self.logits_processor is not None,
            "repetition_penalty": self.repetition_penalty != 1.0,
            "min_new_tokens": self.min_new_tokens > 0,
            **{kind: getattr(self, kind) is not None for kind in KINDS},
            "gate": self.gate is not None,
        }

    @property
    def stops(self) -> tuple[bytes, ...]:
        """The stop strings as bytes; half characters of a command line stay what they are."""
        return tuple(s.encode("utf-8", "surrogatepass") for s in self.stop or ())


MAX_DRAFT = 16
MEMBER_FAILURES = ("stop", "drop")


def check_boundaries(step: StepOptions, generation: GenerationOptions) -> None:
    """Raise ValueError for what a generation cannot have with its boundaries."""
    if step.boundaries == "plain":
        if generation.speculate and generation.do_sample:
            raise ValueError(
                "speculate must be False with do_sample, where drafts change the draws of plain steps (those of "
                "boundaries='exact' they do not)"
            )
        return
    if generation.speculate is True or generation.speculate == "auto":
        raise ValueError(
            "speculate must be a number, 'ngram' or a member with boundaries='exact', which does not measure what "
            f"pays, got {generation.speculate!r}"
        )
    if step.combine != "mean":
        raise ValueError(f"combine must be 'mean' with boundaries='exact', got {step.combine!r}")
    if generation.gate is not None:
        raise ValueError("gate must be None with boundaries='exact', where all members vote on every byte")


STEP_FIELDS = tuple(field.name for field in fields(StepOptions))
GENERATION_FIELDS = tuple(field.name for field in fields(GenerationOptions))


def step_options(given: Mapping[str, Any], defaults: StepOptions) -> StepOptions:
    """The step options among keyword options, the others as in `defaults`."""
    return replace(defaults, **{name: given[name] for name in STEP_FIELDS if name in given})


def generation_options(given: Mapping[str, Any], also: Sequence[str] = ()) -> GenerationOptions:
    """The generation options among keyword options, of which `also` names those that belong elsewhere.

    Raises
    ------
    TypeError
        A name is unknown; the known ones are listed.
    """
    unknown = given.keys() - {*STEP_FIELDS, *GENERATION_FIELDS, *also}
    if unknown:
        known = ", ".join(sorted([*STEP_FIELDS, *GENERATION_FIELDS, *also]))
        raise TypeError(f"unknown option {sorted(unknown)[0]!r}; the options are {known}")
    return GenerationOptions(**{name: given[name] for name in GENERATION_FIELDS if name in given})


def parse_speculate(text: str | None) -> bool | int | str:
    """The value of `speculate` that a command line means: a number where it is one."""
    if text is None:
        return False
    return int(text) if text.lstrip("-").isdigit() else text


@lru_cache(maxsize=256)
def _step_weights(weights: tuple[float, ...] | None, members: int, combine: str, primary: int) -> tuple[float, ...]:
    return tuple(step_weights(weights, members, combine, primary))


def _check_number(name: str, value: float, good: Callable[[float], bool], expected: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not (math.isfinite(value) and good(value)):
        raise ValueError(f"{name} must be {expected}, got {value}")
