"""EVA: a map between vocabularies learned from the tokens they share (Xu et al., NAACL 2024, arXiv 2404.09492)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ..members.base import BaseMember
from ..options import StepOptions
from ..vocab.alignment import EOS_CLASS, FIRST_SUB_TOKEN, ID_MASK, VocabAlignment
from .cosine import nearest_vectors
from .map_files import digest_of
from .mapped import MappedMethod

_PART = 16384  # vectors rotated at a time; all at once would need as much memory again


class EVA(MappedMethod):
    """EVA-style mapping (after arXiv 2404.09492): every member's embeddings are rotated onto the primary's.

    X and Y are the input embeddings of the tokens that member m shares with the primary, in the two models, centred and
    scaled to length 1. W_m = argmin |X W - Y| over (semi-)orthogonal W, which is U V^T of the singular value
    decomposition X^T Y = U S V^T. Any other token t is mapped to argmax_v cos(x_t W_m, y_v). The mapped probabilities
    are averaged.

    It differs from EVA: every token has one target instead of a filtered similarity matrix, there is no top-320 cut, no
    member is dropped, and plain Procrustes replaces VecMap's re-weighting.
    """

    name: ClassVar[str] = "eva"

    @classmethod
    def check(cls, alignment: VocabAlignment, options: StepOptions, own: Mapping[str, object]) -> None:
        """Check that every member shares tokens with the primary."""
        super().check(alignment, options, own)
        primary = options.primary
        for m in range(alignment.num_members):
            if len(shared_ids(alignment, m, primary)) == 0:
                raise ValueError(f"method 'eva' needs tokens that member {m} shares with the primary, got none")

    def nearest(self, members: Sequence[BaseMember], m: int, ids: Tensor) -> Tensor:
        """See `MappedMethod.nearest`."""
        device = self.alignment.device
        own, primary = (weight.to(device) for weight in self._embeddings(members, m))
        shared = shared_ids(self.alignment, m, self.primary)
        targets = torch.tensor(self.target_ids(), device=device)
        common = own[shared[:, 0]].float(), primary[shared[:, 1]].float()
        centres = common[0].mean(dim=0), common[1].mean(dim=0)
        rotation = procrustes(_unit(common[0] - centres[0]), _unit(common[1] - centres[1]))
        rotated = [_unit((own[part].float() - centres[0]) @ rotation) for part in ids.split(_PART)]
        return targets[nearest_vectors(torch.cat(rotated), _unit(primary[targets].float() - centres[1]))]

    def source(self, members: Sequence[BaseMember], m: int) -> str:
        """See `MappedMethod.source`: a digest of both embeddings."""
        return digest_of(*self._embeddings(members, m))

    def _embeddings(self, members: Sequence[BaseMember], m: int) -> list[Tensor]:
        """The input embeddings of member m and of the primary."""
        return [members[i].input_embeddings() for i in (m, self.primary)]


def shared_ids(alignment: VocabAlignment, m: int, primary: int) -> Tensor:
    """The ids of the texts that member m and the primary both have as one token, EOS aside: int64 [N, 2]."""
    tagged = alignment.class_ids[EOS_CLASS + 1 :, [m, primary]]
    whole = ((tagged >= 0) & (tagged & FIRST_SUB_TOKEN == 0)).all(dim=1)
    return (tagged[whole] & ID_MASK).long()


def procrustes(source: Tensor, target: Tensor) -> Tensor:
    """The (semi-)orthogonal W [D, E] that maps source [N, D] closest to target [N, E] (Schoenemann 1966)."""
    u, _, v = torch.linalg.svd(source.T @ target, full_matrices=False)
    return u @ v


def _unit(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors, dim=1)
