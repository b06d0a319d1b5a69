"""What a model that runs elsewhere has read, and its scores: log-probabilities of the ids that a step asks for.

A step asks for the k best ids, then for those of the union that are not among them. A place in a text is a question of
its own, so all places of all requests are asked at once, while the other members run. Log-probabilities serve as
logits: a step normalizes over the union.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from .._core import FIRST_SUB_TOKEN
from ..exchange import NO_KEY, make_keys
from ..options import StepOptions
from ..vocab.alignment import VocabAlignment
from .base import BaseMember, MemberAway, Place, Scores
from .id_context import IdContext

LOWEST = -9000.0
"""What servers write for -inf lies below: JSON has none."""


class AnswerError(RuntimeError):
    """A question has no answer, or none that can be used; says why."""


@dataclass(frozen=True)
class Listing:
    """The likeliest ids after a text."""

    log_probs: dict[int, float]
    """Best first."""
    whole: bool
    """Whether the vocabulary has no further ids."""


class Backend(ABC):
    """Answers questions about the next token, wherever the model runs. Its calls may come from several threads.

    Attributes
    ----------
    usual : int
        How many ids to ask for where fewer would do: those of the union are then often among them.
    most : int or None
        The most that one question lists, None without a limit.
    approximate : bool
        Whether it cannot give all that a step asks for.
    """

    usual: int = 20
    most: int | None = None
    approximate: bool = False

    @abstractmethod
    def best(self, ids: Sequence[int], count: int) -> Listing:
        """The `count` likeliest ids after these. AnswerError without an answer."""

    @abstractmethod
    def chosen(self, ids: Sequence[int], wanted: Sequence[int], listed: Mapping[int, float]) -> dict[int, float]:
        """The log-probabilities of given ids after these. AnswerError without an answer.

        `listed` are those that are known, best first, among which the wanted ones are not.
        """


@dataclass(eq=False)
class Question:
    """What is known of the next token at one place of one request."""

    key: int
    ids: tuple[int, ...]
    listed: dict[int, float] = field(default_factory=dict)
    others: dict[int, float] = field(default_factory=dict)
    """Those that were asked for by id."""
    asked: int = 0
    whole: bool = False
    started: Future[None] | None = None
    """The first reading, under way."""

    def read(self, backend: Backend, count: int) -> None:
        """List the `count` best ids."""
        listing = backend.best(list(self.ids), count)
        self.listed, self.asked, self.whole = listing.log_probs, count, listing.whole

    def look_up(self, backend: Backend, wanted: Sequence[int]) -> None:
        """Find the log-probabilities of these ids, of which none is known."""
        if not self.whole:
            self.others |= backend.chosen(list(self.ids), wanted, self.listed)

    def eligible(self, is_eligible: Callable[[int], bool]) -> list[tuple[float, int]]:
        """The listed ids that may be proposed, best first, lower ids first among equals."""
        found = [(-value, i) for i, value in self.listed.items() if value > LOWEST and is_eligible(i)]
        return [(-value, i) for value, i in sorted(found)]

    def unknown(self, wanted: Iterable[int]) -> list[int]:
        """Which of these ids have to be asked for."""
        return sorted({i for i in wanted if i >= 0} - self.listed.keys() - self.others.keys())

    def value(self, token_id: int) -> float:
        """An id's log-probability; -inf where the whole vocabulary is known not to have it."""
        value = self.listed.get(token_id, self.others.get(token_id, -math.inf))
        return value if value > LOWEST else -math.inf


