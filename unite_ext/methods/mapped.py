"""Methods that map every token of a member to one token of the primary."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ..members.base import BaseMember
from ..options import StepOptions
from ..vocab.alignment import EOS_CLASS, ID_MASK, VocabAlignment
from .entries import PrimaryEntryMethod
from .map_files import keep_map


class MappedMethod(PrimaryEntryMethod):
    """A method that averages in the primary's vocabulary: q(v) = sum_m alpha_m sum_{t: f_m(t) = v} p_m(t).

    EOS and tokens that the primary has too are mapped to themselves, the others by `nearest`.
    """

    def __init__(self, alignment: VocabAlignment, members: Sequence[BaseMember], options: StepOptions) -> None:
        super().__init__(alignment, members, options)
        self._maps = []
        for m in range(alignment.num_members):
            classes = alignment.classes[m][: alignment.vocab_sizes[m]].long()
            ids = torch.nonzero(classes >= 0).squeeze(1)
            if m == self.primary:
                targets = torch.where(classes[ids] == EOS_CLASS, alignment.eos_ids[self.primary], ids)
            else:
                tagged = alignment.class_ids[classes[ids], self.primary].long()
                whole = (tagged >= 0) & (tagged <= ID_MASK)
                targets = torch.where(whole, tagged, -1)
                foreign = ids[~whole]
                if len(foreign):
                    found = keep_map(
                        partial(self.nearest, members, m, foreign),
                        self.name,
                        alignment,
                        m,
                        self.primary,
                        foreign,
                        self.source(members, m),
                    )
                    targets[~whole] = found.to(targets)
            self._maps.append((ids, targets))

    @abstractmethod
    def nearest(self, members: Sequence[BaseMember], m: int, ids: Tensor) -> Tensor:
        """Map ids of member m for whose texts the primary has no token to ids of the primary, int64 [N]."""

    def source(self, members: Sequence[BaseMember], m: int) -> str:
        """What `nearest` depends on beside the vocabularies, as part of the key in the cache; by default nothing."""
        return ""

    @property
    def tokens_per_step(self) -> float:
        """The number of the primary's tokens; every step gives each a probability."""
        return float(int(self.emits.sum()))

    def scores(self, probs: Sequence[Tensor], logits: Sequence[Tensor]) -> Tensor:
        """Average the mapped probabilities: [B, V_p]."""
        total = torch.zeros_like(probs[self.primary])
        for weight, prob, (ids, targets) in zip(self.weights, probs, self._maps):
            total.scatter_add_(1, targets.expand(len(prob), -1), weight * prob[:, ids])  # faster than index_add_
        return total

    def target_ids(self) -> list[int]:
        """The primary's ids that may be mapped to: its representative of every class."""
        tagged = self.alignment.class_ids[EOS_CLASS + 1 :, self.primary].long()
        return tagged[(tagged >= 0) & (tagged <= ID_MASK)].sort().values.tolist()
