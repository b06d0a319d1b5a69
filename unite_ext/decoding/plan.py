"""What one call does: from keyword options to typed ones and the method that decides."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from ..members.base import BaseMember
from ..methods.base import Method, TokenMethod
from ..methods.registry import check_combine, check_method, method_class
from ..options import (
    STEP_FIELDS,
    GenerationOptions,
    StepOptions,
    check_boundaries,
    generation_options,
    step_options,
)
from ..structured.compiled import Structure
from ..structured.constraint import Constraint
from ..vocab.alignment import VocabAlignment

METHOD_FIELDS = ("method", "method_options")
MakeMethod = Callable[[str | Method, Mapping[str, object] | None, StepOptions], Method]


@dataclass(frozen=True)
class Plan:
    """What one call does: its options, checked, and the method that decides."""

    step: StepOptions
    method: Method
    method_options: Mapping[str, object] | None
    generation: GenerationOptions

    @property
    def token_method(self) -> TokenMethod:
        """The method, which must decide token by token. TypeError for another."""
        if not isinstance(self.method, TokenMethod):
            raise TypeError(f"method {self.method.name!r} chooses among whole answers: it has no steps")
        return self.method

    def draw_seed(self) -> int:
        """The seed that prompt 0 draws with; from torch's global generator where none is given."""
        options = self.generation
        if options.do_sample and options.seed is None:
            return int(torch.randint(2**31, (), device="cpu"))
        return options.seed or 0


def make_plan(
    options: Mapping[str, object],
    defaults: StepOptions,
    method: str | Method,
    own: Mapping[str, object] | None,
    make_method: MakeMethod,
    members: Sequence[BaseMember],
    alignment: VocabAlignment,
    *,
    generates: bool,
) -> Plan:
    """Check the keyword options of a call, see `UniteEnsemble.plan`."""
    step = step_options(options, defaults).check(len(members))
    check_method(method, own, len(members))
    if not generates and (unknown := options.keys() - {*STEP_FIELDS, *METHOD_FIELDS}):
        raise TypeError(f"unknown option {sorted(unknown)[0]!r}")
    check_combine(method, step)
    generation = generation_options(options, METHOD_FIELDS)
    check_members(members, method, step, generation)
    made = make_method(method, own, step)
    if generation.do_sample and isinstance(made, TokenMethod) and not made.samples:
        raise ValueError(f"do_sample must be False with method {made.name!r}, which takes the best token")
    if generation.structure is not None:
        check_constrains(made, generation.structure)
        Constraint(
            generation.structure, alignment.vocabularies, step.primary
        )  # compiles it, and raises where it allows no text
    if step.boundaries == "exact" and not (isinstance(made, TokenMethod) and made.walks):
        raise ValueError(f"boundaries must be 'plain' with method {made.name!r}, got 'exact'")
    return Plan(step, made, own, generation)


def check_members(
    members: Sequence[BaseMember], method: str | Method, step: StepOptions, generation: GenerationOptions
) -> None:
    """Raise ValueError for what cannot be had together, or of some member: nobody has been asked anything yet."""
    check_boundaries(step, generation)
    cls = type(method) if isinstance(method, Method) else method_class(method)
    drops = issubclass(cls, TokenMethod) and cls.drops_members
    if generation.on_member_failure != "stop" and not drops:
        raise ValueError(
            f"on_member_failure must be 'stop' with method {cls.name!r}, got {generation.on_member_failure!r}"
        )
    if step.boundaries == "exact" and generation.on_member_failure != "stop":
        raise ValueError(
            f"on_member_failure must be 'stop' with boundaries='exact', got {generation.on_member_failure!r}"
        )
    for m, member in enumerate(members):
        member.check_step(step)
        if issubclass(cls, TokenMethod) and cls.reads_prompts and not member.gives_likelihoods:
            raise ValueError(
                f"method must not be {cls.name!r} with {member.name}, which gives no likelihood of a prompt"
            )
        if member.gives_logits:
            continue
        why = f"with {member.name}, which gives the logits of single ids only"
        if issubclass(cls, TokenMethod) and cls.needs_logits:
            raise ValueError(f"method must not be {cls.name!r} {why}")
        if step.boundaries == "exact":
            raise ValueError(f"boundaries must be 'plain' {why}, got 'exact'")
        for name, needs in generation.needs_logits.items():
            if needs and (name != "gate" or m == step.primary):
                raise ValueError(f"{name} must not be given {why}, got {getattr(generation, name)!r}")


def check_constrains(method: Method, structure: Structure) -> None:
    """Raise ValueError if a method could emit what a structure does not allow."""
    if isinstance(method, TokenMethod) and not method.keeps_structure:
        raise ValueError(
            f"{structure.kind} must be None with method {method.name!r}, which may emit tokens that no member proposed"
        )
