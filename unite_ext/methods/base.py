"""The base classes of methods: those that decide every step, and those that choose among whole answers."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from ..members.base import BaseMember, Prompt, Scores
from ..options import StepOptions
from ..step_result import StepResult
from ..vocab.alignment import VocabAlignment


class Method(ABC):
    """A method's name, its options and their checks; common to token-level and answer-level methods."""

    name: ClassVar[str]
    takes_one: ClassVar[bool] = False
    """Whether it can run with a single member."""
    multiplies: ClassVar[bool] = False
    """Whether it takes combine="product" and its weights."""
    is_large: ClassVar[bool] = True
    """Whether an object may hold tensors as large as a vocabulary. Only one such object should be kept."""

    @classmethod
    def check_options(cls, own: Mapping[str, object]) -> None:
        """Check the method's own options, without tokenizers.

        Raises
        ------
        TypeError, ValueError
            An option is unknown or wrong, or a package that the method needs is not installed.
        """
        known = [p.name for p in inspect.signature(cls.__init__).parameters.values() if p.kind is p.KEYWORD_ONLY]
        for option in own:
            if option not in known:
                raise TypeError(
                    f"method {cls.name!r} has no option {option!r}; its method_options are {', '.join(known) or 'none'}"
                )

    @classmethod  # noqa: B027  # nothing to check by default
    def check(cls, alignment: VocabAlignment, options: StepOptions, own: Mapping[str, object]) -> None:
        """Raise ValueError if the method cannot run on these vocabularies. Called before any model is loaded."""


class TokenMethod(Method):
    """A method that decides every step.

    One object serves all requests. What it needs to know of a request is in the state that `start` returns.

    Parameters
    ----------
    alignment : VocabAlignment
        On the device where the steps run.
    members : sequence of BaseMember
    options : StepOptions

    A subclass's own options are further keywords of its `__init__`; they are `method_options` of `UniteEnsemble`.
    """

    samples: ClassVar[bool] = False
    """Whether `do_sample` can be used: a step's result must hold all entries that may be drawn."""
    needs_logits: ClassVar[bool] = True
    """Whether every member must have the logits of its whole vocabulary at hand."""
    reads_prompts: ClassVar[bool] = False
    """Whether it needs every member's likelihood of the prompt."""
    drops_members: ClassVar[bool] = False
    """Whether `only` gives a method for some of the members."""
    keeps_structure: ClassVar[bool] = False
    """Whether what it emits is a token that some member proposed, or the beginning of one: then masked logits suffice
    to keep a text within a grammar."""
    walks: ClassVar[bool] = False
    """Whether `boundaries="exact"` can be used: members then vote on bytes, and the method takes no step."""
    spreads: ClassVar[bool] = False
    """Whether members may live in several processes: it asks the scores for their parts, and lets them travel."""

    def __init__(self, alignment: VocabAlignment, members: Sequence[BaseMember], options: StepOptions) -> None:
        self.alignment = alignment
        self.options = options
        self.primary = options.primary

    def only(self, members: Sequence[int], alignment: VocabAlignment) -> TokenMethod:
        """Return the method for some of the members, the primary among them; `alignment` is theirs.

        Raises
        ------
        ValueError
            The method needs all of its members.
        """
        raise ValueError(f"on_member_failure must be 'stop' with method {self.name!r}, which needs all its members")

    @property
    def tokens_per_step(self) -> float | None:
        """How many tokens every step handles (the paper's Table 5); None if that differs from step to step."""
        return None

    def at_start(self, alignment: VocabAlignment) -> TokenMethod:
        """The method for steps in which some members are in the start state, whose ids mean what this alignment says.

        See `VocabAlignment.at_start`. By default the method itself, with the alignment it has.
        """
        return self

    def start(self, prompt_ids: Sequence[Sequence[int]]) -> object:
        """Make the state of a new request from its prompt's ids in every member; None by default."""
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
            The status of each request says whether its step could be decided.
        """

    @property
    def averages(self) -> bool:
        """Whether it takes the weighted mean of the members' own probabilities, which `member_weights` gives."""
        return False

    def member_weights(self, states: Sequence[object]) -> Tensor:
        """The members' weights for each of N requests, float64 [N, M], together 1. Only if the method `averages`."""
        raise ValueError(f"method {self.name!r} takes no mean of the members' probabilities")

    def likelihood(
        self, scores: Sequence[Scores], states: Sequence[object], targets: Tensor
    ) -> tuple[Tensor, StepResult]:
        """Compute the probability of emitting given ids of the primary, and the step.

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
    """A method that lets every member answer alone and chooses one of the answers.

    Parameters
    ----------
    weights : sequence of float
        One per member, the primary's first, together 1.

    A subclass's own options are further keywords of its `__init__`; they are `method_options` of `UniteEnsemble`.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self.weights = list(weights)

    @abstractmethod
    def choose(self, prompt: Prompt, answers: Sequence[str]) -> int:
        """Choose the best answer and return its index.

        Parameters
        ----------
        prompt : str or messages
        answers : sequence of str
            One per member, the primary's first. Of equally good answers the first is chosen.
        """


def whole_logits(scores: Sequence[Scores]) -> list[Tensor]:
    """Every member's logits, [N, V_m]. ValueError if a member does not have them."""
    logits = []
    for m, own in enumerate(scores):
        if own.logits is None:
            raise ValueError(f"member {m} must have its logits for this method, got none")
        logits.append(own.logits)
    return logits
