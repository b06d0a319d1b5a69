"""A member's context that tells how long its passes take."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

import torch

from ..members.base import Context, Place, Scores
from ..members.passing import PassingContext


class TimedContext(PassingContext):
    """Another context, its passes timed.

    Parameters
    ----------
    inner : Context
    device : torch.device
        Where its model runs. On CUDA passes are timed by events, which nobody waits for: a time is told when a later
        pass begins.
    observe : callable
        Takes the seconds of one pass.
    """

    def __init__(self, inner: Context, device: torch.device, observe: Callable[[float], None]) -> None:
        super().__init__(inner)
        self._device = device
        self._observe = observe
        self._events: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    def evaluate(self, keys: Sequence[int]) -> Scores:
        """See `Context.evaluate`."""
        return self._timed(partial(super().evaluate, keys))

    def evaluate_places(self, places: Sequence[Place]) -> Scores:
        """See `Context.evaluate_places`."""
        return self._timed(partial(super().evaluate_places, places))

    def _timed(self, call: Callable[[], Scores]) -> Scores:
        if self._device.type != "cuda":
            start = time.perf_counter()
            scores = call()
            self._observe(time.perf_counter() - start)
            return scores
        while self._events and self._events[0][1].query():
            begin, end = self._events.popleft()
            self._observe(begin.elapsed_time(end) / 1000)
        with torch.cuda.device(self._device):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            scores = call()
            end.record()
        self._events.append((begin, end))
        return scores
