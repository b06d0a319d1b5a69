"""Exact boundaries in plain Python: what members think of the next bytes of a text, and the walk. Start reading here.

A text may end inside a token that a member would have written. What the member thinks of the bytes that follow is then

    P(b | text) = P(text b) / P(text),

where P(x) is the probability that what the member writes begins with x, over all its tokenizations: the sum over
*covers*, paths of tokens of which the last one reaches the end of x or beyond (Vieira et al., arXiv 2412.03719, section
4). An ensemble averages P(b | text) over its members and takes a byte, as a language model over bytes would.

To ask the models less often, a step *walks* on with the same answers while hardly any of a member's tokens have ended:
for those that have, what follows is not known without another pass. `unite_ext.decoding.exact` does the same quickly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

END_OF_TEXT = 256
"""The symbol after the 256 bytes."""

NextProbs = Callable[[tuple[int, ...]], Sequence[float]]
"""The probability of every id after a path of ids; those that are not eligible have 0."""


@dataclass(frozen=True)
class ExactMember:
    """A member as these functions want it: the bytes of every id (none for EOS and special ids), and its model."""

    token_bytes: Sequence[bytes]
    eos_token_ids: Sequence[int]
    next_probs: NextProbs
    representatives: Mapping[bytes, int] | None = None
    """The id that stands for bytes of several ids in a path; the lowest by default."""
    lead: bytes = b""
    """What stands before the text for this member, and is no part of it: a space in the start state."""


def continuations(member: ExactMember, text: bytes, *, min_share: float = 0.0) -> dict[bytes | None, float]:
    """What a member may write after a text: the rest of the token that reaches beyond its end, with its weight.

    Parameters
    ----------
    member : ExactMember
    text : bytes
    min_share : float
        Covers whose path is less likely than this share of what has been found are left out.

    Returns
    -------
    dict
        Bytes to P(path) * P(token | path), summed over all covers. None stands for the end of the text.
    """
    found: dict[bytes | None, float] = {}
    is_empty, text = not text, member.lead + text
    representative = dict(member.representatives or {})
    for token, data in enumerate(member.token_bytes):
        representative.setdefault(data, token)
    paths: list[tuple[tuple[int, ...], int, float]] = [((), 0, 1.0)]
    while paths:
        path, end, weight = max(paths, key=lambda p: p[2])
        paths.remove((path, end, weight))
        if weight < min_share * sum(found.values()):
            continue
        inside: dict[bytes, float] = {}
        tail = text[end:]
        for token, p in enumerate(member.next_probs(path)):
            data = member.token_bytes[token]
            if p <= 0:
                continue
            if token in member.eos_token_ids:
                if not tail or (is_empty and not path):
                    found[None] = found.get(None, 0.0) + weight * p
            elif len(data) > len(tail) and data.startswith(tail):
                rest = data[len(tail) :]
                found[rest] = found.get(rest, 0.0) + weight * p
            elif data and tail.startswith(data):
                inside[data] = inside.get(data, 0.0) + weight * p
        paths += [((*path, representative[data]), end + len(data), p) for data, p in inside.items()]
    return found


def next_symbols(found: dict[bytes | None, float], walked: bytes) -> tuple[dict[int, float], float]:
    """A member's distribution over the symbol after some walked bytes, and the share of it whose tokens have ended.

    `found` is what `continuations` returned for the text before the walk.
    """
    masses: dict[int, float] = {}
    ended = 0.0
    for rest, mass in found.items():
        if rest is None:
            if not walked:
                masses[END_OF_TEXT] = masses.get(END_OF_TEXT, 0.0) + mass
        elif rest == walked:
            ended += mass
        elif rest.startswith(walked):
            symbol = rest[len(walked)]
            masses[symbol] = masses.get(symbol, 0.0) + mass
    total = sum(masses.values())
    if total == 0:
        return {}, 1.0
    return {symbol: mass / total for symbol, mass in masses.items()}, ended / (ended + total)


def walk(
    members: Sequence[ExactMember],
    text: bytes,
    *,
    weights: Sequence[float] | None = None,
    primary: int = 0,
    max_ended: float = 0.01,
    unlikely_share: float = 0.1,
    min_share: float = 0.0,
    max_bytes: int = 256,
    forced: Sequence[int] | None = None,
) -> list[tuple[int, float]]:
    """One step: the next symbols of a text and their averaged probabilities.

    Parameters
    ----------
    members : sequence of ExactMember
    text : bytes
    weights : sequence of float, optional
        One per member, any scale.
    primary : int
        Decides between symbols of equal probability.
    max_ended : float
        The share of a member's probability whose tokens may have ended inside the walk; 0 asks as soon as any has.
    unlikely_share : float
        Where a forced symbol is unlikely, `max_ended` is this share of its probability.
    min_share : float
        See `continuations`.
    max_bytes : int
    forced : sequence of int, optional
        Symbols to take whatever the members think.
    """
    weights = [1.0] * len(members) if weights is None else weights
    found = [continuations(member, text, min_share=min_share) for member in members]
    walked = b""
    taken: list[tuple[int, float]] = []
    limit = max_bytes if forced is None else len(forced)
    while len(taken) < limit:
        asked = [next_symbols(own, walked) for own in found]
        if walked and any(ended > max_ended for (_, ended), weight in zip(asked, weights) if weight > 0):
            break
        probs: dict[int, float] = {}
        voting = sum(weight for (own, _), weight in zip(asked, weights) if own)
        for (own, _), weight in zip(asked, weights):
            for symbol, p in own.items():
                probs[symbol] = probs.get(symbol, 0.0) + weight / voting * p
        leader = asked[primary][0]
        best = max(probs, key=lambda s: (probs[s], leader.get(s, 0.0), -s))
        symbol = best if forced is None else forced[len(taken)]
        if walked and forced is not None:
            allowed = unlikely_share * probs.get(symbol, 0.0)
            if any(ended > allowed for (_, ended), weight in zip(asked, weights) if weight > 0):
                break
        taken.append((symbol, probs.get(symbol, 0.0)))
        if symbol == END_OF_TEXT:
            break
        walked += bytes([symbol])
    return taken


def generate(members: Sequence[ExactMember], *, max_bytes: int, **options: float) -> bytes:
    """Write a text greedily, asking the members anew for every step."""
    text = b""
    while len(text) < max_bytes:
        symbols = [symbol for symbol, _ in walk(members, text, **options)]  # type: ignore[arg-type]
        text += bytes([symbol for symbol in symbols if symbol != END_OF_TEXT])
        if END_OF_TEXT in symbols:
            break
    return text[:max_bytes]
