"""What is drafted where no length was asked for: what measured times and measured acceptance say is fastest.

Plain decoding, drafts of several lengths by a member, and what n-grams offer are compared by tokens per second. What a
round takes is measured. For kinds of rounds that have not run yet it is estimated from those that have, by two figures:
the drafter's share of a plain step, and what a further place costs in a pass. How many tokens a round gives follows
from the share of drafted tokens that are taken. Times are kept by the number of requests, in powers of two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .request import NGRAM, Acceptance, Request

AUTO = "auto"
"""The drafter of requests for which the fastest kind of draft is chosen in every round."""
LENGTHS = (2, 4, 8)
"""How many tokens a member may draft."""
PLAIN_ROUNDS = 2  # timed before anything is drafted: all estimates stand on them
MIN_GAIN = 1.03  # over plain decoding, estimated, for which something is drafted
LOOK_AGAIN = 32  # plain rounds until a draft is tried again, doubled after each that lost
SOON = 2  # the same after one that gained
MAX_LOSS = 0.01  # of the time, that may be lost in rounds that only try something
_NEW = 0.2  # weight of a new figure in a running one
_OF_TEXT, _OF_ALL = 0.05, 0.02  # weights of one drafted token in the running acceptance of a text, and of all texts
_PRIOR = 4  # drafted tokens that what was believed before counts as
_ACCEPTANCE = 0.8  # before anything has been drafted
PLACE_COST = 0.1  # what a further position costs, of a pass over one, before it has been measured


@dataclass(frozen=True)
class Kind:
    """A kind of round.

    Attributes
    ----------
    drafter : int, str or None
        A member, `NGRAM`, or None for plain decoding.
    length : int
        Of the longest draft.
    """

    drafter: int | str | None
    length: int


PLAIN = Kind(None, 0)


@dataclass
class Running:
    """A running mean that a single outlier moves little."""

    value: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        """Take in a new figure. The second replaces the first, which pays for what later ones find ready."""
        if self.count < 2:
            self.value = value if self.count == 0 else min(self.value, value)
        else:
            self.value += _NEW * (min(max(value, self.value / 2), 2 * self.value) - self.value)
        self.count += 1


@dataclass
class BatchCosts:
    """What rounds take with about so many requests.

    Attributes
    ----------
    rounds : dict
        By kind of round, seconds. Those with n-grams are in `repeat_slope`.
    draft : dict
        By drafter, seconds of one of its passes.
    place : dict
        By drafter, what a further place adds to the pass of the others, as a share of one over a single place.
    """

    rounds: dict[Kind, Running] = field(default_factory=dict)
    draft: dict[int, Running] = field(default_factory=dict)
    place: dict[int | str, Running] = field(default_factory=dict)


class DraftCosts:
    """Measured times and acceptance of one ensemble, kept from call to call.

    Parameters
    ----------
    members : int
    primary : int
    place_cost : float
        What a further position is taken to cost at first, of a pass over one.
    """

    def __init__(self, members: int, primary: int, place_cost: float = PLACE_COST) -> None:
        self._members = members
        self._place_cost = place_cost
        self._primary = primary
        self._batches: dict[int, BatchCosts] = {}
        self.acceptance: Acceptance = {}
        """Of all requests."""

    def batch(self, size: int) -> BatchCosts:
        """What is known of rounds with about so many requests."""
        return self._batches.setdefault(size.bit_length(), BatchCosts())

    def plain(self, size: int) -> Running:
        """Seconds of a plain round."""
        return self.batch(size).rounds.setdefault(PLAIN, Running())

    def add(self, size: int, kind: Kind, seconds: float, drafting: float) -> None:
        """Take in a round's seconds, of which `drafting` is the drafter's part."""
        costs = self.batch(size)
        plain = self.plain(size).value
        if kind == PLAIN:
            self.plain(size).add(seconds)
            return
        if kind.drafter == NGRAM:
            rest, single = seconds, plain
        else:
            drafter = int(kind.drafter or 0)
            costs.rounds.setdefault(kind, Running()).add(seconds)
            costs.draft.setdefault(drafter, Running()).add(drafting / max(1, self._passes(drafter, kind.length)))
            rest = seconds - drafting
            single = plain - costs.draft[drafter].value if drafter == self._primary else plain
        if single > 0 and kind.drafter is not None and kind.length:
            costs.place.setdefault(kind.drafter, Running()).add(max(0.0, rest / single - 1) / kind.length)

    def seconds(self, size: int, kind: Kind) -> float:
        """What a round takes: measured, else estimated from a plain one."""
        known = self.batch(size).rounds.get(kind)
        if known is not None and known.count:
            return known.value
        plain = self.plain(size).value
        slope = self._place(size, kind.drafter)
        if kind.drafter == NGRAM:
            return plain * (1 + slope * kind.length)
        drafter = int(kind.drafter or 0)
        share = self._share(size, drafter)
        others = 1 - share if drafter == self._primary else 1.0
        return plain * (share * self._passes(drafter, kind.length) + others * (1 + slope * kind.length))

    def _passes(self, drafter: int, length: int) -> int:
        """How many passes a drafter takes; the primary is asked after its last token as well."""
        return length + (drafter == self._primary)

    def _near(self, size: int) -> list[tuple[float, BatchCosts]]:
        """All that is known with the seconds of its plain round, the nearest number of requests first."""
        bucket = size.bit_length()
        order = sorted(self._batches, key=lambda other: abs(other - bucket))
        return [(own.rounds[PLAIN].value, own) for n in order if PLAIN in (own := self._batches[n]).rounds]

    def _share(self, size: int, drafter: int) -> float:
        """A drafter's pass, as a share of a plain round."""
        for plain, costs in self._near(size):
            if drafter in costs.draft and plain:
                return min(1.0, costs.draft[drafter].value / plain)
        return 1 / self._members

    def _place(self, size: int, drafter: int | str | None) -> float:
        """What a further place costs; where this drafter is new, what it cost with another."""
        found: list[float] = []
        for _, costs in self._near(size):
            if drafter in costs.place:
                return costs.place[drafter].value
            found += [own.value for own in costs.place.values()]
        # One more place is one more position of every request, and a plain pass has as many already.
        return found[0] if found else size * self._place_cost / (1 + (size - 1) * self._place_cost)


