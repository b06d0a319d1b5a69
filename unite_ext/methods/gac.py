"""GaC: every step is a classification over the union of all vocabularies (Yu et al. 2024, arXiv 2406.12585)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ..members.base import BaseMember
from ..options import StepOptions
from ..vocab.alignment import EOS_CLASS, ID_MASK, VocabAlignment
from ..vocab.tokenizer_kinds import surface_tokens
from .entries import EntryMethod


class GaC(EntryMethod):
    """The average of probabilities over the union vocabulary (arXiv 2406.12585).

    V^U is the union of the members' vocabularies and M_i in {0, 1}^{|V_i| x |V^U|} maps member i's tokens into it. A
    step computes q = sum_i alpha_i p_i M_i, with p_i member i's softmax over its whole vocabulary, and takes the token
    with the largest q.

    Two things differ from the authors' scripts. Tokens are the same if their bytes are, not their surface strings, and
    all EOS tokens are one entry. A winner for which the primary has no token is emitted as its first sub-token, as in
    UNITE, because the text is made of the primary's ids; later steps decide the rest.

    Special tokens other than EOS keep the probability that a member gives them, but cannot win.
    """

    name: ClassVar[str] = "gac"
    keeps_structure: ClassVar[bool] = True

    def __init__(self, alignment: VocabAlignment, members: Sequence[BaseMember], options: StepOptions) -> None:
        super().__init__(alignment, members, options)
        tagged = alignment.class_ids.long()
        self.entry_ids = torch.where(tagged >= 0, tagged & ID_MASK, -1)
        self.emits = self.entry_ids[:, self.primary] >= 0
        self.emits[EOS_CLASS] = True  # EOS ends the text even if the primary has no id for it
        self._tokens_per_step = union_size(alignment)
        # Ineligible ids have no column: as entries of their own they could not win.
        self._columns = []
        for m in range(alignment.num_members):
            classes = alignment.classes[m][: alignment.vocab_sizes[m]].long()
            eligible = torch.nonzero(classes >= 0).squeeze(1)
            self._columns.append((eligible, classes[eligible]))

    @property
    def tokens_per_step(self) -> float:
        """The size of the union vocabulary, special tokens included."""
        return float(self._tokens_per_step)

    def entry_of(self, ids: Tensor) -> Tensor:
        """See `EntryMethod.entry_of`."""
        return self.alignment.classes[self.primary][ids].long()

    def scores(self, probs: Sequence[Tensor], logits: Sequence[Tensor]) -> Tensor:
        """Average the members' probabilities over the classes: [B, C]."""
        total = probs[0].new_zeros(len(probs[0]), self.alignment.num_classes)
        for weight, prob, (ids, classes) in zip(self.weights, probs, self._columns):
            # index_add_ takes 20 times as long for a single row on the CPU
            total.scatter_add_(1, classes.expand(len(prob), -1), weight * prob[:, ids])
        return total


def union_size(alignment: VocabAlignment) -> int:
    """Count the distinct tokens of all vocabularies: texts by their bytes, special tokens by their names."""
    special: set[str] = set()
    for vocabulary in alignment.vocabularies:
        if vocabulary.parts is None:
            raise ValueError("alignment must be made with its tokenizers, got one loaded without them")
        surfaces = surface_tokens(vocabulary.parts)
        special.update(s for s, data in zip(surfaces, vocabulary.token_bytes) if s is not None and not data)
    return alignment.num_classes - 1 + len(special)  # class 0 is EOS, whose tokens are special
