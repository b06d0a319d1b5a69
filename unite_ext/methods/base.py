"""What a method is: what decides a step, or chooses among whole answers."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from ..members.base import BaseMember, Scores
from ..options import StepOptions
from ..reference import StepResult
from ..vocab.alignment import VocabAlignment


class Method(ABC):
    """What token-level and answer-level methods have in common: a name, options, and what they refuse."""

    name: ClassVar[str]
    takes_one: ClassVar[bool] = False
    """Whether it can run with a single member."""
    is_large: ClassVar[bool] = True
    """Whether an object may hold tensors as large as a vocabulary, so that only one should be kept."""

    @classmethod
    def check_options(cls, own: Mapping[str, Any]) -> None:
        """Check the method's own options, without tokenizers.

        Raises
        ------
        TypeError, ValueError
            An option is unknown or wrong, or something that the method needs is not installed.
        """
        known = [p.name for p in inspect.signature(cls.__init__).parameters.values() if p.kind is p.KEYWORD_ONLY]
        for option in own:
            if option not in known:
                raise TypeError(
                    f"method {cls.name!r} has no option {option!r}; its method_options are {', '.join(known) or 'none'}"
                )

    @classmethod  # noqa: B027  # nothing to check by default
    def check(cls, alignment: VocabAlignment, options: StepOptions, own: Mapping[str, Any]) -> None:
        """Raise ValueError if the method cannot run on these vocabularies. Called before any model is loaded."""


class TokenMethod(Method):
    """Decides every step.

    One object serves all requests; what it has to know of one of them is the state that `start` returns.

    Parameters
    ----------
    alignment : VocabAlignment
        On the device where the steps run.
    members : sequence of BaseMember
    options : StepOptions
    **own
        The method's own options, keyword-only in `__init__`; `method_options` of `UniteEnsemble`.
    """

    samples: ClassVar[bool] = False
    """Whether `do_sample` makes sense: whether a step's result holds all entries that may be drawn."""
    needs_logits: ClassVar[bool] = True
    """Whether every member must have the logits of its whole vocabulary at hand."""

    def __init__(self, alignment: VocabAlignment, members: Sequence[BaseMember], options: StepOptions) -> None:
        self.alignment = alignment
        self.options = options
        self.primary = options.primary

    @property
    def tokens_per_step(self) -> float | None:
        """How many tokens every step handles (the paper's Table 5); None where that differs from step to step."""
        return None

    def start(self, prompt_ids: Sequence[Sequence[int]]) -> object:
        """The state of a new request, given its prompt's ids in every member; None by default."""
        return None

    @abstractmethod
    def step(self, scores: Sequence[Scores], states: Sequence[object]) -> StepResult:
        """Choose every request's next token.

        Parameters
        ----------
        scores : sequence of Scores
            One per member, all for the same N requests, on the alignment's device.
        states : sequence
            What `start` returned for each of the requests.

        Returns
        -------
        StepResult
            A row that cannot be decided says so in its status.
        """

    def likelihood(
        self, scores: Sequence[Scores], states: Sequence[object], targets: Tensor
    ) -> tuple[Tensor, StepResult]:
        """The probability of emitting given ids of the primary, and the step.

        Parameters
        ----------
        scores, states
            As in `step`.
        targets : Tensor, int64 [N]
            Eligible ids of the primary.

        Returns
        -------
        probs : Tensor, float32 [N]
        step : StepResult
        """
        raise ValueError(f"method {self.name!r} gives no likelihoods")


class AnswerMethod(Method):
    """Lets every member answer alone and chooses one of the answers.

    Parameters
    ----------
    weights : sequence of float
        One per member, the primary's first, together 1.
    **own
        The method's own options, keyword-only in `__init__`; `method_options` of `UniteEnsemble`.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self.weights = list(weights)

    @abstractmethod
    def choose(self, prompt: Any, answers: Sequence[str]) -> int:
        """The index of the best answer.

        Parameters
        ----------
        prompt : str or messages
        answers : sequence of str
            One per member, the primary's first; of equally good ones the first counts.
        """


def whole_logits(scores: Sequence[Scores]) -> list[Tensor]:
    """[N, V_m] per member. ValueError where a member does not have them at hand."""
    logits = []
    for m, own in enumerate(scores):
        if own.logits is None:
            raise ValueError(f"member {m} does not have its logits at hand, which this method needs")
        logits.append(own.logits)
    return logits