class DraftChooser:
    """Chooses the kind of every round for the requests of one engine.

    Parameters
    ----------
    costs : DraftCosts
    primary : int
    """

    def __init__(self, costs: DraftCosts, primary: int) -> None:
        self._costs = costs
        self._primary = primary
        self._since = 0  # rounds since the last draft
        self._patience = LOOK_AGAIN
        self._spent = self._lost = 0.0  # seconds, and those of them that trying has cost

    def choose(self, requests: Sequence[Request], repeats: Sequence[Sequence[int]]) -> Kind:
        """The kind of a round.

        Parameters
        ----------
        requests : sequence of Request
            All with the same drafter, and without a length.
        repeats : sequence of sequence of int
            Per request what n-grams offer; read with the drafter `AUTO` only.
        """
        size = len(requests)
        if self._costs.plain(size).count < PLAIN_ROUNDS:
            return PLAIN
        rates = {kind: self._rate(kind, requests, repeats) for kind in self._kinds(requests[0].drafter, repeats)}
        plain, best = self._rate(PLAIN, requests, repeats), max(rates, key=lambda kind: rates[kind])
        if rates[best] >= MIN_GAIN * plain or self._was_named(requests[0].drafter, size):
            return best
        if self._since >= self._patience and self._lost <= MAX_LOSS * self._spent:
            return best
        return PLAIN

    def _was_named(self, drafter: int | str | None, size: int) -> bool:
        """Whether somebody asked for this drafter, who has not been tried with so many requests: no estimate stands
        against that."""
        return isinstance(drafter, int) and drafter not in self._costs.batch(size).draft

    def end(self, requests: Sequence[Request], kind: Kind, tokens: int, seconds: float, drafting: float) -> None:
        """A round has ended that gave so many tokens; `drafting` is the drafter's part of its seconds."""
        size = len(requests)
        self._costs.add(size, kind, seconds, drafting)
        plain = self._costs.plain(size).value
        self._spent += seconds
        if kind == PLAIN:
            self._since += 1
            return
        lost = seconds - plain * tokens / size
        self._lost = max(0.0, self._lost + lost)
        self._patience = SOON if lost < 0 else min(2 * max(self._patience, LOOK_AGAIN), 1 << 12)
        self._since = 0

    def compare(self, request: Request, drafter: int | str, draft: Sequence[int], taken: Sequence[int]) -> None:
        """Learn from a draft, tried or not, how much of it the text took."""
        for n, token_id in enumerate(draft):
            if n == len(taken) and n:
                return
            accepted = n < len(taken) and taken[n] == token_id
            request.acceptance[drafter] = self._updated(request.acceptance, drafter, accepted, _OF_TEXT)
            self._costs.acceptance[drafter] = self._updated(self._costs.acceptance, drafter, accepted, _OF_ALL)
            if not accepted:
                return

    def acceptance(self, request: Request, drafter: int | str) -> float:
        """The share of drafted tokens that are taken: of this text, else of all."""
        return self._known(request.acceptance, drafter)[0]

    def _known(self, known: Acceptance, drafter: int | str) -> tuple[float, int]:
        if drafter in known:
            return known[drafter]
        return self._costs.acceptance.get(drafter, (_ACCEPTANCE, 0))[0], 0

    def _updated(self, known: Acceptance, drafter: int | str, accepted: bool, weight: float) -> tuple[float, int]:
        value, count = self._known(known, drafter)
        return value + (accepted - value) * max(weight, 1 / (count + _PRIOR)), count + 1

    def _kinds(self, drafter: int | str | None, repeats: Sequence[Sequence[int]]) -> list[Kind]:
        """The kinds of drafts for requests with this drafter."""
        kinds = [Kind(self._primary if drafter == AUTO else drafter, n) for n in LENGTHS]
        longest = max(map(len, repeats), default=0)
        if drafter == AUTO and longest:
            kinds.append(Kind(NGRAM, longest))
        return kinds

    def _rate(self, kind: Kind, requests: Sequence[Request], repeats: Sequence[Sequence[int]]) -> float:
        """Tokens per second of a kind of round."""
        tokens = float(len(requests))
        if kind.drafter is not None:
            lengths = map(len, repeats) if kind.drafter == NGRAM else [kind.length] * len(requests)
            tokens = sum(_tokens(self.acceptance(r, kind.drafter), n) for r, n in zip(requests, lengths))
        return tokens / max(self._costs.seconds(len(requests), kind), 1e-9)


def _tokens(acceptance: float, length: int) -> float:
    """The tokens that a round with a draft of this length gives on average."""
    share = min(acceptance, 0.999)
    return (1 - share ** (length + 1)) / (1 - share)
