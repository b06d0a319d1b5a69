"""Find out which of several processes has ended, hangs or is slow.

Every process counts up a number of its own in the store that they all reach. Whose number stands still has ended or is
stopped. A process that fails by itself says so there, so that the others name the first fault and not what followed.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Protocol

_PULSES = 20  # in the time after which a process is given up
_LONGEST = 0.5  # seconds between two pulses
_MISSED = 4  # pulses after which a process is taken for dead once something has gone wrong
_SEARCH = 0.38  # of the time after which a process is given up: for finding out which it is

GONE = "has ended, or does not answer"
SLOW = "runs, but did not come to the exchange in time"
"""What is said of a process."""


class Store(Protocol):
    """What is used of torch's key-value store, which all processes reach."""

    def add(self, key: str, value: int) -> int: ...

    def set(self, key: str, value: str) -> None: ...

    def get(self, key: str) -> bytes: ...

    def check(self, keys: list[str]) -> bool: ...

    def compare_set(self, key: str, expected: str, desired: str) -> bytes: ...

    def clone(self) -> Store: ...


class RankWatch:
    """The pulse of this process, and what is known of the others'.

    Parameters
    ----------
    store : Store
    prefix : str
        Of the keys.
    rank, size : int
        Which of how many processes this is.
    timeout : float
        Seconds after which a process that does not answer is given up.
    """

    def __init__(self, store: Store, prefix: str, rank: int, size: int, timeout: float) -> None:
        self._store = store
        self._prefix = prefix
        self._rank = rank
        self._size = size
        self._timeout = timeout
        self.period = min(_LONGEST, timeout / _PULSES)
        """Seconds between two pulses."""
        self.reached = 0
        """How many exchanges this process has come to."""
        self._ends = threading.Event()
        self._meetings = 0
        self._pulses: dict[int, tuple[int, float]] = {}  # per other process its last known pulse, and when it came
        self._answered = 0.0  # when the store last did
        self._thread = threading.Thread(target=self._beat, args=(store.clone(),), name="unite-pulse", daemon=True)

    def start(self) -> None:
        """Begin to pulse."""
        self._thread.start()

    def stop(self) -> None:
        """Pulse no more."""
        self._ends.set()
        self._thread.join(2 * self.period)

    def _beat(self, store: Store) -> None:
        while not self._ends.is_set():
            try:
                store.set(f"{self._prefix}/reached/{self._rank}", str(self.reached))
                store.add(f"{self._prefix}/pulse/{self._rank}", 1)
                for other in self._others():
                    count = store.add(f"{self._prefix}/pulse/{other}", 0)
                    if self._pulses.get(other, (-1, 0.0))[0] != count:
                        self._pulses[other] = count, time.monotonic()
                self._answered = time.monotonic()
            except RuntimeError:  # the store has ended, and its process with it: the next exchange tells
                return
            self._ends.wait(self.period)

    def meet(self, timeout: float) -> int | None:
        """Wait until every process has come here as often as this one, however long that takes while all pulse.

        Returns
        -------
        int or None
            A process that has not pulsed for `timeout` seconds, or has said why it ends: then they do not meet.
        """
        self._meetings += 1
        key = f"{self._prefix}/met/{self._meetings}"
        self._store.add(key, 1)
        seen: dict[int, tuple[int, float]] = {}
        found: list[int | None] = []

        def look() -> None:
            if self._store.add(key, 0) >= self._size:
                found.append(None)
            elif (posted := self.posted()) is not None:
                found.append(posted[0])
            now = time.monotonic()
            for other in self._others():
                count = self._store.add(f"{self._prefix}/pulse/{other}", 0)
                last, since = seen.get(other, (-1, now))
                if count != last:
                    seen[other] = (count, now)
                elif now - since > timeout:
                    found.append(other)

        while not found:
            if not self._within(timeout, look):
                return 0
            time.sleep(self.period / 4)
        return found[0]

    def post(self, text: str) -> None:
        """Tell the others why this process ends; the first such word stays."""

        def tell() -> None:
            self._store.compare_set(f"{self._prefix}/fault", "", json.dumps([self._rank, text]))

        self._within(2.0, tell)

    def posted(self) -> tuple[int, str] | None:
        """The first process that has said why it ends, and its words."""
        if not self._store.check([f"{self._prefix}/fault"]):
            return None
        rank, text = json.loads(self._store.get(f"{self._prefix}/fault"))
        return int(rank), str(text)

    def culprit(self) -> tuple[int, str]:
        """The process because of which an exchange failed, and what is wrong with it.

        Takes a few pulses.
        """
        found: list[tuple[int, str]] = []
        if self._within(_SEARCH * self._timeout, lambda: found.append(self._find())):
            return found[0]
        # The store has gone. The first process may have held it, and ended because another one had.
        earlier = {o: at for o, (_, at) in self._pulses.items() if self._answered - at > (_MISSED - 1) * self.period}
        return (min(earlier, key=lambda other: earlier[other]) if earlier else 0), GONE

    def _find(self) -> tuple[int, str]:
        if (posted := self.posted()) is not None:
            return posted
        before = {other: self._store.add(f"{self._prefix}/pulse/{other}", 0) for other in self._others()}
        for _ in range(_MISSED):
            time.sleep(self.period)
            if (posted := self.posted()) is not None:
                return posted
        for other, count in before.items():
            if self._store.add(f"{self._prefix}/pulse/{other}", 0) == count:
                text = GONE
                self._store.compare_set(f"{self._prefix}/fault", "", json.dumps([other, text]))
                return other, text
        reached = {other: int(self._store.get(f"{self._prefix}/reached/{other}")) for other in self._others()}
        last = min(reached, key=lambda other: reached[other])
        return last, SLOW

    def _others(self) -> list[int]:
        return [other for other in range(self._size) if other != self._rank]

    def _within(self, seconds: float, call: Callable[[], None]) -> bool:
        """Whether a call to the store comes back in time; a stopped process that holds the store never answers."""
        ended, answers = threading.Event(), []

        def run() -> None:
            try:
                call()
                answers.append(True)
            except RuntimeError:  # the store has gone
                pass
            finally:
                ended.set()

        threading.Thread(target=run, daemon=True).start()
        return ended.wait(seconds) and bool(answers)


def seconds(value: float) -> timedelta:
    """A number of seconds as torch takes it."""
    return timedelta(seconds=value)
