"""The engine: requests join, take their steps beside others, and leave.

Everything that generates or scores text runs on it. A step of the engine admits waiting requests where there is room,
reads some of the prompts of those that have joined, and takes one step of all that are running. What a request gives
does not depend on who runs beside it.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch

from .._checks import check_integer
from ..exchange import HERE
from ..members.base import BaseMember, Prompt
from ..members.names import short_names
from ..members.row_order import RowOrder
from ..methods.base import TokenMethod
from ..options import GenerationOptions
from ..structured.constraint import Constraint
from ..vocab.alignment import VocabAlignment
from .batch import StepRunner
from .cache_memory import CacheMemory
from .draft_choice import AUTO, DraftCosts
from .drafts import NGRAM_LENGTH
from .evaluation import MemberOutOfMemory, guarded
from .plan import check_constrains, check_members
from .processors import check_processors
from .prompt_ids import EncodedPrompt, encode_prompt, ids_as_prompt
from .rank_calls import NO_LINK, Ranks
from .request import NGRAM, Request
from .start_state import member_syncs

logger = logging.getLogger(__name__)

PREFILL_CHUNK = 512


@dataclass(frozen=True)
class Finished:
    """A request has its whole text."""

    request: Request


@dataclass(frozen=True)
class Failed:
    """A request has ended with `request.error`."""

    request: Request


@dataclass(slots=True)
class Advanced:
    """A request goes on: its text has grown, or some of its targets have been scored."""

    request: Request


Event = Advanced | Finished | Failed


class Engine:
    """Runs requests together on the members of an ensemble.

    Parameters
    ----------
    members : sequence of BaseMember
    alignment : VocabAlignment
        Of these members.
    primary : int
        The member that leads.
    max_requests : int
        How many run side by side.
    prefill_chunk : int
        How many ids of new prompts every member reads between two steps of the running requests.
    cache_memory : int, optional
        Bytes that the members' caches may take on each device; by default what is free when the engine is made, less
        a tenth. Requests that do not fit wait.
    compiled : bool
        Run the members through `torch.compile`, see `UniteEnsemble`.
    expected_length : int
        How many ids the longest request will have, for caches of fixed shape.
    draft_costs : DraftCosts, optional
        What other engines of these members have measured, for `speculate="auto"`.
    ranks : Ranks, optional
        Where the members live, if in several processes.
    """

    def __init__(
        self,
        members: Sequence[BaseMember],
        alignment: VocabAlignment,
        *,
        primary: int = 0,
        max_requests: int = 256,
        prefill_chunk: int = PREFILL_CHUNK,
        cache_memory: int | None = None,
        compiled: bool = False,
        expected_length: int = 0,
        draft_costs: DraftCosts | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        check_integer("max_requests", max_requests, 1, 2**31)
        check_integer("prefill_chunk", prefill_chunk, 1, 2**31)
        if cache_memory is not None:
            check_integer("cache_memory", cache_memory, 1, 2**63 - 1)
        self.members = list(members)
        self.primary = primary
        self.alignment = alignment.to(self.members[primary].device)
        self.contexts = [
            member.new_context(max_requests=max_requests, compiled=compiled, expected_length=expected_length)
            for member in self.members
        ]
        settings = {
            "primary": primary, "max_requests": max_requests, "prefill_chunk": prefill_chunk,
            "cache_memory": cache_memory, "expected_length": expected_length,
        }  # fmt: skip
        self._link = NO_LINK if ranks is None else ranks.link(self, settings)
        exchange = HERE if ranks is None else ranks.exchange()
        self.runner = StepRunner(self.members, self.contexts, self.alignment, primary, draft_costs, exchange)
        self._max_requests = max_requests
        self._room = max_requests  # how many may run at present: fewer after a lack of memory
        self._prefill_chunk = prefill_chunk
        self._memory = CacheMemory(self.members, cache_memory, exchange)
        self._next_key = 0
        self._waiting: deque[Request] = deque()
        self._joined: dict[int, Request] = {}
        self._running: dict[int, Request] = {}
        self._rows = RowOrder()  # as the contexts have it, so that their scores need no other order

    @property
    def has_work(self) -> bool:
        """Whether a request waits or runs."""
        return bool(self._waiting or self._joined or self._running)

    @property
    def num_running(self) -> int:
        """How many requests have joined, those whose prompt is still being read included."""
        return len(self._joined) + len(self._running)

    @property
    def num_waiting(self) -> int:
        """How many requests wait for room."""
        return len(self._waiting)

    def encode(self, prompt: Prompt) -> EncodedPrompt:
        """A prompt in every member. ValueError for one that some member cannot take."""
        return encode_prompt(self.members, self.alignment.vocabularies, prompt)

    def submit(
        self,
        prompt: Prompt | Sequence[Sequence[int]] | EncodedPrompt,
        method: TokenMethod,
        options: GenerationOptions | None = None,
        *,
        index: int | None = None,
        seed: int = 0,
        keeps_records: bool = False,
        targets: Sequence[int] | None = None,
        full: bool = False,
    ) -> Request:
        """Take a request; it starts in a later `step`.

        Parameters
        ----------
        prompt : str, messages, or per member the prompt's ids, or EncodedPrompt
        method : TokenMethod
            What decides its steps, made for this engine's members. Requests with the same object share launches.
        options : GenerationOptions, optional
        index : int, optional
            Its number among the caller's prompts; in order of submission by default.
        seed : int
            With `do_sample`, the request draws from a generator seeded with seed + index.
        keeps_records : bool
            Keep a `StepRecord` of every step.
        targets : sequence of int, optional
            Ids of the primary that are emitted whatever the members say, to be scored.
        full : bool
            Score the targets by the members' own probabilities, see `score_continuations`; for methods that average.

        Raises
        ------
        TypeError, ValueError
            The prompt or an option is wrong.
        """
        options = options or GenerationOptions()
        check_processors(options, len(self.members))
        check_members(self.members, method, method.options, options)
        if options.do_sample and not method.samples:
            raise ValueError(f"do_sample must be False with method {method.name!r}, which takes the best token")
        if options.structure is not None:
            check_constrains(method, options.structure)
        if targets is not None and not targets:
            raise ValueError("targets must hold at least one id, got none")
        encoded = self.encoded(prompt)
        if (given := len(encoded.ids)) != len(self.members):
            raise ValueError(f"prompt must hold one list of ids per member, {len(self.members)}, got {given}")
        constraint = None
        if options.structure is not None:
            vocabularies = self.alignment.vocabularies
            constraint = Constraint(options.structure, vocabularies, self.primary, encoded.starts)
        drafter, draft_length = self._drafter(options.speculate)
        key = self._next_key
        self._next_key += 1
        index = key if index is None else index
        request = Request(
            key=key,
            index=index,
            prompt_ids=[list(own) for own in encoded.ids],
            options=options,
            method=method,
            syncs=member_syncs(self.alignment, self.primary, encoded.starts),
            starts=encoded.starts,
            generator=_generator(seed + index) if options.do_sample else None,
            constraint=constraint,
            keeps_records=keeps_records,
            targets=targets,
            full=full,
            drafter=drafter,
            draft_length=draft_length,
        )
        if method.options.boundaries == "exact":
            request.exact = self.runner.exact.start(request, method.options.step_weights(len(self.members)))
        self._waiting.append(request)
        self._link.submitted(request, seed)
        return request

    def encoded(self, prompt: Prompt | Sequence[Sequence[int]] | EncodedPrompt) -> EncodedPrompt:
        """A prompt as `submit` takes it, in every member's ids."""
        if isinstance(prompt, EncodedPrompt):
            return prompt
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], list):
            return ids_as_prompt(self.alignment.vocabularies, prompt)
        return self.encode(cast("Prompt", prompt))

    def _drafter(self, speculate: bool | int | str | None) -> tuple[int | str | None, int | None]:
        """Who drafts, and drafts of how many tokens, None for what is measured to be fastest."""
        if speculate is None or speculate is False:
            return None, None
        if speculate is True or speculate == "auto":
            return AUTO, None
        if isinstance(speculate, int):
            return self.primary, speculate
        if speculate == NGRAM:
            return NGRAM, NGRAM_LENGTH
        names = [member.name for member in self.members]
        for called in (names, short_names(names)):
            if speculate in called:
                return called.index(speculate), None
        known = ", ".join(short_names(names))
        raise ValueError(f"speculate must be a number, 'auto', 'ngram' or a member ({known}), got {speculate!r}")

    def cancel(self, request: Request) -> None:
        """End a request where it stands; it leaves nothing behind. One that has ended is left alone."""
        waits = request in self._waiting
        if waits:
            self._waiting.remove(request)
        if waits or request.key in self._joined or request.key in self._running:
            self._link.cancelled(request)
        self._leave(request)

    def step(self) -> list[Event]:
        """Admit, read prompts, and take one step of all running requests; returns what has happened.

        A request appears once: with its new tokens, or at its end. Nothing is returned while only prompts are read.
        """
        self._link.begin_step()
        events: list[Event] = []
        lack: MemberOutOfMemory | None = None
        before = {key: request.num_steps for key, request in self._running.items()}
        try:
            self._admit(events)
            if self._joined:
                self.runner.evaluator.read_prompts(self._prefill_chunk)
                self._start(events)
            if self._running:
                self._rows.add(self._running)
                self.runner.step([self._running[key] for key in self._rows])
        except MemberOutOfMemory as error:
            lack = error
        # Requests of several kinds are asked one kind after the other: before a lack of memory some may have advanced.
        for request in list(self._running.values()):
            if request.error is not None:
                events.append(Failed(request))
            elif request.finish_reason:
                events.append(Finished(request))
            else:
                if request.num_steps > before.get(request.key, 0):
                    events.append(Advanced(request))
                continue
            self._leave(request)
        if lack is not None:
            self._make_room(lack, events)
        self._link.end_step()
        return events

    def run(self, *, progress: bool = False) -> Iterator[Request]:
        """Run all requests, yielding each as it finishes; then raise the first error of those that failed."""
        from tqdm import tqdm

        error: Exception | None = None
        total = self.num_running + self.num_waiting
        with tqdm(total=total, desc="Generating", unit="prompt", disable=not progress) as bar:
            while self.has_work:
                for event in self.step():
                    if isinstance(event, Failed):
                        error = error or event.request.error
                        bar.update()
                    elif isinstance(event, Finished):
                        bar.update()
                        yield event.request
        if error is not None:
            raise error

    def _admit(self, events: list[Event]) -> None:
        """Let waiting requests join, in order, as far as there is room."""
        while self._waiting and self.num_running < self._room:
            request = self._waiting[0]
            active = [*self._running.values(), *self._joined.values()]
            lack = self._memory.lack(request, active)
            if lack:
                if active:
                    return
                self._waiting.popleft()
                request.error = RuntimeError(f"prompt {request.index} {lack}")
                events.append(Failed(request))
                continue
            self._waiting.popleft()
            self._join(request)

    def _join(self, request: Request) -> None:
        self._joined[request.key] = request
        for m, context in enumerate(self.contexts):
            context.join(request.key, request.context_ids(m))

    def _start(self, events: list[Event]) -> None:
        """Let those run whose prompts have been read in every member."""
        joined = list(self._joined.values())
        for request, ready in zip(joined, self.runner.evaluator.ready([request.key for request in joined])):
            if not ready:
                continue
            if request.num_steps == 0 and request.state is None:
                try:
                    request.state = guarded(self.primary, partial(request.method.start, request.prompt_ids))
                except ValueError as error:
                    request.error = error
                    events.append(Failed(request))
                    self._leave(request)
                    continue
            del self._joined[request.key]
            self._running[request.key] = request

    def _leave(self, request: Request) -> None:
        joined = self._joined.pop(request.key, None)
        running = self._running.pop(request.key, None)
        if joined is None and running is None:
            return
        self._rows.remove(request.key)
        for context in self.contexts:
            context.leave(request.key)
        if not self.num_running:
            self._room = self._max_requests

    def _make_room(self, error: MemberOutOfMemory, events: list[Event]) -> None:
        """After a lack of memory: the newer half goes back to the queue, the others read their contexts again."""
        active = sorted([*self._running.values(), *self._joined.values()], key=lambda request: request.key)
        member, lengths = self.members[error.member], [len(r.context_ids(error.member)) for r in active]
        for request in active:
            self._leave(request)
        if not active:  # the last ones ended in the same step
            return
        if len(active) == 1:
            active[0].error = RuntimeError(
                f"{member.name} is out of memory on {member.device} with one request of {lengths[0]} ids: try a "
                "shorter prompt, a 16-bit dtype, quantization_config, or another device for this member"
            )
            active[0].error.__cause__ = error.__cause__
            events.append(Failed(active[0]))
            return
        kept = len(active) // 2
        self._room = kept
        logger.warning(
            "%s is out of memory on %s with %d requests of up to %d ids: %d go on, the others wait. A smaller "
            "batch_size avoids reading their prompts again",
            member.name, member.device, len(active), max(lengths), kept,
        )  # fmt: skip
        self._waiting.extendleft(reversed(active[kept:]))
        for request in active[:kept]:
            self._join(request)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator(device="cpu").manual_seed(seed % 2**63)
