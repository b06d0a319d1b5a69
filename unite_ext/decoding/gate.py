"""The gate: steps that the primary decides alone because it is sure."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..exchange import HERE, Exchange
from ..members.base import Scores
from ..members.ranks import SpreadScores
from ..vocab.alignment import VocabAlignment
from .choice import Choice
from .request import Request, StepRecord
from .start_state import first_steps


def gated_tokens(
    scores: Scores,
    requests: Sequence[Request],
    alignment: VocabAlignment,
    primary: int,
    exchange: Exchange = HERE,
) -> dict[int, int]:
    """The primary's token of every row that its gate decides. Only the process that holds the primary can say."""
    gates = {r: request.options.gate for r, request in enumerate(requests) if request.options.gate is not None}
    if not gates:
        return {}
    shape = (2, len(requests))
    pairs = exchange.told(primary, shape, torch.float64, lambda: _surest(scores, alignment, primary)).tolist()
    return {r: int(pairs[1][r]) for r, gate in gates.items() if pairs[0][r] > gate}


def _surest(scores: Scores, alignment: VocabAlignment, primary: int) -> Tensor:
    """The primary's largest probability of every row, and its id, float64 [2, N]."""
    logits = (scores.own if isinstance(scores, SpreadScores) else scores).logits
    if logits is None:
        raise ValueError("gate needs the primary's logits at hand")
    eligible = alignment.classes[primary][: alignment.vocab_sizes[primary]] >= 0
    values = logits[:, : len(eligible)].float().nan_to_num(nan=-torch.inf).masked_fill(~eligible, -torch.inf)
    top, ids = values.softmax(dim=1).max(dim=1)
    return torch.stack([top.double(), ids.double()])


def gated_choice(request: Request, token_id: int, members: int, primary: int) -> Choice:
    """The choice of a gated step, and its record where the request keeps them."""
    record = None
    if request.keeps_records:
        ids = [token_id if m == primary else -1 for m in range(members)]
        missing = tuple(sorted(request.missing))
        record = StepRecord(
            [ids],
            [1.0],
            [[1.0 if i == token_id else 0.0 for i in ids]],
            0,
            gated=True,
            starts=first_steps(request),
            missing=missing,
        )
    return Choice(token_id, record=record)
