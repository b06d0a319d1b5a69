"""MinED: map every token to the primary's nearest token by edit distance (Wan et al. 2024, arXiv 2401.10491)."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ..members.base import BaseMember
from .edit_distance import nearest_texts
from .mapped import MappedMethod


class MinED(MappedMethod):
    """Minimum edit distance alignment (FuseLLM, arXiv 2401.10491; Fu et al. 2023, arXiv 2301.12726).

    f_m(t) = argmin_v lev(t, v) over the primary's tokens v, with the Levenshtein distance in characters. Of equally
    near tokens the lower id is taken. The mapped probabilities are averaged. The original compares surface strings,
    after replacing their prefix for a space; texts do not need that. A byte outside a whole character counts as one
    character.
    """

    name: ClassVar[str] = "mined"

    @classmethod
    def check_options(cls, own: Mapping[str, object]) -> None:
        """See `Method.check_options`."""
        super().check_options(own)
        if importlib.util.find_spec("rapidfuzz") is None:
            raise ValueError("method 'mined' needs rapidfuzz: pip install 'unite_ext[eval]'")

    def nearest(self, members: Sequence[BaseMember], m: int, ids: Tensor) -> Tensor:
        """See `MappedMethod.nearest`."""
        own, primary = self.alignment.vocabularies[m].token_bytes, self.alignment.vocabularies[self.primary].token_bytes
        targets = self.target_ids()
        texts = [_characters(primary[i]) for i in targets]
        found = nearest_texts([_characters(own[i]) for i in ids.tolist()], texts)
        return torch.tensor(targets, device="cpu")[torch.from_numpy(found)]


def _characters(data: bytes) -> str:
    return data.decode("utf-8", errors="surrogateescape")
