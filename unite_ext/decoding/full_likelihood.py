"""The members' own probabilities of given tokens, each over its whole eligible vocabulary: `likelihood="full"`.

A step normalises over the union, so its numbers depend on what was proposed, and a single member's are not its own.
Here member m's probability of a token of the primary is that of the token's text in its own ids: of the one id that it
has for the text, else of the chain of ids of which the text's first sub-token is the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .._core import FIRST_SUB_TOKEN, NO_CLASS
from ..exchange import key_ids, key_values
from ..members.base import Place, Scores
from ..options import StepOptions
from ..vocab.alignment import VocabAlignment
from ..vocab.vocabulary import SPACE
from .places import place_length
from .request import Request


class Chains:
    """Every member's ids of the primary's tokens.

    Parameters
    ----------
    alignment : VocabAlignment
    primary : int
    """

    def __init__(self, alignment: VocabAlignment, primary: int) -> None:
        self._alignment = alignment
        self._primary = primary
        self._known: dict[tuple[int, int, tuple[bool, ...]], tuple[int, ...]] = {}

    def of(self, member: int, token_id: int, starts: tuple[bool, ...] = ()) -> tuple[int, ...]:
        """A member's ids of one eligible token of the primary; none if it cannot spell it.

        `starts` are the members that take their first step in the start state, see `VocabAlignment.at_start`.
        """
        key = (member, token_id, starts)
        if key not in self._known:
            alignment = self._alignment.at_start(starts) if any(starts) else self._alignment
            self._known[key] = self._made(alignment, member, token_id)
        return self._known[key]

    def _made(self, alignment: VocabAlignment, member: int, token_id: int) -> tuple[int, ...]:
        if alignment.fingerprints[member] == alignment.fingerprints[self._primary]:
            return (token_id,)
        cls = alignment.class_of(self._primary, token_id)
        tagged = -1 if cls == NO_CLASS else int(alignment.class_ids[cls, member])
        if tagged < FIRST_SUB_TOKEN:
            return () if tagged < 0 else (tagged,)
        return tuple(alignment.encode_continuation(member, alignment.token_bytes(self._primary, token_id)))


class SilentTargets:
    """First targets that are a bare space of the primary's in the start state, which adds nothing to the text.

    That a text begins with nothing is certain, whoever is asked. What the primary gives the space counts with the token
    behind it.

    Parameters
    ----------
    alignment : VocabAlignment
    primary : int
    """

    def __init__(self, alignment: VocabAlignment, primary: int) -> None:
        self._primary = primary
        self._token_bytes = alignment.vocabularies[primary].token_bytes

    def begins(self, request: Request) -> bool:
        """Whether a request's next target is one. Not where all members write the space, to which it is text."""
        starts = request.starts
        if request.ids or not request.targets or not starts[self._primary] or all(starts):
            return False
        return self._token_bytes[request.targets[0]] == SPACE

    def move(
        self, log_probs: Tensor, requests: Sequence[Request], chunks: Sequence[Sequence[int]], member: int
    ) -> None:
        """Change a member's log-probabilities of all requests' next targets, [N], in place."""
        row = 0
        for request, ids in zip(requests, chunks):
            if self.begins(request):
                if request.syncs[member] is None and len(ids) > 1:
                    log_probs[row + 1] += log_probs[row]
                log_probs[row] = 0.0
            row += len(ids)


@dataclass(frozen=True)
class Asked:
    """Where one member is asked about the targets of one request."""

    places: list[Place]
    """First those of the targets themselves, then those along the chains."""
    ids: list[int]
    """Per place the id whose probability is wanted, -1 for none."""
    targets: list[int]
    """Per place the number of the target it belongs to."""


def ask(places: Sequence[Place], chains: Sequence[Sequence[int]], length: int, limit: int | None) -> Asked:
    """The places at which a member gives the probabilities of some chains.

    Parameters
    ----------
    places : sequence of Place
        Where each chain begins.
    chains : sequence of sequence of int
    length : int
        How many ids the member's context of the request has.
    limit : int or None
        The longest context. What of a chain does not fit counts as certain.
    """
    asked = Asked(list(places), [chain[0] if chain else -1 for chain in chains], list(range(len(places))))
    for n, ((key, drop, append), chain) in enumerate(zip(places, chains)):
        room = len(chain) if limit is None else limit - place_length(length, places[n])
        for end in range(1, min(len(chain), room)):
            asked.places.append((key, drop, [*append, *chain[:end]]))
            asked.ids.append(chain[end])
            asked.targets.append(n)
    return asked


def chain_log_probs(
    scores: Scores, alignment: VocabAlignment, member: int, options: StepOptions, asked: Sequence[Asked]
) -> Tensor:
    """A member's log-probabilities of all requests' targets, float64 [N]; -inf for what it cannot spell.

    `scores` has one row per place, all of the first request's, then the next one's.
    """
    ids = torch.tensor([i for own in asked for i in own.ids], device=alignment.device)
    start, owners = 0, []
    for own in asked:
        owners += [start + n for n in own.targets]
        start += max(own.targets) + 1
    found = _log_probs(scores, alignment, member, options, ids)
    total = found.new_zeros(start)
    return total.index_add(0, torch.tensor(owners, device=total.device), found)


def base_rows(asked: Sequence[Asked]) -> list[int]:
    """The rows of scores at the targets themselves."""
    rows: list[int] = []
    start = 0
    for own in asked:
        rows += range(start, start + max(own.targets) + 1)
        start += len(own.places)
    return rows


def _log_probs(scores: Scores, alignment: VocabAlignment, member: int, options: StepOptions, ids: Tensor) -> Tensor:
    """The log-probability of one id per row, over the member's eligible ids, float64 [N]."""
    keys, log_sums = scores.top_k(alignment, member, replace(options, score="probs"))
    values = scores.gather(ids[:, None].int())[:, 0]
    own = key_ids(keys) == ids[:, None]  # a member need not give the logits of its own keys again
    best = key_values(keys)
    values = torch.where(own.any(dim=1), best.gather(1, own.int().argmax(dim=1)[:, None])[:, 0], values)
    return (values - best[:, 0]).double() - log_sums
