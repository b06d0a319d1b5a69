"""The thread that runs the engine: requests of the event loop join and leave between its steps."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from queue import Empty, SimpleQueue

from .._memory import give_back
from ..decoding.engine import Advanced, Engine, Event
from ..decoding.ensemble import UniteEnsemble
from ..decoding.plan import Plan
from ..members.base import MemberAway
from ..structured.constraint import StructureError
from .errors import LIMIT, SERVER, ApiError, internal, shutting_down
from .jobs import Choice, Job, News, Token, settled_tokens
from .metrics import Metrics
from .options import ServeOptions
from .timed_context import TimedContext

logger = logging.getLogger(__name__)

_MAX_RETRY_AFTER = 60
REST = 3.0
"""Seconds without work after which memory is given back."""


class EngineThread:
    """Runs one engine in a thread of its own.

    `reserve`, `submit` and `cancel` are called on the event loop and do not wait. Only the thread touches the engine.

    Parameters
    ----------
    ensemble : UniteEnsemble
    plan : Plan
        Its primary is that of all requests.
    options : ServeOptions
    metrics : Metrics

    Attributes
    ----------
    lost : Exception or None
        Why the engine has ended whose members live in several processes: all end together.
    when_lost : callable or None
        Called then, on the thread.
    """

    def __init__(self, ensemble: UniteEnsemble, plan: Plan, options: ServeOptions, metrics: Metrics) -> None:
        self._ensemble = ensemble
        self._plan = plan
        self._options = options
        self._metrics = metrics
        self._engine = self._new_engine()
        metrics.watch(lambda: self._engine.num_running, lambda: self._engine.num_waiting)
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._choices: dict[int, tuple[Job, Choice]] = {}
        self._lock = threading.Lock()
        self._reserved = 0
        self._mean_seconds = 1.0  # that a text takes, running
        self._closing = False
        self._aborted = False
        self._ending = False
        self._has_worked = False  # since memory was given back
        self.lost: Exception | None = None
        self.when_lost: Callable[[], None] | None = None
        self._thread = threading.Thread(target=self._run, name="unite-engine", daemon=True)

    # On the event loop

    def start(self) -> None:
        """Start the thread."""
        if self._ensemble.ranks is not None:
            self._ensemble.ranks.group.when_lost = lambda error: self._inbox.put(partial(_raise, error))
        self._thread.start()

    @property
    def is_ready(self) -> bool:
        """Whether requests are taken."""
        return self._thread.is_alive() and not self._closing

    @property
    def num_reserved(self) -> int:
        """How many texts are asked for and not there yet."""
        return self._reserved

    def reserve(self, texts: int) -> None:
        """Keep room for so many texts; `submit` uses it, `release` gives it back.

        Raises
        ------
        ApiError
            There is no room, or the server is ending.
        """
        if not self.is_ready:
            raise shutting_down()
        room = self._options.max_requests + self._options.max_waiting
        with self._lock:
            if self._reserved + texts > room:
                seconds = self._mean_seconds * self._reserved / self._options.max_requests
                raise ApiError(
                    429, f"{self._reserved} texts run or wait, and {room} can: try again in a while", kind=LIMIT,
                    code="queue_full", headers={"Retry-After": str(max(1, min(_MAX_RETRY_AFTER, math.ceil(seconds))))},
                )  # fmt: skip
            self._reserved += texts

    def release(self, texts: int) -> None:
        """Give room back."""
        with self._lock:
            self._reserved -= texts

    def submit(self, job: Job) -> None:
        """Let a job run, in the room that was reserved."""
        self._inbox.put(partial(self._start, job))

    def cancel(self, job: Job) -> None:
        """End what is left of a job before the next step. One that has ended is left alone."""
        self._inbox.put(partial(self._end, job))

    def close(self) -> None:
        """Take nothing new."""
        self._closing = True

    def abort(self) -> None:
        """End everything with an error."""
        self._closing = True
        self._inbox.put(self._abort)

    def stop(self, timeout: float = 10.0) -> None:
        """End everything, and the thread."""
        self.abort()
        self._inbox.put(self._stop)
        if self._thread.is_alive():
            self._thread.join(timeout)

    # On the thread

    def _run(self) -> None:
        try:
            while not self._ending:
                try:
                    self._take_commands()
                    if self._has_work:
                        self._step()
                except Exception as error:
                    if self._ensemble.ranks is None:
                        raise
                    self._lose(error)
        except BaseException:
            logger.exception("the engine's thread has ended")
            self._closing = True
            self._fail_all(internal)
            raise

    @property
    def _has_work(self) -> bool:
        return self.lost is None and self._engine.has_work

    def _lose(self, error: Exception) -> None:
        """End with the other processes: one that fails in a step cannot join them again."""
        self.lost = self.lost or error
        self._closing = True
        self._abort()
        if self.when_lost is not None:
            self.when_lost()

    def _abort(self) -> None:
        self._aborted = True
        self._fail_all(shutting_down)

    def _stop(self) -> None:
        self._ending = True

    def _take_commands(self) -> None:
        """Do what was asked since the last step; without work wait for it, and after a while give memory back."""
        while True:
            idle = not self._has_work and not self._ending
            try:
                command = self._inbox.get(block=idle, timeout=REST if self._has_worked else None)
            except Empty:
                if not idle:
                    return
                give_back()
                self._has_worked = False
            else:
                command()

    def _start(self, job: Job) -> None:
        if self._aborted:
            self._fail(job, shutting_down())
            return
        generation = job.plan.generation
        for choice in job.choices:
            try:
                request = self._engine.submit(
                    choice.encoded, job.plan.token_method, generation, index=choice.index, seed=job.seed,
                    keeps_records=job.keeps_records,
                )  # fmt: skip
            except (TypeError, ValueError) as error:
                self._fail(job, ApiError(400, str(error)))
                return
            choice.request = request
            self._choices[request.key] = (job, choice)

    def _step(self) -> None:
        self._has_worked = True
        try:
            events = self._engine.step()
        except Exception:
            if self._ensemble.ranks is not None:
                raise
            logger.exception("a step failed; the engine starts anew without the %d texts it had", len(self._choices))
            self._fail_all(internal)
            self._engine = self._new_engine()
            return
        if events:
            self._metrics.batch.observe(len(events))
        touched: dict[int, Job] = {}
        for event in events:
            if (found := self._choices.get(event.request.key)) is not None:
                job, choice = found
                self._take_event(job, choice, event)
                touched[id(job)] = job
        _wake(touched.values())

    def _take_event(self, job: Job, choice: Choice, event: Event) -> None:
        request = event.request
        if not choice.first_at and request.num_steps:
            choice.first_at = time.perf_counter()
            self._metrics.first_token.observe(choice.first_at - job.submitted_at)
        if request.error is not None:
            self._fail(job, _as_api_error(request.error))
            return
        ended = not isinstance(event, Advanced)
        tokens: list[Token] = []
        if job.wants_tokens and job.streams:
            tokens = settled_tokens(choice, request, self._ensemble.alignment.vocabularies, self._plan.step.primary)
        piece = choice.pieces.next(request) if job.streams else ""
        if piece or tokens or ended:
            job.put(News(choice.index, piece, tokens, request if ended else None))
        if ended:
            seconds = time.perf_counter() - choice.first_at
            self._mean_seconds += (seconds - self._mean_seconds) * 0.1
            self._metrics.ended(request, seconds, self._plan.step.primary)
            self._leave(choice)
        elif job.waiting_news > job.buffer:
            self._metrics.slow_readers.inc()
            self._fail(job, ApiError(500, "the client reads its stream too slowly", kind=SERVER, code="slow_reader"))

    def _leave(self, choice: Choice) -> None:
        """A text runs no longer."""
        if not choice.ended:
            choice.ended = True
            if choice.request is not None:
                self._choices.pop(choice.request.key, None)
            self.release(1)

    def _end(self, job: Job) -> None:
        for choice in job.choices:
            if not choice.ended:
                if choice.request is not None:
                    self._engine.cancel(choice.request)
                    self._metrics.cancelled.inc()
                self._leave(choice)

    def _fail(self, job: Job, error: ApiError) -> None:
        job.error = error
        self._end(job)
        _wake([job])

    def _fail_all(self, make_error: Callable[[], ApiError]) -> None:
        for job, _ in list(self._choices.values()):
            if job.error is None:
                self._fail(job, make_error())

    def _new_engine(self) -> Engine:
        engine = self._ensemble.make_engine(
            primary=self._plan.step.primary, max_requests=self._options.max_requests,
            prefill_chunk=self._options.prefill_chunk, cache_memory=self._options.cache_memory,
        )  # fmt: skip
        observers = [self._metrics.member_observer(m) for m in range(len(engine.members))]
        # In place: what takes the engine's steps holds the same list.
        engine.contexts[:] = [
            TimedContext(context, member.device, observe)
            for context, member, observe in zip(engine.contexts, engine.members, observers)
        ]
        return engine


def _raise(error: Exception) -> None:
    raise error


def _as_api_error(error: Exception) -> ApiError:
    """What a client is told about a request that failed in the engine."""
    if isinstance(error, MemberAway):  # why, and where it is, is the operator's to know
        logger.error("a request failed: %s", error)
        return ApiError(503, f"the member {error.member.name} stays away", kind=SERVER, code="member_away")
    if isinstance(error, RuntimeError):  # a lack of memory, with the figure and what to try
        return ApiError(400, str(error), code="out_of_memory")
    if isinstance(error, StructureError):
        return ApiError(400, str(error), code="no_text_follows")
    logger.error("a request failed: %s", error)
    return internal()


def _wake(jobs: Iterable[Job]) -> None:
    """Tell the event loop about jobs, those of a step together."""
    by_loop: dict[int, list[Job]] = {}
    for job in jobs:
        by_loop.setdefault(id(job.loop), []).append(job)
    for own in by_loop.values():
        try:
            own[0].loop.call_soon_threadsafe(_wake_on_loop, own)
        except RuntimeError:  # the loop has been closed: nobody listens
            logger.debug("the event loop is closed")


def _wake_on_loop(jobs: list[Job]) -> None:
    for job in jobs:
        job.wake()
