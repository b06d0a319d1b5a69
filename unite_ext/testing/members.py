"""For tests of code that builds on this package: members that replay what others said.

`Recorder` stands in for a member and keeps its logits; `RecordedMember` gives them again, without a model, and by parts
as a member on another host would.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..members.base import BaseMember, Context, Message, Place, Prompt, Scores, Variables
from ..members.context import LogitScores
from ..members.id_context import IdContext
from ..members.passing import PassingContext
from ..options import StepOptions
from ..step_parts import gather_logits, top_k_keys
from ..vocab.alignment import VocabAlignment

__all__ = ["RecordedMember", "Recorder"]


class Recorder(BaseMember):
    """A member that keeps the logits it gives.

    Parameters
    ----------
    member : BaseMember
        One whose logits are at hand.

    Attributes
    ----------
    prompts : dict
        Prompts to their ids.
    answers : dict
        Chats to what `answer_ids` gave.
    logits : dict
        All that a request had read (a tuple of ids) to its logits, float32 [V].
    """

    def __init__(self, member: BaseMember) -> None:
        self.member = member
        self.name = member.name
        self.tokenizer = member.tokenizer
        self.eos_token_ids = member.eos_token_ids
        self.context_length = member.context_length
        self.prompts: dict[str, list[int]] = {}
        self.answers: dict[str, list[int] | None] = {}
        self.logits: dict[tuple[int, ...], Tensor] = {}

    @property
    def num_logits(self) -> int:
        """See `BaseMember.num_logits`."""
        return self.member.num_logits

    @property
    def device(self) -> torch.device:
        """See `BaseMember.device`."""
        return self.member.device

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        """See `BaseMember.encode_prompt`."""
        ids = self.prompts[repr(prompt)] = self.member.encode_prompt(prompt)
        return ids

    def answer_ids(
        self, prompt: Sequence[Message], ids: Sequence[int], answer: str, variables: Variables | None = None
    ) -> list[int] | None:
        """See `BaseMember.answer_ids`."""
        own = self.answers[repr(prompt)] = self.member.answer_ids(prompt, ids, answer, variables)
        return own

    def new_context(self, *, max_requests: int, compiled: bool = False, expected_length: int = 0) -> Context:
        """See `BaseMember.new_context`."""
        context = self.member.new_context(max_requests=max_requests, compiled=compiled, expected_length=expected_length)
        return _RecorderContext(self, context)

    def recorded(self, *, whole: bool = False) -> RecordedMember:
        """The member that gives again what was recorded; `whole` offers its logits whole."""
        return RecordedMember(
            self.prompts,
            self.logits,
            name=self.name,
            num_logits=self.num_logits,
            eos_token_ids=self.eos_token_ids,
            context_length=self.context_length,
            whole=whole,
            answers=self.answers,
        )


class RecordedMember(BaseMember):
    """A member without a model, which gives recorded logits.

    Its ensemble needs an `alignment`, as it has no tokenizer.

    Parameters
    ----------
    prompts : mapping
        Prompts (their `repr`) to ids.
    logits : mapping of tuple of int to Tensor [V]
        All that a request has read to its logits.
    name : str
    num_logits : int
        V.
    eos_token_ids : sequence of int
    context_length : int, optional
    whole : bool
        Whether the logits are offered whole, for the fused step; by default only by parts.
    answers : mapping, optional
        Chats (their `repr`) to what `answer_ids` gave.
    """

    tokenizer = None

    def __init__(
        self,
        prompts: Mapping[str, Sequence[int]],
        logits: Mapping[tuple[int, ...], Tensor],
        *,
        name: str = "recorded",
        num_logits: int,
        eos_token_ids: Sequence[int] = (),
        context_length: int | None = None,
        whole: bool = False,
        answers: Mapping[str, list[int] | None] | None = None,
    ) -> None:
        self.name = name
        self.eos_token_ids = list(eos_token_ids)
        self.context_length = context_length
        self._prompts = prompts
        self._logits = logits
        self._num_logits = num_logits
        self._whole = whole
        self._answers = answers or {}
        self.gives_logits = whole

    @property
    def num_logits(self) -> int:
        """See `BaseMember.num_logits`."""
        return self._num_logits

    @property
    def device(self) -> torch.device:
        """See `BaseMember.device`."""
        return torch.device("cpu")

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        """See `BaseMember.encode_prompt`. ValueError for a prompt that was not recorded."""
        if repr(prompt) not in self._prompts:
            raise ValueError(f"{self.name} has no recording of the prompt {prompt!r}")
        return list(self._prompts[repr(prompt)])

    def answer_ids(
        self, prompt: Sequence[Message], ids: Sequence[int], answer: str, variables: Variables | None = None
    ) -> list[int] | None:
        """See `BaseMember.answer_ids`."""
        return self._answers.get(repr(prompt))

    def new_context(self, *, max_requests: int, compiled: bool = False, expected_length: int = 0) -> Context:
        """See `BaseMember.new_context`."""
        return _RecordedContext(self.name, self._logits, self._whole)


class _RecorderContext(PassingContext):
    """Passes everything on, and keeps the scores."""

    def __init__(self, recorder: Recorder, inner: Context) -> None:
        super().__init__(inner)
        self._recorder = recorder

    def evaluate(self, keys: Sequence[int]) -> Scores:
        scores = super().evaluate(keys)
        if scores.logits is None:
            raise ValueError(f"{self._recorder.name} does not have its logits at hand: they cannot be recorded")
        for key, row in zip(keys, scores.logits):
            self._recorder.logits[tuple(self.ids(key))] = row.float().cpu().clone()
        return scores

    def evaluate_places(self, places: Sequence[Place]) -> Scores:
        return Context.evaluate_places(self, places)  # by `evaluate`, which keeps the rows


class _RecordedContext(IdContext):
    """Looks the logits up by what a request has read."""

    def __init__(self, name: str, logits: Mapping[tuple[int, ...], Tensor], whole: bool) -> None:
        super().__init__()
        self._name = name
        self._logits = logits
        self._whole = whole

    def evaluate(self, keys: Sequence[int]) -> Scores:
        rows = []
        for key in keys:
            row = self._logits.get(tuple(self.ids(key)))
            if row is None:
                raise ValueError(f"{self._name} has no recording after the ids {self.ids(key)}")
            rows.append(row)
        logits = torch.stack(rows)
        return LogitScores(logits) if self._whole else _PartScores(logits)


class _PartScores(Scores):
    """Scores by parts, as a member on another host gives them."""

    def __init__(self, logits: Tensor) -> None:
        self._logits = logits

    @property
    def logits(self) -> None:
        return None

    def top_k(self, alignment: VocabAlignment, member: int, options: StepOptions) -> tuple[Tensor, Tensor]:
        return top_k_keys(self._logits, alignment, member, k=options.k, score=options.score)

    def gather(self, ids: Tensor) -> Tensor:
        return gather_logits(self._logits, ids)

    def select(self, rows: Sequence[int]) -> _PartScores:
        return _PartScores(self._logits[torch.tensor(rows, device=self._logits.device)])
