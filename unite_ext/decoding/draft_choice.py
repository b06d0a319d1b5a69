"""What is drafted where no length was asked for: what measured times and measured acceptance say is fastest.

Two figures say what a draft costs: the drafter's share of a plain step, and what a further place adds to a pass. Both
are measured, by the number of requests in powers of two.

- `AUTO`: the primary goes on as long as the next token's chance to be taken outweighs that. Where it stops at once, the
  round is a plain step, in which the primary has been asked already. In its place what n-grams offer is tried where it
  gives more tokens per second.
- A member that was named: drafts of several lengths and plain decoding are compared by tokens per second. What a kind
  of round takes is measured, or estimated before it has run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .certainty import Certainty
from .request import NGRAM, Acceptance, Request

AUTO = "auto"
"""The drafter of requests for which the fastest kind of draft is chosen in every round."""
LENGTHS = (2, 4, 8)
"""How many tokens a named member may draft."""
OWN_LENGTH = 16
"""The most that the primary drafts with `AUTO`."""
PLAIN_ROUNDS = 2  # timed before anything is drafted: all estimates stand on them
MIN_GAIN = 1.03  # over plain decoding, estimated, for which something is drafted
LOOK_AGAIN = 32  # plain rounds until a draft is tried again, doubled after each that lost
SOON = 2  # the same after one that gained
MAX_LOSS = 0.01  # of the time, that may be lost in rounds that only try something
_NEW = 0.2  # weight of a new figure in a running one
_OF_TEXT, _OF_ALL = 0.05, 0.02  # weights of one drafted token in the running acceptance of a text, and of all texts
_PRIOR = 4  # drafted tokens that what was believed before counts as
_ACCEPTANCE = 0.8  # of a member's drafts, before there were any
_NGRAM_ACCEPTANCE = 0.3  # the same of n-grams: how good they are is seen without trying them
PLACE_COST = 0.1  # what a further position costs, of a pass over one, before it has been measured


@dataclass(frozen=True)
class Kind:
    """A kind of round.

    Attributes
    ----------
    drafter : int, str or None
        A member, `NGRAM`, "own" for `OWN`, or None for plain decoding.
    length : float
        Of the longest draft by a member; of the drafts by n-grams, on average over the requests.
    """

    drafter: int | str | None
    length: float


PLAIN = Kind(None, 0)
OWN = Kind("own", OWN_LENGTH)
"""What the primary drafts as long as it is worth its cost."""


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
        By kind of round, seconds. What those with n-grams take follows from `place`.
    draft : dict
        By drafter, seconds of one of its passes.
    place : dict
        By drafter, what a further place adds to the pass of the others, as a share of one over a single place.
    own_seconds, own_tokens : Running
        Of rounds in which the primary drafts what is worth it, with `AUTO`; tokens of one request.
    """

    rounds: dict[Kind, Running] = field(default_factory=dict)
    draft: dict[int, Running] = field(default_factory=dict)
    place: dict[int | str, Running] = field(default_factory=dict)
    own_seconds: Running = field(default_factory=Running)
    own_tokens: Running = field(default_factory=Running)


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
        self.certainty = Certainty()
        """Of the primary."""

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

    def add_own(self, size: int, drafted: Sequence[int], tokens: int, seconds: float, drafting: float) -> None:
        """Take in a round in which the primary drafted what was worth it: how many tokens of every request."""
        costs = self.batch(size)
        costs.own_seconds.add(seconds)
        costs.own_tokens.add(tokens / size)
        draft = costs.draft.setdefault(self._primary, Running())
        draft.add(drafting / self._passes(self._primary, max(drafted)))
        single = self.plain(size).value - draft.value
        if not any(drafted):
            self.plain(size).add(seconds)
        elif single > 0:
            further = (seconds - drafting) / single - 1
            costs.place.setdefault(self._primary, Running()).add(max(0.0, further) * size / sum(drafted))

    def own_rate(self, size: int) -> float:
        """Tokens per second of rounds in which the primary drafts what is worth it; at first that of plain ones."""
        costs = self.batch(size)
        if not costs.own_seconds.count:
            return size / max(self.plain(size).value, 1e-9)
        return size * costs.own_tokens.value / max(costs.own_seconds.value, 1e-9)

    def is_worth(self, size: int, chances: Sequence[float]) -> list[bool]:
        """Of drafts by the primary, for which it is worth its cost to take the next token, by the chances for it.

        In tokens: one that is taken gains one, its place costs what it adds to the passes of the others, and all
        together cost one pass of the primary. Time is worth what rounds give in it.
        """
        share, price = self.share(size, self._primary), self.price(size)
        gains = [chance - price * (1 - share) * self.place(size, self._primary) for chance in chances]
        if sum(gain for gain in gains if gain > 0) <= price * share * size:
            return [False] * len(chances)
        return [gain > 0 for gain in gains]

    def price(self, size: int) -> float:
        """Tokens per request that are given up with the time of a plain round; at least the one that it gives."""
        return max(1.0, self.own_rate(size) * self.plain(size).value / size)

    def seconds(self, size: int, kind: Kind) -> float:
        """What a round takes: measured, else estimated from a plain one."""
        known = self.batch(size).rounds.get(kind)
        if known is not None and known.count:
            return known.value
        plain = self.plain(size).value
        slope = self.place(size, kind.drafter)
        if kind.drafter == NGRAM:
            return plain * (1 + slope * kind.length)
        drafter = int(kind.drafter or 0)
        share = self.share(size, drafter)
        others = 1 - share if drafter == self._primary else 1.0
        return plain * (share * self._passes(drafter, kind.length) + others * (1 + slope * kind.length))

    def _passes(self, drafter: int, length: float) -> float:
        """How many passes a drafter takes; the primary is asked after its last token as well."""
        return length + (drafter == self._primary)

    def _near(self, size: int) -> list[tuple[float, BatchCosts]]:
        """All that is known with the seconds of its plain round, the nearest number of requests first."""
        bucket = size.bit_length()
        order = sorted(self._batches, key=lambda other: abs(other - bucket))
        return [(own.rounds[PLAIN].value, own) for n in order if PLAIN in (own := self._batches[n]).rounds]

    def share(self, size: int, drafter: int) -> float:
        """A drafter's pass, as a share of a plain round."""
        for plain, costs in self._near(size):
            if drafter in costs.draft and plain:
                return min(1.0, costs.draft[drafter].value / plain)
        return 1 / self._members

    def place(self, size: int, drafter: int | str | None) -> float:
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
        self._since = 0  # rounds since a draft was last tried that may not pay: of a named member, or by n-grams
        self._patience = LOOK_AGAIN
        self._spent = self._lost = 0.0  # seconds, and those of them that trying has cost

    def choose(self, requests: Sequence[Request], repeats: Sequence[Sequence[int]]) -> Kind:
        """The kind of a round.

        Parameters
        ----------
        requests : sequence of Request
            All with the same drafter, and without a length.
        repeats : sequence of sequence of int
            Per request what n-grams offer, see `worthwhile`; read with the drafter `AUTO` only.
        """
        size, drafter = len(requests), requests[0].drafter
        if self._costs.plain(size).count < PLAIN_ROUNDS:
            return PLAIN
        if drafter == AUTO:
            kinds, otherwise = [Kind(NGRAM, sum(map(len, repeats)) / size)] if any(repeats) else [], OWN
        else:
            kinds, otherwise = [Kind(drafter, n) for n in LENGTHS], PLAIN
        if not kinds:
            return otherwise
        rates = {kind: self._rate(kind, requests, repeats) for kind in kinds}
        best = max(rates, key=lambda kind: rates[kind])
        if rates[best] >= MIN_GAIN * self._rate(otherwise, requests, repeats) or self._was_named(drafter, size):
            return best
        if self._since >= self._patience and self._lost <= MAX_LOSS * self._spent:
            return best
        return otherwise

    def worthwhile(self, requests: Sequence[Request], repeats: Sequence[Sequence[int]]) -> list[list[int]]:
        """What n-grams offer, as far as the chance of a token to be taken outweighs the cost of its place.

        Where that leaves nothing at all, everything they offer: what cannot pay may be tried all the same.
        """
        cost = self._costs.price(len(requests)) * self._costs.place(len(requests), NGRAM)
        kept = []
        for request, ids in zip(requests, repeats):
            share, chance, n = self.acceptance(request, NGRAM), 1.0, 0
            while n < len(ids) and chance * share > cost:
                chance, n = chance * share, n + 1
            kept.append(list(ids[:n]))
        return kept if any(kept) else [list(ids) for ids in repeats]

    def goes_on(self, size: int, sure: Sequence[Sequence[float]]) -> list[bool]:
        """Whether drafts by the primary take their next token, see `GoesOn`."""
        return self._costs.is_worth(size, [self._costs.certainty.chance(own) for own in sure])

    def learn(self, guesses: Sequence[tuple[int, float]], taken: Sequence[int]) -> None:
        """See `Certainty.learn`."""
        self._costs.certainty.learn(guesses, taken)

    def _was_named(self, drafter: int | str | None, size: int) -> bool:
        """Whether somebody asked for this drafter, who has not been tried with so many requests: no estimate stands
        against that."""
        return isinstance(drafter, int) and drafter not in self._costs.batch(size).draft

    def end(self, requests: Sequence[Request], kind: Kind, tokens: int, seconds: float, drafting: float) -> None:
        """A round has ended that gave so many tokens; `drafting` is the drafter's part of its seconds."""
        size = len(requests)
        self._spent += seconds
        auto = requests[0].drafter == AUTO
        usual = 1 / self._costs.own_rate(size) if auto and kind != PLAIN else self._costs.plain(size).value / size
        self._costs.add(size, kind, seconds, drafting)
        if kind == PLAIN:
            self._since += 1
            return
        lost = seconds - usual * tokens
        self._lost = max(0.0, self._lost + lost)
        self._patience = SOON if lost < 0 else min(2 * max(self._patience, LOOK_AGAIN), 1 << 12)
        self._since = 0

    def end_own(self, drafted: Sequence[int], tokens: int, seconds: float, drafting: float) -> None:
        """A round has ended in which the primary drafted so many tokens of every request as was worth it."""
        self._costs.add_own(len(drafted), drafted, tokens, seconds, drafting)
        self._spent += seconds
        self._since += 1

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
        first = _NGRAM_ACCEPTANCE if drafter == NGRAM else _ACCEPTANCE
        return self._costs.acceptance.get(drafter, (first, 0))[0], 0

    def _updated(self, known: Acceptance, drafter: int | str, accepted: bool, weight: float) -> tuple[float, int]:
        value, count = self._known(known, drafter)
        return value + (accepted - value) * max(weight, 1 / (count + _PRIOR)), count + 1

    def _rate(self, kind: Kind, requests: Sequence[Request], repeats: Sequence[Sequence[int]]) -> float:
        """Tokens per second of a kind of round."""
        if kind == OWN:
            return self._costs.own_rate(len(requests))
        tokens = float(len(requests))
        if kind.drafter is not None:
            lengths = map(len, repeats) if kind.drafter == NGRAM else [int(kind.length)] * len(requests)
            tokens = sum(_tokens(self.acceptance(r, kind.drafter), n) for r, n in zip(requests, lengths))
        return tokens / max(self._costs.seconds(len(requests), kind), 1e-9)


def _tokens(acceptance: float, length: int) -> float:
    """The tokens that a round with a draft of this length gives on average."""
    share = min(acceptance, 0.999)
    return (1 - share ** (length + 1)) / (1 - share)
