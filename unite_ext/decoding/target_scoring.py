"""Scoring of given tokens: as many of a request's targets as one pass takes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..members.base import Place, Scores
from .choice import Choice, Chooser
from .evaluation import Evaluator
from .full_likelihood import Chains, SilentTargets, ask, base_rows, chain_log_probs
from .request import Request
from .start_state import rows_along
from .text_contexts import TextContexts


class TargetScorer:
    """Scores the targets of one engine's requests.

    Parameters
    ----------
    evaluator : Evaluator
    chooser : Chooser
    texts : TextContexts
    primary : int
    max_places : int
        How many places a pass of one member takes.
    """

    def __init__(
        self, evaluator: Evaluator, chooser: Chooser, texts: TextContexts, primary: int, max_places: int
    ) -> None:
        self.max_places = max_places
        self._evaluator = evaluator
        self._chooser = chooser
        self._texts = texts
        self._members = evaluator.members
        self._alignment = evaluator.alignment
        self._chains = Chains(evaluator.alignment, primary)
        self._silent = SilentTargets(evaluator.alignment, primary)

    def score(self, requests: Sequence[Request], *, full: bool) -> None:
        """Score the next targets of every request, as many as one pass takes."""
        room = max(1, self.max_places // len(requests))
        chunks, places, cut = [], [], []
        for request in requests:
            least = 1 + self._silent.begins(request)  # a bare space counts with what follows it
            ids = (request.targets or ())[len(request.ids) : len(request.ids) + max(least, room)]
            if full:
                ids = self._affordable(ids, room, least)
            own = self._texts.places(request, ids[:-1])
            fitting = self._texts.fitting(request, own)
            cut.append(fitting < len(ids))
            chunks.append(ids[:fitting])
            places.append([member[:fitting] for member in own])
        rows = [request for request, ids in zip(requests, chunks) for _ in ids]
        targets = [i for ids in chunks for i in ids]
        starts = rows_along(requests, [self._texts.pieces(request, ids[:-1]) for request, ids in zip(requests, chunks)])
        if full:
            scores, own_log_probs = self._full_scores(requests, chunks, places, starts)
            choices = iter(self._chooser.choose(scores, rows, targets, own_log_probs, starts=starts))
        else:
            found = self._evaluator.all_place_scores(requests, places)
            choices = iter(self._chooser.choose(found, rows, targets, starts=starts))
        grown = []
        for request, ids, is_cut in zip(requests, chunks, cut):
            self._take_scores(request, [next(choices) for _ in ids])
            if request.error is None:
                request.ids += ids
                if is_cut or len(request.ids) >= len(request.targets or ()):
                    request.finish_reason = "length"
                else:
                    grown.append((request, ids))
        self._texts.grow(
            [request for request, _ in grown],
            [b"".join(self._texts.pieces(request, ids, len(request.ids) - len(ids))) for request, ids in grown],
            [ids for _, ids in grown],
        )

    def _full_scores(
        self,
        requests: Sequence[Request],
        chunks: Sequence[Sequence[int]],
        places: Sequence[Sequence[list[Place]]],
        starts: Sequence[tuple[bool, ...]] | None,
    ) -> tuple[list[Scores], Tensor]:
        """The members' scores at all targets, and their own log-probabilities of them, [N, M]."""
        scores, columns = [], []
        for m, member in enumerate(self._members):
            lengths = self._texts.contexts[m].lengths([request.key for request in requests])
            flags = iter(starts or [()] * sum(map(len, chunks)))
            asked = [
                ask(own[m], [self._chains.of(m, i, next(flags)) for i in ids], length, member.context_length)
                for ids, own, length in zip(chunks, places, lengths)
            ]
            found = self._evaluator.place_scores(m, requests, [own.places for own in asked])
            options = requests[0].method.options
            columns.append(chain_log_probs(found, self._alignment, m, options, asked))
            self._silent.move(columns[-1], requests, chunks, m)
            scores.append(found.select(base_rows(asked)))
        return scores, self._evaluator.exchange.log_probs(torch.stack(columns, dim=1))

    def _affordable(self, ids: Sequence[int], room: int, least: int) -> Sequence[int]:
        """As many of the targets, at least so many, as have room with the places along their chains."""
        used = 0
        for n, token_id in enumerate(ids):
            used += max(len(self._chains.of(m, token_id)) for m in range(len(self._members)))
            if used > room:
                return ids[: max(least, n)]
        return ids

    def _take_scores(self, request: Request, choices: Sequence[Choice]) -> None:
        for choice in choices:
            if choice.error is not None:
                request.error = choice.error
                return
            if choice.score is not None:
                request.scores.append(choice.score)
                request.num_steps += 1
