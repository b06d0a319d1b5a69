"""What is done to a member's logits before its top-k: processors, penalties, no early EOS, a grammar's mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..members.base import Scores
from ..members.context import LogitScores
from ..options import GenerationOptions
from ..structured.masks import Masks


@dataclass(slots=True)
class ScoredRow:
    """What a row of scores is for."""

    row: int
    """Its number among the scores."""
    options: GenerationOptions
    ids: Callable[[], list[int]]
    """All that the member has read."""
    constraint: Masks | None = None
    """What keeps the text within a grammar."""
    place: int = 0
    """How many pieces the row is ahead of the text."""
    at_start: bool = False
    """Whether the member takes its first step in the start state."""


class Processors:
    """Every member's processing of logits.

    Parameters
    ----------
    eos_token_ids : sequence of sequence of int
        Per member, the ids that end a text.
    """

    def __init__(self, eos_token_ids: Sequence[Sequence[int]]) -> None:
        self._eos = [torch.tensor(list(ids), dtype=torch.long, device="cpu") for ids in eos_token_ids]

    def apply(self, member: int, scores: Scores, early: Sequence[int], rows: Sequence[ScoredRow]) -> Scores:
        """The scores as options want them; the given ones where nothing is wanted.

        Parameters
        ----------
        member : int
        scores : Scores
        early : sequence of int
            Rows where a text may not end yet.
        rows : sequence of ScoredRow
            Rows that are changed by more than that.
        """
        listed = [(row, own) for row in rows if (own := processors_of(row.options, member))]
        bound = [(row.row, row.constraint, row.place, row.at_start) for row in rows if row.constraint is not None]
        if not listed and not bound and not (early and self._eos[member].numel()):
            return scores
        logits = scores.logits
        if logits is None:
            raise ValueError(f"member {member} does not have its logits at hand: processors cannot change them")
        logits = logits.float() if listed else logits
        for row, processors in listed:
            ids = torch.tensor([row.ids()], device=logits.device)
            for processor in processors:
                logits[row.row : row.row + 1] = processor(ids, logits[row.row : row.row + 1])
        if early and self._eos[member].numel():
            self._forbid_eos(member, logits, early)
        if bound:  # last, so that nothing else allows again what it forbids
            apply_masks(member, logits, bound)
        return LogitScores(logits)

    def _forbid_eos(self, member: int, logits: Tensor, rows: Sequence[int]) -> None:
        eos = self._eos[member] = self._eos[member].to(logits.device)
        if len(rows) == logits.shape[0]:  # the common case, in a fraction of the time
            logits.index_fill_(1, eos, -torch.inf)
        else:
            logits[torch.tensor(rows, device=logits.device)[:, None], eos[None]] = -torch.inf


def apply_masks(member: int, logits: Tensor, rows: Sequence[tuple[int, Masks, int, bool]]) -> None:
    """Set a member's logits that grammars forbid to -inf, in place.

    Parameters
    ----------
    member : int
    logits : Tensor [N, V]
    rows : sequence of (row, constraint, place, at_start)
        See `Masks.fill`.
    """
    from xgrammar import apply_token_bitmask_inplace

    words = rows[0][1].words(member)
    masks = np.zeros((len(rows), words), np.int32)
    for mask, (_, constraint, place, at_start) in zip(masks, rows):
        constraint.fill(member, place, mask, at_start)
    width = min(logits.shape[1], 32 * words)  # what is beyond, no id has
    bits = torch.from_numpy(masks).to(logits.device)
    # Elsewhere than on the CPU, xgrammar's own choice would compile a Triton kernel while requests wait.
    backend: Literal["cpu", "torch_native"] = "cpu" if logits.device.type == "cpu" else "torch_native"
    if len(rows) == len(logits):
        apply_token_bitmask_inplace(logits, bits, vocab_size=width, backend=backend)
        return
    places = torch.tensor([r for r, _, _, _ in rows], device=logits.device)
    own = logits[places]
    apply_token_bitmask_inplace(own, bits, vocab_size=width, backend=backend)
    logits[places] = own


def processors_of(options: GenerationOptions, member: int) -> list[Any]:
    """A member's processors, the repetition penalty first."""
    if options.logits_processor is None and options.repetition_penalty == 1.0:
        return []
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
