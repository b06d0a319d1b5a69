"""Methods that score a fixed list of entries at every step and take the largest."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..members.base import BaseMember, Scores
from ..options import StepOptions
from ..reference import clean
from ..step_result import StepResult
from ..vocab.alignment import EOS_CLASS, ID_MASK, VocabAlignment
from .base import TokenMethod, whole_logits

SHOWN = 16  # how many entries a step's result lists, for traces


class EntryMethod(TokenMethod):
    """A method that scores a fixed list of entries, the same in every step, and takes the largest.

    Attributes
    ----------
    entry_ids : Tensor, int64 [E, M]
        Each member's id for every entry: its token of the same text, else the first sub-token; -1 if it has none.
    emits : Tensor, bool [E]
        Entries that the primary can emit.
    """

    def __init__(self, alignment: VocabAlignment, members: Sequence[BaseMember], options: StepOptions) -> None:
        super().__init__(alignment, members, options)
        self.weights = options.step_weights(alignment.num_members)
        self.entry_ids: Tensor
        self.emits: Tensor

    @abstractmethod
    def scores(self, probs: Sequence[Tensor], logits: Sequence[Tensor]) -> Tensor:
        """Compute the combined scores of all entries, float32 [B, E], not negative.

        Parameters
        ----------
        probs, logits : sequence of Tensor
            [B, V_m] float32 per member, up to its highest eligible id. The softmax is over its whole vocabulary.
        """

    def step(self, scores: Sequence[Scores], states: Sequence[object]) -> StepResult:
        """See `TokenMethod.step`. Of equal scores the earlier entry wins. The result lists the best `SHOWN` entries."""
        return self._decide(*self._scored(whole_logits(scores)))

    def likelihood(
        self, scores: Sequence[Scores], states: Sequence[object], targets: Tensor
    ) -> tuple[Tensor, StepResult]:
        """See `TokenMethod.likelihood`."""
        entries, probs, status = self._scored(whole_logits(scores))
        return entries.gather(1, self.entry_of(targets)[:, None])[:, 0], self._decide(entries, probs, status)

    @abstractmethod
    def entry_of(self, ids: Tensor) -> Tensor:
        """The entries of eligible ids of the primary, int64 of the same shape."""

    def _scored(self, logits: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], Tensor]:
        """The scores [B, E], -1 if the primary cannot emit the entry; every member's probabilities; the status [B]."""
        values: list[Tensor] = []
        probs: list[Tensor] = []
        status = torch.zeros(logits[0].shape[0], dtype=torch.int32, device=logits[0].device)
        for m in reversed(range(len(logits))):
            classes, size = self.alignment.classes[m], self.alignment.vocab_sizes[m]
            value = clean(logits[m][:, : len(classes)]).float()  # without the padding of the head
            eligible = classes[: value.shape[1]] >= 0
            failed = value.masked_fill(~eligible, -torch.inf).amax(dim=1) == -torch.inf
            status = status.masked_fill(failed, 1 + m)
            value = value.masked_fill(failed[:, None], 0.0)  # its softmax would be NaN; the row has failed anyway
            values.insert(0, value[:, :size])
            probs.insert(0, value.softmax(dim=1)[:, :size])
        return self.scores(probs, values).masked_fill(~self.emits, -1.0), probs, status

    def _decide(self, scores: Tensor, probs: Sequence[Tensor], status: Tensor) -> StepResult:
        best = scores.argmax(dim=1, keepdim=True)  # the first of equals
        shown = min(SHOWN, int(self.emits.sum()))
        others = scores.scatter(1, best, -1.0).topk(shown - 1, dim=1).indices
        entries = torch.cat([best, others], dim=1)
        ids = self.entry_ids[entries]
        member_probs = [p.gather(1, ids[:, :, m].clamp(min=0)) * (ids[:, :, m] >= 0) for m, p in enumerate(probs)]
        bad = status != 0
        size = torch.full_like(status, shown)
        return StepResult(
            next_ids=ids[:, 0].masked_fill(bad[:, None], -1),
            union_ids=ids.masked_fill(bad[:, None, None], -1),
            union_size=size.masked_fill(bad, 0),
            winner=torch.zeros_like(status).masked_fill(bad, -1),
            union_probs=scores.gather(1, entries).masked_fill(bad[:, None], 0.0),
            member_probs=torch.stack(member_probs, dim=2).masked_fill(bad[:, None, None], 0.0),
            status=status,
        )


class PrimaryEntryMethod(EntryMethod):
    """A method whose entries are the primary's ids. All its EOS ids count as the one that represents EOS."""

    @classmethod
    def check(cls, alignment: VocabAlignment, options: StepOptions, own: Mapping[str, object]) -> None:
        """Check that the primary has an EOS id, without which no text would end."""
        if alignment.eos_ids[options.primary] < 0:
            raise ValueError(
                f"primary must be a member with an EOS id for method {cls.name!r}, got member {options.primary}, "
                "which has none"
            )

    def __init__(self, alignment: VocabAlignment, members: Sequence[BaseMember], options: StepOptions) -> None:
        super().__init__(alignment, members, options)
        classes = alignment.classes[self.primary][: alignment.vocab_sizes[self.primary]].long()
        tagged = alignment.class_ids[classes.clamp(min=0)].long()
        ids = torch.where((tagged >= 0) & (classes >= 0)[:, None], tagged & ID_MASK, -1)
        own = torch.arange(len(classes), device=alignment.device)
        is_eos = classes == EOS_CLASS
        eos = alignment.eos_ids[self.primary]
        ids[:, self.primary] = torch.where(is_eos, eos, own)
        self.entry_ids = ids
        self.emits = (classes >= 0) & (~is_eos | (own == eos))
        self._eos_ids = own[is_eos]
        self._entry = torch.where(is_eos, eos, own)

    def entry_of(self, ids: Tensor) -> Tensor:
        """See `EntryMethod.entry_of`."""
        return self._entry[ids]

    def gather_eos(self, probs: Tensor) -> Tensor:
        """Add up the probabilities [B, V_p] of all EOS ids at the one that represents EOS."""
        total = probs[:, self._eos_ids].sum(dim=1)
        probs = probs.clone()
        probs[:, self._eos_ids] = 0.0
        probs[:, self.alignment.eos_ids[self.primary]] = total
        return probs
