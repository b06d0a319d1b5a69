"""What an ensemble runs its calls on: plans, methods and engines, in one process or several."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from ..members.base import BaseMember
from ..methods.base import Method
from ..methods.registry import UNITE, make_method
from ..options import StepOptions
from ..vocab.alignment import VocabAlignment
from .draft_choice import DraftCosts
from .engine import PREFILL_CHUNK, Engine
from .plan import Plan, make_plan
from .rank_calls import Ranks
from .rank_follower import follow


class EnsembleEngines(ABC):
    """Makes the plans and engines of an ensemble.

    Parameters
    ----------
    members : sequence of BaseMember
    alignment : VocabAlignment
        Of these members.
    step : StepOptions
        Of calls that say nothing else.
    method, method_options
        Of calls that say nothing else.
    compile : bool
        See `UniteEnsemble`.
    ranks : Ranks, optional
        Where the members live, if in several processes.
    """

    def __init__(
        self,
        members: Sequence[BaseMember],
        alignment: VocabAlignment,
        step: StepOptions,
        *,
        method: str | Method = UNITE,
        method_options: Mapping[str, Any] | None = None,
        compile: bool = False,
        ranks: Ranks | None = None,
    ) -> None:
        self.members: list[BaseMember] = list(members)
        self.alignment: VocabAlignment = alignment.to(self.members[step.primary].device)
        self.step_options: StepOptions = step
        self.method = method
        self.method_options = method_options
        self.compile = compile
        self.ranks = ranks
        self._made: dict[str, Method] = {}
        self._draft_costs = [DraftCosts(len(self.members), m) for m in range(len(self.members))]  # by primary
        self.plan({})

    def plan(self, options: Mapping[str, Any], *, generates: bool = True) -> Plan:
        """What a call with these keyword options does.

        Parameters
        ----------
        options : mapping
            Of a step, a method, and with `generates` of a generation.
        generates : bool

        Raises
        ------
        TypeError, ValueError
            An option is unknown or wrong, or the method cannot run with these members.
        """
        method = options.get("method", self.method)
        own = options.get("method_options", self.method_options if "method" not in options else None)
        plan = make_plan(
            options, self.step_options, method, own, self._method, self.members, self.alignment, generates=generates
        )
        if self.ranks is not None:
            self.ranks.check(plan.method, plan.step, plan.generation)
        return plan

    def new_engine(self, plan: Plan, *, max_requests: int, expected_length: int = 0) -> Engine:
        """An engine on the ensemble's members, led by the plan's primary."""
        return self.make_engine(primary=plan.step.primary, max_requests=max_requests, expected_length=expected_length)

    def make_engine(
        self,
        *,
        primary: int,
        max_requests: int,
        expected_length: int = 0,
        prefill_chunk: int = PREFILL_CHUNK,
        cache_memory: int | None = None,
    ) -> Engine:
        """An engine on the ensemble's members; arguments as `Engine`."""
        return Engine(
            self.members,
            self.alignment,
            primary=primary,
            max_requests=max_requests,
            prefill_chunk=prefill_chunk,
            cache_memory=cache_memory,
            compiled=self.compile,
            expected_length=expected_length,
            draft_costs=self._draft_costs[primary],
            ranks=self.ranks,
        )

    def make_method(self, method: str, own: Mapping[str, Any] | None, step: StepOptions) -> Method:
        """A new object of a method for these members."""
        alignment = self.alignment.to(self.members[step.primary].device)
        return make_method(method, own, alignment, self.members, step)

    @abstractmethod
    def alone(self, m: int) -> EnsembleEngines:
        """Member m by itself, which then generates as it would without the others."""

    def draw_seed(self, plan: Plan) -> int:
        """The seed that prompt 0 of a call draws with; the same in all processes."""
        seed = plan.draw_seed()
        return self.ranks.shared_seed(seed) if self.ranks is not None and plan.generation.do_sample else seed

    def follow(self) -> None:
        """With ranks="led", do in this process what rank 0 is asked for, until it closes the ensemble.

        Raises
        ------
        ValueError
            This is rank 0, or there is no other.
        RankError
            A process has ended, or does not answer; says which.
        """
        if self.ranks is None or not self.ranks.follows:
            raise ValueError("follow must be called on other ranks than 0, of an ensemble with ranks='led'")
        follow(self, self.ranks)

    def close(self) -> None:
        """Let go of the other processes that the members live in, if there are any; the ensemble can do no more."""
        if self.ranks is not None:
            self.ranks.close()

    def _method(self, method: str | Method, own: Mapping[str, Any] | None, step: StepOptions) -> Method:
        """The method's object; small ones are kept, and of large ones the last."""
        key = f"{method} {sorted((own or {}).items())} {step}"
        if isinstance(method, Method) or key in self._made:
            return method if isinstance(method, Method) else self._made[key]
        if len(self._made) > 64:  # weights may differ from call to call
            self._made.clear()
        for other in [name for name, made in self._made.items() if made.is_large]:
            del self._made[other]  # before the next one is made
        self._made[key] = self.make_method(method, own, step)
        return self._made[key]

    def __repr__(self) -> str:
        members = ", ".join(member.name for member in self.members)
        step = self.step_options
        return f"{type(self).__name__}({members}; primary {self.members[step.primary].name}, k={step.k})"
