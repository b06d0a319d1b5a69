"""Answer-level methods: every member answers alone, and one of the answers is chosen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..members.base import Prompt
from ..methods.base import AnswerMethod
from .request import Request


def choose_answers(
    method: AnswerMethod, runs: Sequence[Iterator[Request]], prompts: Sequence[Prompt], indices: Sequence[int]
) -> Iterator[Request]:
    """Yield every prompt's chosen request, after all members have answered all prompts.

    Parameters
    ----------
    method : AnswerMethod
    runs : sequence of iterator
        Per member its requests as they finish, the primary's first, so that ties go to it.
    prompts : sequence
    indices : sequence of int
        What numbers the prompts.

    Yields
    ------
    Request
        The winner's; its ids are those of the member that gave it, and it has no others.
    """
    answers = [{request.index: request for request in run} for run in runs]
    for prompt, index in zip(prompts, indices):
        given = [own[index] for own in answers]
        yield given[method.choose(prompt, [request.decoded() for request in given])]
