"""Answer-level methods: every member answers alone, and one of the answers is chosen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..members.base import Prompt
from ..methods.base import AnswerMethod
from .request import Request

if TYPE_CHECKING:
    from .ensemble import UniteEnsemble


def choose_answers(
    ensemble: UniteEnsemble,
    method: AnswerMethod,
    primary: int,
    prompts: Sequence[Prompt],
    indices: Sequence[int],
    **options: Any,
) -> Iterator[Request]:
    """Yield every prompt's chosen request, after all members have answered all prompts.

    Parameters
    ----------
    ensemble : UniteEnsemble
    method : AnswerMethod
    primary : int
        Its answers come first, so that ties go to it.
    prompts : sequence
    indices : sequence of int
        What numbers the prompts.
    **options
        Of `UniteEnsemble.generate_each`: how every member generates.

    Yields
    ------
    Request
        The winner's; its ids are those of the member that gave it, and it has no others.
    """
    order = [primary, *(m for m in range(len(ensemble.members)) if m != primary)]
    # Every member takes all prompts before any of them runs: what one of them refuses is found out at once.
    runs = [ensemble.alone(m).generate_each(prompts, indices=indices, **options) for m in order]
    return _chosen(method, runs, prompts, indices)


def _chosen(
    method: AnswerMethod, runs: Sequence[Iterator[Request]], prompts: Sequence[Prompt], indices: Sequence[int]
) -> Iterator[Request]:
    answers = [{request.index: request for request in run} for run in runs]
    for prompt, index in zip(prompts, indices):
        given = [own[index] for own in answers]
        yield given[method.choose(prompt, [request.decoded() for request in given])]