class RemoteScores(Scores):
    """Scores of a member that runs elsewhere.

    Parameters
    ----------
    context : RemoteContext
    questions : sequence of Question
        One per row.
    """

    def __init__(self, context: RemoteContext, questions: Sequence[Question]) -> None:
        self._context = context
        self._questions = list(questions)

    @property
    def logits(self) -> None:
        """See `Scores.logits`."""
        return None

    def top_k(self, alignment: VocabAlignment, member: int, options: StepOptions) -> tuple[Tensor, Tensor]:
        """See `Scores.top_k`."""
        context, k = self._context, options.k
        context.check_step(options)

        def is_eligible(token_id: int) -> bool:
            return alignment.class_of(member, token_id) >= 0

        count = context.count_for(k)
        pending = self._questions
        while pending:
            context.read(pending, count)
            pending = [q for q in pending if not q.whole and len(q.eligible(is_eligible)) < k]
            if count == context.backend.most and context.backend.approximate:
                break  # it goes on with what there is
            if pending and count == context.backend.most:
                reason = f"of the {count} ids that it lists fewer than {k} can be proposed"
                raise MemberAway(context.member, {q.key: reason for q in pending})
            count = 4 * count if context.backend.most is None else min(4 * count, context.backend.most)
        values = torch.full((len(self._questions), k), -torch.inf, device="cpu")
        ids = torch.zeros((len(self._questions), k), dtype=torch.int64, device="cpu")
        log_sums = torch.zeros(len(self._questions), device="cpu")
        for row, question in enumerate(self._questions):
            best = question.eligible(is_eligible)[:k]
            if not best:
                continue  # no proposal: the step fails the row
            values[row, : len(best)] = torch.tensor([value for value, _ in best], device="cpu")
            ids[row, : len(best)] = torch.tensor([i for _, i in best], device="cpu")
            if options.score == "probs":
                # The server's softmax has the ids that cannot be proposed in it.
                others = [math.exp(v) for i, v in question.listed.items() if v > LOWEST and not is_eligible(i)]
                log_sums[row] = math.log(max(1.0 - math.fsum(others), 1e-30)) - best[0][0]
        keys = make_keys(values, ids).masked_fill(values == -torch.inf, NO_KEY)
        return keys.to(alignment.device), log_sums.to(alignment.device)

    def gather(self, ids: Tensor) -> Tensor:
        """See `Scores.gather`."""
        wanted = [[-1 if i < 0 else i & ~FIRST_SUB_TOKEN for i in row] for row in ids.tolist()]
        context = self._context
        context.read(self._questions, 1)
        jobs = [
            (question, partial(question.look_up, context.backend, unknown))
            for question, row in zip(self._questions, wanted)
            if (unknown := question.unknown(row))
        ]
        context.run(jobs)  # the first reading is over: `unknown` stands on it
        values = [[q.value(i) if i >= 0 else -math.inf for i in row] for q, row in zip(self._questions, wanted)]
        return torch.tensor(values, dtype=torch.float32, device="cpu").reshape(ids.shape).to(ids.device)

    def select(self, rows: Sequence[int]) -> RemoteScores:
        """See `Scores.select`."""
        return RemoteScores(self._context, [self._questions[row] for row in rows])


class RemoteContext(IdContext):
    """The ids of every request; the model's own state is where it runs, in its prefix cache.

    Parameters
    ----------
    member : BaseMember
    backend : Backend
    pool : Executor
        Where questions wait for their answers.
    """

    def __init__(self, member: BaseMember, backend: Backend, pool: Executor) -> None:
        super().__init__()
        self.member = member
        self.backend = backend
        self._pool = pool
        self._last: dict[int, list[Question]] = {}  # a step that is taken again asks nothing twice
        self._largest_k = StepOptions().k

    def leave(self, key: int) -> None:
        """See `Context.leave`."""
        super().leave(key)
        self._last.pop(key, None)

    def evaluate(self, keys: Sequence[int]) -> RemoteScores:
        """See `Context.evaluate`. Returns while the questions are under way."""
        return self.evaluate_places([(key, 0, ()) for key in keys])

    def evaluate_places(self, places: Sequence[Place]) -> RemoteScores:
        """See `Context.evaluate_places`."""
        questions = []
        last: dict[int, list[Question]] = {}
        for key, drop, append in places:
            ids = self.ids(key)
            wanted = (*ids[: len(ids) - drop], *append)
            known = next((q for q in self._last.get(key, ()) if q.ids == wanted), None)
            questions.append(known or Question(key, wanted))
            last.setdefault(key, []).append(questions[-1])
        self._last = last
        count = self.count_for(self._largest_k)
        for question in questions:
            if question.started is None and not question.asked:
                question.started = self._pool.submit(question.read, self.backend, count)
        return RemoteScores(self, questions)

    def check_step(self, options: StepOptions) -> None:
        """Take note of how many ids steps ask for. ValueError for more than the server lists."""
        self.member.check_step(options)
        self._largest_k = max(self._largest_k, options.k)

    def count_for(self, k: int) -> int:
        """How many ids to list where a step wants k."""
        count = max(k, self.backend.usual)
        return count if self.backend.most is None else min(count, self.backend.most)

    def read(self, questions: Sequence[Question], count: int) -> None:
        """List at least `count` ids for every question. MemberAway as `run`."""
        reasons: dict[int, str] = {}
        for question in questions:
            if question.started is not None:
                _note(question, question.started, reasons)
                question.started = None
        if reasons:
            raise MemberAway(self.member, reasons)
        due = [q for q in questions if not q.whole and q.asked < count]
        self.run([(q, partial(q.read, self.backend, count)) for q in due])

    def run(self, jobs: Sequence[tuple[Question, Callable[[], None]]]) -> None:
        """Do one thing for each of several questions, at once.

        Raises
        ------
        MemberAway
            With the requests that have no answer, when all others have theirs.
        """
        reasons: dict[int, str] = {}
        for question, future in [(q, self._pool.submit(call)) for q, call in jobs]:
            _note(question, future, reasons)
        if reasons:
            raise MemberAway(self.member, reasons)


def _note(question: Question, future: Future[None], reasons: dict[int, str]) -> None:
    """Wait for an answer, and keep why there is none."""
    try:
        future.result()
    except AnswerError as error:
        reasons.setdefault(question.key, str(error))
