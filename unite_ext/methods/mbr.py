"""MBR: choose the answer that is most similar to the others."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import ClassVar

from ..members.base import Prompt
from .base import AnswerMethod


class MBR(AnswerMethod):
    """Minimum Bayes risk decoding with chrF (Freitag et al. 2023, arXiv 2305.09860; chrF: Popovic 2015, W15-3049).

    The members' answers are both candidates and pseudo-references: argmax_i sum_{j != i} alpha_j chrF(y_i, y_j), with
    sacrebleu's sentence chrF (character 6-grams, beta 2). With two members only the two directions of one pair are
    compared.
    """

    name: ClassVar[str] = "mbr"

    def __init__(self, weights: Sequence[float]) -> None:
        super().__init__(weights)
        from sacrebleu.metrics.chrf import CHRF

        self._chrf = CHRF()

    @classmethod
    def check_options(cls, own: Mapping[str, object]) -> None:
        """See `Method.check_options`."""
        super().check_options(own)
        if importlib.util.find_spec("sacrebleu") is None:
            raise ValueError("method 'mbr' needs sacrebleu: pip install 'unite_ext[eval]'")

    def choose(self, prompt: Prompt, answers: Sequence[str]) -> int:
        """See `AnswerMethod.choose`."""
        gains = [
            sum(
                weight * self._chrf.sentence_score(answer, [other]).score
                for j, (other, weight) in enumerate(zip(answers, self.weights))
                if j != i
            )
            for i, answer in enumerate(answers)
        ]
        return next(i for i, gain in enumerate(gains) if gain > max(gains) - 1e-9)
