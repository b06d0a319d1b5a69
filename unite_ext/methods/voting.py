"""Voting: choose the answer that most members give."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

from ..members.base import Prompt
from .base import AnswerMethod

NUMBER = r"(?:[Aa]nswer is|boxed)\D*?(-?\d[\d,]*(?:\.\d+)?)"
"""Pattern of a final number after "the answer is" or "boxed", as in GSM8K."""


class Voting(AnswerMethod):
    """Majority vote over final answers (the "Voting" of arXiv 2410.03777, Table 3; as self-consistency, 2203.11171).

    a_m is the final answer in member m's text. The winner is argmax_a sum_m alpha_m [a_m = a], and the text that of the
    first member that gives it, the primary before the others. If all answers differ that is the primary's text.

    Parameters
    ----------
    pattern : str, optional
        A regular expression whose last match is the final answer (its first group if it has one). A text without a
        match, and every text if there is no pattern, is compared as a whole. Case, thousands separators and the number
        of blanks do not matter.
    """

    name: ClassVar[str] = "voting"

    def __init__(self, weights: Sequence[float], *, pattern: str | None = None) -> None:
        super().__init__(weights)
        self._pattern = None if pattern is None else re.compile(pattern)

    @classmethod
    def check_options(cls, own: Mapping[str, object]) -> None:
        """See `Method.check_options`."""
        super().check_options(own)
        pattern = own.get("pattern")
        if pattern is not None:
            if not isinstance(pattern, str):
                raise TypeError(f"pattern must be a string, got {type(pattern).__name__}")
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"pattern must be a regular expression, got {pattern!r}: {error}") from error

    def choose(self, prompt: Prompt, answers: Sequence[str]) -> int:
        """See `AnswerMethod.choose`."""
        finals = [self.final(answer) for answer in answers]
        votes: dict[str, float] = {}
        for final, weight in zip(finals, self.weights):
            votes[final] = votes.get(final, 0.0) + weight
        most = max(votes.values())
        return next(i for i, final in enumerate(finals) if votes[final] > most - 1e-9)

    def final(self, answer: str) -> str:
        """The part of an answer that is compared."""
        if self._pattern is not None:
            for match in self._pattern.finditer(answer):
                answer = match.group(1 if self._pattern.groups else 0) or ""
        answer = re.sub(r"(?<=\d),(?=\d)", "", answer)
        return " ".join(answer.casefold().split()).rstrip(".")
