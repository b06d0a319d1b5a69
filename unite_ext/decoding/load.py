"""The members of an ensemble by name: everything that can be wrong is found before a model is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .._core import MAX_MEMBERS
from ..members.base import BaseMember, Prompt, Variables
from ..members.loading import MemberSource, prepare_all
from ..members.transformers import Member
from ..methods.registry import UNITE, check_combine, check_method, check_vocabularies, needs_vocabularies
from ..options import STEP_FIELDS, StepOptions, step_options
from ..vocab.alignment import VocabAlignment
from .plan import METHOD_FIELDS

Loadable = str | MemberSource | BaseMember
"""A member by name, prepared, or as it is."""
TemplateVariables = Variables | Sequence[Variables | None] | None
"""Variables for chat templates: of all members, or one mapping per member."""


def variables_of_members(given: TemplateVariables, members: int) -> list[Variables | None]:
    """Per member its variables. TypeError or ValueError where they are no mappings, or not one per member."""
    each = list(given) if isinstance(given, (list, tuple)) else [given] * members
    if len(each) != members:
        raise ValueError(f"chat_template_kwargs must be one mapping or one per member, {members}, got {len(each)}")
    found: list[Variables | None] = []
    for own in each:
        if own is not None and not isinstance(own, Mapping):
            raise TypeError(f"chat_template_kwargs must map names to values, got {type(own).__name__}")
        found.append(own)
    return found


def load_members(
    names: Sequence[Loadable], given: Mapping[str, Any], *, lossy: bool
) -> tuple[list[BaseMember], dict[str, Any]]:
    """Load models, see `UniteEnsemble.from_pretrained`.

    Parameters
    ----------
    names : sequence of str, MemberSource or BaseMember
    given : mapping
        Options of the ensemble's steps and method, and of the members.
    lossy : bool

    Returns
    -------
    members : list of BaseMember
    ours : dict
        The options that are the ensemble's.
    """
    if isinstance(names, str):
        raise TypeError(f"names must be a list of model names, got the string {names!r}")
    if not 1 <= len(names) <= MAX_MEMBERS:
        raise ValueError(f"names must hold 1 to {MAX_MEMBERS} models, got {len(names)}")
    options = dict(given)
    ours = {name: options.pop(name) for name in (*STEP_FIELDS, *METHOD_FIELDS) if name in options}
    method, own = ours.get("method", UNITE), ours.get("method_options")
    step = step_options(ours, StepOptions()).check(len(names))
    check_method(method, own, len(names))
    check_combine(method, step)
    for name, value in options.items():
        if isinstance(value, (list, tuple)) and len(value) != len(names):
            raise ValueError(f"{name} must be one value or one per member, {len(names)}, got {len(value)}")
    each = [{o: v[m] if isinstance(v, (list, tuple)) else v for o, v in options.items()} for m in range(len(names))]
    sources = prepare_all(names, each, known=(*STEP_FIELDS, *METHOD_FIELDS, "lossy", "compile"))
    if needs_vocabularies(method):
        alignment = VocabAlignment.from_tokenizers([source.tokenizer for source in sources], lossy=lossy)
        device = sources[step.primary].device
        check_vocabularies(method, own, alignment if device is None else alignment.to(device), step)
    members = [Member.from_source(source) if isinstance(source, MemberSource) else source for source in sources]
    return members, ours


def as_batch(prompts: Any) -> tuple[Sequence[Prompt], bool]:
    """The prompts, and whether there was a single one: a string, or a list of messages."""
    if not isinstance(prompts, Sequence):
        raise TypeError(f"prompts must be text, chat messages, or a list of these, got {type(prompts).__name__}")
    single = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], dict))
    return ([prompts] if single else prompts), single
