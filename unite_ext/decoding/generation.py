"""What a generation is asked for, and what becomes of one row of it."""

from __future__ import annotations

import codecs
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .._arguments import check_integer


@dataclass(frozen=True)
class GenerationOptions:
    """The options of `UniteEnsemble.generate` that do not belong to a single step, checked on construction.

    Names and meanings are those of Hugging Face's `GenerationConfig`, applied to the averaged probabilities of the
    union. They change nothing by default: decoding is greedy.
    """

    max_new_tokens: int = 256
    min_new_tokens: int = 0
    """Until then no member may propose EOS."""
    stop: str | Sequence[str] = ()
    """Strings that end the text; they are cut off, together with whatever follows."""
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """Sample among this many slots, 0 for all. The paper's k is `k`."""
    seed: int | None = None
    """Row i draws from a generator seeded with seed + i; None takes the seed from torch's global generator."""
    repetition_penalty: float = 1.0
    """Applied by every member to the ids of its own context."""
    logits_processor: Sequence[Any] | None = None
    """Per member a `LogitsProcessor`, a list of them, or None."""
    gate: float | None = None
    """A step takes the primary's token without asking the others when its probability there is above this."""

    def __post_init__(self) -> None:
        check_integer("max_new_tokens", self.max_new_tokens, 1, 2**31)
        check_integer("min_new_tokens", self.min_new_tokens, 0, self.max_new_tokens)
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if any(not isinstance(s, str) for s in stops):
            raise TypeError(f"stop must be a string or strings, got {self.stop!r}")
        if "" in stops:
            raise ValueError("stop must not hold an empty string")
        object.__setattr__(self, "stop", stops)
        check_integer("top_k", self.top_k, 0, 2**31)
        _check_number("temperature", self.temperature, lambda v: v > 0, "above 0")
        _check_number("top_p", self.top_p, lambda v: 0 < v <= 1, "above 0 and at most 1")
        _check_number("repetition_penalty", self.repetition_penalty, lambda v: v > 0, "above 0")
        if self.gate is not None:
            _check_number("gate", self.gate, lambda v: 0 <= v <= 1, "from 0 to 1")
        if self.seed is not None:
            check_integer("seed", self.seed, 0, 2**63 - 1)


def _check_number(name: str, value: float, good: Callable[[float], bool], expected: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not (math.isfinite(value) and good(value)):
        raise ValueError(f"{name} must be {expected}, got {value}")


@dataclass
class StepTrace:
    """One step of one row: the union and what every member thought of it."""

    union_ids: list[list[int]]
    """[U][M]: each member's id of every slot, -1 where it cannot spell it."""
    union_probs: list[float]
    """[U]: the weighted average."""
    member_probs: list[list[float]]
    """[U][M]: every member's softmax over the union."""
    winner: int
    """Index of the slot taken."""
    gated: bool = False
    """Whether the primary's token was taken without asking the others."""


@dataclass
class GenerateOutput:
    """What `UniteEnsemble.generate(..., return_dict=True)` returns; every list has one entry per prompt."""

    texts: list[str]
    token_ids: list[list[list[int]]]
    """[B][M]: each member's ids of the text, the primary's as it emitted them (without EOS)."""
    finish_reasons: list[str]
    """"eos", "stop" or "length"."""
    num_steps: list[int]
    """Steps taken, the one that chose EOS included."""
    gated_steps: list[int]
    """Of these, how many the gate decided."""
    traces: list[list[StepTrace]]


@dataclass
class Row:
    """The state of one prompt's generation."""

    index: int
    syncs: list[Any]
    """Per member its `TextSync`, or None where it takes the primary's ids."""
    stops: tuple[bytes, ...]
    generator: torch.Generator | None = None
    text: bytearray = field(default_factory=bytearray)
    ids: list[int] = field(default_factory=list)
    """The primary's."""
    finish_reason: str = ""
    num_steps: int = 0
    gated_steps: int = 0
    traces: list[StepTrace] = field(default_factory=list)

    def emit(self, token_id: int, data: bytes) -> None:
        """Append one token of the primary; cut the text where a stop string begins."""
        self.ids.append(token_id)
        start = len(self.text)
        self.text += data
        if self.stops:
            found = [at for stop in self.stops if (at := self.text.find(stop, max(0, start - len(stop) + 1))) >= 0]
            if found:
                del self.text[min(found) :]
                self.finish_reason = "stop"

    def decoded(self) -> str:
        """The text so far; bytes that are not UTF-8 become the replacement character."""
        return bytes(self.text).decode("utf-8", errors="replace")

    def settled_length(self) -> int:
        """How many bytes of the text no stop string can take back any more."""
        if self.finish_reason:
            return len(self.text)
        longest = max(map(len, self.stops), default=1) - 1
        for held in range(min(longest, len(self.text)), 0, -1):
            if any(stop.startswith(self.text[-held:]) for stop in self.stops):
                return len(self.text) - held
        return len(self.text)


class TextStream:
    """What `UniteEnsemble.stream` returns: an iterator over the pieces of a text, and the row they come from."""

    def __init__(self, row_steps: Iterator[Row]) -> None:
        self._steps = row_steps
        self._pieces = TextPieces()
        self.row: Row | None = None
        """The row so far, None before the first step: its text, ids, and with `trace=True` its trace."""

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        for row in self._steps:
            self.row = row
            if piece := self._pieces.next(row):
                return piece
        raise StopIteration


class TextPieces:
    """Turns a row's growing text into pieces of whole characters."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._sent = 0

    def next(self, row: Row) -> str:
        """What has become certain since the last call."""
        end = row.settled_length()
        piece = self._decoder.decode(bytes(row.text[self._sent : end]), final=bool(row.finish_reason))
        self._sent = end
        return piece


def warped(probs: Tensor, options: GenerationOptions) -> Tensor:
    """The distribution that a row draws from: averaged probabilities [U] (float64) to the same, as Hugging Face orders.

    First the temperature, p^(1/T) renormalised, then the `top_k` most likely, then the smallest set of them that holds
    `top_p` of the mass. Equal probabilities: lower slots first.
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
    draw = torch.rand((), generator=generator, dtype=torch.float64) * cumulative[-1]
    return int(torch.searchsorted(cumulative, draw, right=True).clamp(max=len(probs) - 1))
