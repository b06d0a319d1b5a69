"""How the processes of an ensemble come to do the same: what one engine is asked for, told to or checked with all.

With ranks="auto" every process makes the same calls: before each step they check that they were asked for the same.
With ranks="led" rank 0 alone is asked: before each step it tells the others which requests have come and which were
cancelled, and they follow with engines of their own (`rank_follower.py`).
"""

from __future__ import annotations

import itertools
import json
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch

from ..members.rank_group import CLOSE, OPEN, STEP, Header, RankError, RankGroup, digest_of
from ..methods.base import AnswerMethod, Method, TokenMethod
from ..methods.registry import METHODS, method_class
from ..options import GenerationOptions, StepOptions
from .ranks import RankExchange
from .request import Request

Call = dict[str, Any]
"""What an engine is asked for, as JSON."""


def check_spreads(method: str | Method, step: StepOptions) -> None:
    """Raise ValueError for what members in several processes cannot do. Needs no model."""
    cls = type(method) if isinstance(method, Method) else method_class(method)
    if not issubclass(cls, AnswerMethod) and not getattr(cls, "spreads", False):
        raise ValueError(
            f"method must be 'unite' or choose among answers where members live on several ranks, got {cls.name!r}: it "
            "needs their whole vocabularies"
        )
    if step.boundaries != "plain":
        raise ValueError(
            f"boundaries must be 'plain' where members live on several ranks, got {step.boundaries!r}: they vote on "
            "whole vocabularies"
        )


class Link:
    """What ties an engine to those of other processes; here there are none, or they are not to be told."""

    def submitted(self, request: Request, seed: int) -> None:
        """A request has been taken."""

    def cancelled(self, request: Request) -> None:
        """A request has been cancelled."""

    def begin_step(self) -> None:
        """A step begins."""

    def end_step(self) -> None:
        """It has ended."""


NO_LINK = Link()


class RankLink(Link):
    """Collects what an engine is asked for, and tells or checks it before every step.

    Parameters
    ----------
    group : RankGroup
    number : int
        The engine's.
    ended : list of int
        Engines that are no longer used; the others are told.
    """

    def __init__(self, group: RankGroup, number: int, ended: list[int]) -> None:
        self._group = group
        self._number = number
        self._ended = ended
        self._calls: list[Call] = []
        # Requests with the same object share launches: the others have to group them alike.
        self._methods: weakref.WeakKeyDictionary[TokenMethod, int] = weakref.WeakKeyDictionary()
        self._next_method = itertools.count()

    def submitted(self, request: Request, seed: int) -> None:
        """See `Link.submitted`."""
        if request.method not in self._methods:
            self._methods[request.method] = next(self._next_method)
        self._calls.append(
            {
                "submit": request.key, "index": request.index, "seed": seed, "prompt_ids": request.prompt_ids,
                "starts": request.starts,
                "number": self._methods[request.method], "method": request.method.name,
                "step": asdict(request.method.options), "generation": _changed(request.options),
                "targets": request.targets, "full": request.full,
            }
        )  # fmt: skip

    def cancelled(self, request: Request) -> None:
        """See `Link.cancelled`."""
        self._calls.append({"cancel": request.key})

    def begin_step(self) -> None:
        """See `Link.begin_step`."""
        self._group.busy = True
        calls, self._calls = self._calls, []
        tell(self._group, STEP, self._number, {"calls": calls, "ended": take_all(self._ended)} if calls else None)

    def end_step(self) -> None:
        """See `Link.end_step`."""
        self._group.busy = False


def tell(group: RankGroup, action: int, number: int, said: Call | None) -> None:
    """Tell the others something, or check that they say the same."""
    text = json.dumps(said, default=lambda other: type(other).__name__) if said else ""
    if group.led:
        group.tell(Header(action, number, 0, 0), text.encode())
    else:
        group.compare(Header(action, number, 0, digest_of(text)))


def take_all(values: list[int]) -> list[int]:
    """The values of a list, which is empty then."""
    taken = values[:]
    del values[: len(taken)]
    return taken


def _changed(options: GenerationOptions) -> Call:
    """The options that are not the defaults."""
    defaults = GenerationOptions()
    values = {field.name: getattr(options, field.name) for field in fields(GenerationOptions)}
    return {name: value for name, value in values.items() if value != getattr(defaults, name)}


@dataclass
class Ranks:
    """Where the members of an ensemble live, and how its engines work together.

    Attributes
    ----------
    group : RankGroup
    holders : sequence of int
        Per member its rank.
    alone : int or None
        Of a member by itself: which of the whole ensemble's.
    numbers : iterator of int
        Of the next engines.
    ended : list of int
        Engines that are no longer used, of which the others have not been told.
    """

    group: RankGroup
    holders: Sequence[int]
    alone: int | None = None
    numbers: Iterator[int] = field(default_factory=itertools.count)
    ended: list[int] = field(default_factory=list)

    def of_member(self, member: int) -> Ranks:
        """The same for one member by itself."""
        return replace(self, holders=[self.holders[member]], alone=member)

    @property
    def follows(self) -> bool:
        """Whether this process does what rank 0 says."""
        return self.group.led and self.group.rank != 0

    def exchange(self) -> RankExchange:
        """What a new engine's steps use."""
        return RankExchange(self.group, self.holders)

    def link(self, engine: object, settings: Call) -> Link:
        """What ties a new engine to those of the other processes, which make it with these settings as well."""
        if self.follows:
            return NO_LINK
        number = next(self.numbers)
        if self.group.led:  # elsewhere each process lets go of its own, when it does
            weakref.finalize(engine, self.ended.append, number)
        tell(self.group, OPEN, number, {**settings, "alone": self.alone})
        return RankLink(self.group, number, self.ended)

    def fail(self, error: BaseException | str) -> None:
        """Tell the other processes why this one ends, and let go of them."""
        if self.group.is_open:
            if not isinstance(error, RankError):  # of which they know
                self.group.post(error)
            self.group.close()

    def close(self) -> None:
        """End the other processes' following, and let go of them."""
        if self.group.led and not self.follows and self.group.is_open:
            tell(self.group, CLOSE, 0, None)
        self.group.close()

    def shared_seed(self, seed: int) -> int:
        """A seed that is the same in all processes: rank 0's."""
        if self.group.led:
            return seed
        return int(self.group.share(torch.tensor([seed], dtype=torch.int64, device="cpu"), 0))

    def check(self, method: Method, step: StepOptions, generation: GenerationOptions) -> None:
        """Raise ValueError for what a call cannot have."""
        check_spreads(method, step)
        if generation.on_member_failure != "stop":
            raise ValueError(
                "on_member_failure must be 'stop' where members live on several ranks, got "
                f"{generation.on_member_failure!r}: without one of them none goes on"
            )
        if self.group.led and not self.follows:
            if generation.logits_processor is not None:
                raise ValueError("logits_processor must be None with ranks='led': the other processes do not have it")
            if method.name not in METHODS or type(method) is not method_class(method.name):
                raise ValueError(f"method must be one of the registry's with ranks='led', got {method.name!r}")
