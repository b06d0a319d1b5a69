"""How often drafted tokens are taken, by how sure their drafter was of them."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

EDGES = (0.55, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
"""Of the classes of certainty: the probability of a drafter's best token among its best two."""
_PRIOR = 4  # tokens that what was believed before counts as
_WEIGHT = 0.02  # of one token, once there are many


class Certainty:
    """The share of a drafter's tokens that are taken, measured for each class of certainty.

    Before anything is known of a class, a drafter is taken at its word.
    """

    def __init__(self) -> None:
        bounds = (0.5, *EDGES, 1.0)
        self._taken = [((low + high) / 2, 0) for low, high in pairwise(bounds)]

    def chance(self, sure: Sequence[float]) -> float:
        """The chance that all these tokens are taken, each by how sure the drafter was of it."""
        return math.prod(self._taken[bisect_right(EDGES, one)][0] for one in sure)

    def learn(self, guesses: Sequence[tuple[int, float]], taken: Sequence[int]) -> None:
        """Compare what a drafter would have taken, ids and how sure it was, with the ids that the text took.

        What follows a wrong id says nothing.
        """
        for (guess, sure), token_id in zip(guesses, taken):
            n = bisect_right(EDGES, sure)
            value, count = self._taken[n]
            self._taken[n] = value + ((guess == token_id) - value) * max(_WEIGHT, 1 / (count + _PRIOR)), count + 1
            if guess != token_id:
                return
