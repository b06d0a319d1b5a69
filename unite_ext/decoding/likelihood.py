"""Scoring of given continuations: the engine takes their tokens, and notes how likely each was."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .._checks import check_choice
from ..members.base import Prompt
from ..methods.base import AnswerMethod, TokenMethod
from ..options import GenerationOptions
from .prompt_ids import EncodedPrompt
from .request import Request

if TYPE_CHECKING:
    from .ensemble import UniteEnsemble


LIKELIHOODS = ("union", "full")


@dataclass(frozen=True)
class Likelihood:
    """What `score_continuations` says of one continuation."""

    index: int
    """Its position in the requests."""
    log_prob: float
    """Natural logarithm of the probability of all its tokens."""
    is_greedy: bool
    """Whether the ensemble would generate it."""


def score_continuations(
    ensemble: UniteEnsemble,
    requests: Sequence[tuple[Prompt | Sequence[Sequence[int]] | EncodedPrompt, Sequence[int]]],
    *,
    batch_size: int | None = None,
    progress: bool = False,
    likelihood: str = "union",
    **options: Any,
) -> Iterator[Likelihood]:
    """Score continuations under an ensemble; each is yielded as soon as it is known.

    Parameters
    ----------
    ensemble : UniteEnsemble
    requests : sequence of (prompt, ids)
        A prompt as in `UniteEnsemble.generate`, or a list with every member's own ids of it, or an `EncodedPrompt`; and
        the primary's ids of the continuation, at least one, all eligible. In the start state they begin with the space
        that the primary writes before its text.
    batch_size : int, optional
        How many run side by side; all by default.
    progress : bool
        Show a progress bar.
    likelihood : {"union", "full"}
        How probable a token is. "union": what the step gives it, which UNITE normalises over the union. "full": the
        weighted mean of the members' own probabilities, each over its whole eligible vocabulary; a member that has no
        single id for the token's text counts with the chain of its ids of that text. The latter can be compared with a
        single model's, and of one member alone is its own.
    **options
        Step options (`k`, `primary`, `weights`, `method`, ...) for this call.

    Raises
    ------
    TypeError, ValueError
        An option, a prompt or an id is wrong, or the method gives no likelihoods; no model has run.
    """
    check_choice("likelihood", likelihood, LIKELIHOODS)
    plan = ensemble.plan(options, generates=False)
    if isinstance(plan.method, AnswerMethod):
        raise ValueError(f"method {plan.method.name!r} chooses among whole answers and gives no likelihoods")
    if likelihood == "full" and not plan.token_method.averages:
        raise ValueError(
            f"likelihood must be 'union' with method {plan.method.name!r} and combine={plan.step.combine!r}: they take "
            "no mean of the members' probabilities"
        )
    primary = plan.step.primary
    for i, (prompt, ids) in enumerate(requests):
        given = prompt.ids if isinstance(prompt, EncodedPrompt) else prompt
        if isinstance(given, list) and given and isinstance(given[0], list):
            for member, own in zip(ensemble.members, given):
                try:
                    member.check_ids(own)
                except ValueError as error:
                    raise ValueError(f"requests[{i}]: {error}") from error
        if not ids:
            raise ValueError(f"requests[{i}]: the continuation must have at least one token, got none")
        bad = [t for t in ids if ensemble.alignment.class_of(primary, t) < 0]
        if bad:
            raise ValueError(f"requests[{i}]: id {bad[0]} is not an eligible id of the primary")
    longest = max((len(ids) for _, ids in requests), default=1)
    engine = ensemble.new_engine(plan, max_requests=batch_size or max(1, len(requests)))
    wanted = GenerationOptions(max_new_tokens=longest + 1)
    encoded = [engine.encoded(prompt) for prompt, _ in requests]
    for i in _longest_first([(prompt.ids[primary], len(ids)) for prompt, (_, ids) in zip(encoded, requests)]):
        targets = list(requests[i][1])
        engine.submit(encoded[i], plan.token_method, wanted, index=i, targets=targets, full=likelihood == "full")
    return (_found(request) for request in engine.run(progress=progress))


def _longest_first(texts: Sequence[tuple[Sequence[int], int]]) -> list[int]:
    """An order in which texts of alike lengths run side by side, and those with one prompt share it.

    Every text is its prompt's ids and how many follow. Rows of a pass are filled up to its longest.
    """
    together: dict[tuple[int, ...], list[int]] = {}
    for n, (prompt, _) in enumerate(texts):
        together.setdefault(tuple(prompt), []).append(n)
    groups = sorted(together.items(), key=lambda group: -len(group[0]) - max(texts[n][1] for n in group[1]))
    return [n for _, group in groups for n in group]


def default_likelihood(ensemble: UniteEnsemble) -> str:
    """ "full" where the ensemble's method takes a mean of the members' own probabilities, else "union"."""
    method = ensemble.plan({}).method
    return "full" if isinstance(method, TokenMethod) and method.averages else "union"


def _found(request: Request) -> Likelihood:
    targets = request.targets or ()
    if len(request.scores) < len(targets):
        raise ValueError(
            f"requests[{request.index}]: only {len(request.scores)} of its {len(targets)} tokens fit into the members' "
            "contexts"
        )
    scores = request.scores
    return Likelihood(request.index, math.fsum(s.log_prob for s in scores), all(s.is_greedy for s in scores))
