"""The members of an ensemble by name: everything that can be wrong is found before a model is loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from .._core import MAX_MEMBERS
from ..members.base import BaseMember, Prompt, Variables
from ..members.loading import MemberSource, prepare_all
from ..members.rank_group import RANK_TIMEOUT, RankGroup, check_ranks
from ..members.ranks import load_spread
from ..members.transformers import Member
from ..methods.registry import UNITE, check_combine, check_method, check_vocabularies, needs_vocabularies
from ..options import STEP_FIELDS, StepOptions, step_options
from ..vocab.alignment import VocabAlignment
from .plan import METHOD_FIELDS
from .rank_calls import Ranks, check_spreads

Loadable = str | os.PathLike[str] | MemberSource | BaseMember
"""A member by name or folder, prepared, or as it is."""
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
    names: Sequence[Loadable],
    given: Mapping[str, Any],
    *,
    lossy: bool,
    ranks: str | None = None,
    rank_timeout: float = RANK_TIMEOUT,
) -> tuple[Sequence[BaseMember], dict[str, Any], Ranks | None]:
    """Load models, see `UniteEnsemble.from_pretrained`.

    Parameters
    ----------
    names : sequence of str, path, MemberSource or BaseMember
    given : mapping
        Options of the ensemble's steps and method, and of the members.
    lossy : bool
    ranks, rank_timeout

    Returns
    -------
    members : sequence of BaseMember
    ours : dict
        The options that are the ensemble's.
    ranks : Ranks or None
        Where the members live, if in several processes.
    """
    if isinstance(names, (str, os.PathLike)):
        raise TypeError(f"names must be a list of model names, got {names!r} alone")
    if not 1 <= len(names) <= MAX_MEMBERS:
        raise ValueError(f"names must hold 1 to {MAX_MEMBERS} models, got {len(names)}")
    options = dict(given)
    ours = {name: options.pop(name) for name in (*STEP_FIELDS, *METHOD_FIELDS) if name in options}
    method, own = ours.get("method", UNITE), ours.get("method_options")
    step = step_options(ours, StepOptions()).check(len(names))
    check_method(method, own, len(names))
    check_combine(method, step)
    places = check_ranks(ranks, len(names))
    if places is not None:
        check_spreads(method, step)
        _check_loadable(names)
    for name, value in options.items():
        if isinstance(value, (list, tuple)) and len(value) != len(names):
            raise ValueError(f"{name} must be one value or one per member, {len(names)}, got {len(value)}")
    each = [{o: v[m] if isinstance(v, (list, tuple)) else v for o, v in options.items()} for m in range(len(names))]
    sources = prepare_all(names, each, known=(*STEP_FIELDS, *METHOD_FIELDS, "lossy", "compile", "ranks"), places=places)
    if needs_vocabularies(method):
        alignment = VocabAlignment.from_tokenizers([source.tokenizer for source in sources], lossy=lossy)
        device = sources[step.primary].device
        check_vocabularies(method, own, alignment if device is None else alignment.to(device), step)
    if places is None:
        return [Member.from_source(own) if isinstance(own, MemberSource) else own for own in sources], ours, None
    spread = [source for source in sources if isinstance(source, MemberSource)]  # all of them, as was checked
    group = RankGroup(places, [source.name for source in spread], timeout=rank_timeout, led=ranks == "led")
    loaded = load_spread(spread, group)
    group.keep_alive()
    return loaded, ours, Ranks(group, group.holders)


def _check_loadable(names: Sequence[Loadable]) -> None:
    """Raise ValueError for a member that is made already, such as one behind a server: each rank loads its own."""
    for name in names:
        if isinstance(name, BaseMember):
            raise ValueError(
                "names must be models that run here where members live on several ranks, which load them themselves, "
                f"got {name.name} as a {type(name).__name__}"
            )


def as_batch(prompts: Any) -> tuple[Sequence[Prompt], bool]:
    """The prompts, and whether there was a single one: a string, or a list of messages."""
    if not isinstance(prompts, Sequence):
        raise TypeError(f"prompts must be text, chat messages, or a list of these, got {type(prompts).__name__}")
    single = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], dict))
    return ([prompts] if single else prompts), single
