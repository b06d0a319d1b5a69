"""What Prometheus is told: how much is asked, how long it takes, and whether the members agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ..decoding.request import Request
from ..decoding.tracing import decision
from ..members.names import short_names

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_PASS_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The metrics of one server.

    Parameters
    ----------
    members : sequence of str
        The members' names.
    """

    def __init__(self, members: Sequence[str]) -> None:
        self.registry = CollectorRegistry()
        counter, gauge, histogram = (
            partial(Counter, registry=self.registry),
            partial(Gauge, registry=self.registry),
            partial(Histogram, registry=self.registry),
        )
        self.requests = counter("unite_requests", "HTTP requests.", ["endpoint", "status"])
        self.request_seconds = histogram(
            "unite_request_seconds", "Time until a request's last byte.", ["endpoint"], buckets=_SECONDS
        )
        self.prompt_tokens = counter("unite_prompt_tokens", "Tokens of prompts, in the primary.")
        self.completion_tokens = counter("unite_completion_tokens", "Generated tokens, in the primary.")
        self.first_token = histogram(
            "unite_time_to_first_token_seconds", "From a request's arrival in the engine.", buckets=_SECONDS
        )
        self.per_token = histogram(
            "unite_time_per_token_seconds", "Of one text, after its first token.", buckets=_PASS_SECONDS
        )
        self.running = gauge("unite_texts_running", "Texts that run side by side.")
        self.waiting = gauge("unite_texts_waiting", "Texts that wait for a place.")
        self.batch = histogram("unite_step_texts", "Texts that run in a step.", buckets=_SIZES)
        self.cancelled = counter("unite_texts_cancelled", "Texts that ended early, as when a client left.")
        self.slow_readers = counter("unite_slow_readers", "Streams given up since nobody read them.")
        self.decided = counter(
            "unite_steps_decided", "Steps by who decided, of the requests that are compared.", ["by"]
        )
        self.drafted = counter("unite_draft_tokens", "Drafted tokens.", ["outcome"])
        self._passes = histogram(
            "unite_member_pass_seconds", "Time of a member's pass.", ["member"], buckets=_PASS_SECONDS
        )
        self._observers = [self._passes.labels(name).observe for name in short_names(members)]

    def member_observer(self, m: int) -> Callable[[float], None]:
        """What takes the seconds of a member's passes."""
        return self._observers[m]

    def watch(self, running: Callable[[], int], waiting: Callable[[], int]) -> None:
        """Ask these how many texts run and wait whenever somebody wants to know."""
        self.running.set_function(running)
        self.waiting.set_function(waiting)

    def ended(self, request: Request, seconds: float, primary: int) -> None:
        """Count a text that is whole, `seconds` after its first token."""
        self.completion_tokens.inc(len(request.ids))
        if len(request.ids) > 1:
            self.per_token.observe(seconds / (len(request.ids) - 1))
        self.drafted.labels("accepted").inc(request.accepted)
        self.drafted.labels("rejected").inc(request.drafted - request.accepted)
        for record in request.records:
            self.decided.labels(decision(record, primary)[0]).inc()

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self.registry)
