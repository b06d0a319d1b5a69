"""What is done to a member's logits before its top-k: processors, the repetition penalty, no EOS too early."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..members.base import Context, Scores
from ..members.context import LogitScores
from ..options import GenerationOptions
from .request import Request


class Processors:
    """Every member's processing of the logits of some requests.

    Parameters
    ----------
    eos_token_ids : sequence of sequence of int
        Per member, the ids that end a text.
    """

    def __init__(self, eos_token_ids: Sequence[Sequence[int]]) -> None:
        self._eos = [torch.tensor(list(ids), dtype=torch.long, device="cpu") for ids in eos_token_ids]

    def apply(self, member: int, scores: Scores, requests: Sequence[Request], context: Context) -> Scores:
        """The scores of these requests as their options want them, the given ones where nothing is wanted."""
        early = [r for r, request in enumerate(requests) if request.num_steps < request.options.min_new_tokens]
        listed = {r: own for r, request in enumerate(requests) if (own := processors_of(request.options, member))}
        if not listed and not (early and len(self._eos[member])):
            return scores
        logits = scores.logits
        if logits is None:
            raise ValueError(f"member {member} does not have its logits at hand: processors cannot change them")
        logits = logits.float() if listed else logits
        for r, processors in listed.items():
            ids = torch.tensor([context.ids(requests[r].key)], device=logits.device)
            for processor in processors:
                logits[r : r + 1] = processor(ids, logits[r : r + 1])
        if early and len(self._eos[member]):
            eos = self._eos[member] = self._eos[member].to(logits.device)
            if len(early) == len(requests):  # the common case, in a fraction of the time
                logits.index_fill_(1, eos, -torch.inf)
            else:
                rows = torch.tensor(early, device=logits.device)
                logits[rows[:, None], eos[None]] = -torch.inf
        return LogitScores(logits)


def processors_of(options: GenerationOptions, member: int) -> list[Any]:
    """A member's processors, the repetition penalty first."""
    given = None if options.logits_processor is None else options.logits_processor[member]
    processors = [] if given is None else list(given) if isinstance(given, (list, tuple)) else [given]
    if options.repetition_penalty != 1.0:
        from transformers import RepetitionPenaltyLogitsProcessor

        processors.insert(0, RepetitionPenaltyLogitsProcessor(penalty=options.repetition_penalty))
    return processors


def check_processors(options: GenerationOptions, members: int) -> None:
    """Raise ValueError unless there is one entry of `logits_processor` per member."""
    given = options.logits_processor
    if given is not None and len(given) != members:
        raise ValueError(f"logits_processor must have one entry per member, {members}, got {len(given)}")
