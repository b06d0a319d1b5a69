"""Output-level methods: every member answers alone, and one of the answers is chosen."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from .._arguments import normalize_weights
from ..decoding.generation import Row
from ..vocab.alignment import VocabAlignment


class AnswerMethod(ABC):
    """Chooses among whole answers.

    Parameters
    ----------
    weights : sequence of float
        One per member, summing to 1.
    **options
        The method's own, keyword-only in `__init__`; `method_options` of `UniteEnsemble`.
    """

    name: ClassVar[str]

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """Raise TypeError or ValueError for options that are unknown or wrong, or when something is not installed."""
        known = [p.name for p in inspect.signature(cls.__init__).parameters.values() if p.kind is p.KEYWORD_ONLY]
        for option in options:
            if option not in known:
                raise TypeError(
                    f"method {cls.name!r} has no option {option!r}; its method_options are {', '.join(known) or 'none'}"
                )

    @classmethod  # noqa: B027  # nothing to check by default
    def check(cls, alignment: VocabAlignment, step_options: Mapping[str, Any]) -> None:
        """Any members can be combined: only their texts meet."""

    def __init__(self, weights: Sequence[float]) -> None:
        self.weights = list(weights)

    @abstractmethod
    def choose(self, prompt: Any, answers: Sequence[str]) -> int:
        """The index of the best answer, one per member in member order; equally good: the primary's comes first."""


def choose_rows(
    ensemble: Any, step: Mapping[str, Any], prompts: Sequence[Any], indices: Sequence[int], **options: Any
) -> Iterator[Row]:
    """Every prompt's chosen row, after all members have answered all prompts.

    Parameters
    ----------
    ensemble : UniteEnsemble
    step : mapping
        Its step options, `method` being one of `OUTPUT_METHODS`.
    prompts : sequence
    indices : sequence of int
        What numbers the prompts.
    **options
        Of `UniteEnsemble.generate_each`: how every member generates.

    Yields
    ------
    Row
        The winner's; its ids are those of the member that gave it, and it has no others.
    """
    from .registry import method_class

    members = len(ensemble.members)
    # The primary first, so that ties go to it.
    order = [step["primary"], *(m for m in range(members) if m != step["primary"])]
    weights = normalize_weights(step["weights"], members)
    method = method_class(step["method"])([weights[m] for m in order], **(step["method_options"] or {}))
    # Every member takes all prompts before any of them runs: what one of them refuses is found out at once.
    runs = [ensemble.alone(m).generate_each(prompts, indices=indices, **options) for m in order]
    answers = [{row.index: row for row in run} for run in runs]
    for prompt, index in zip(prompts, indices):
        rows = [rows[index] for rows in answers]
        yield rows[method.choose(prompt, [row.decoded() for row in rows])]
