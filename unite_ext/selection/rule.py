"""The paper's rule "determine" for choosing the models of an ensemble (arXiv 2410.03777, section 4.1).

The paper finds that an ensemble gains from models of similar accuracy and style, and loses from others. Its rule: start
with the best model. Then add the next best whose accuracy is within 10 points of the best, and whose responses are less
than twice and more than half as long, until there are enough or no model is left.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .._checks import check_integer

# A difference of exactly 10 points must not be refused because of the rounding of floats.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class ModelScore:
    """One model's scores on the task of the ensemble."""

    accuracy: float | None
    """In points, 0 to 100."""
    mean_length: float | None
    """Mean length of its responses, in the same unit for all models; in characters where files are read."""
    task: str | None = None
    """The task, or the tasks joined by "+". Models scored on different tasks are not compared."""
    chance: float = 0.0
    """The accuracy of guessing, in points: 25 with four choices."""
    problems: int | None = None
    """Number of problems on which it was scored."""


@dataclass(frozen=True)
class Selection:
    """The chosen models, and why the others were refused."""

    chosen: list[str]
    """Names, the primary first, then in order of accuracy."""
    refused: dict[str, str]
    """Name to reason, one line each, in order of accuracy."""
    scores: dict[str, ModelScore]
    """All candidates' scores, in order of accuracy."""

    def adaptive_weights(self) -> list[float]:
        """The weights of the chosen models, see :func:`adaptive_weights`."""
        return adaptive_weights([self.scores[name] for name in self.chosen])


def select_models(
    candidates: Mapping[str, ModelScore],
    *,
    max_models: int | None = None,
    max_gap: float = 10.0,
    max_length_ratio: float = 2.0,
) -> Selection:
    """Choose the models of an ensemble (arXiv 2410.03777, section 4.1).

    Parameters
    ----------
    candidates : mapping of str to ModelScore
        At least two models, scored on the same task. Of equal accuracies the earlier one counts as better.
    max_models : int, optional
        How many to choose at most; no limit by default.
    max_gap : float
        By how many points a model's accuracy may lie below the best, inclusive.
    max_length_ratio : float
        By what factor a model's mean response may be longer or shorter than the best model's, inclusive.

    Returns
    -------
    Selection

    Raises
    ------
    TypeError, ValueError
        Fewer than two candidates, a missing or impossible score or length, or different tasks.

    Examples
    --------
    >>> chosen = select_models({"a": ModelScore(73.5, 120.0), "b": ModelScore(71.0, 300.0), "c": ModelScore(70.0, 99)})
    >>> chosen.chosen, chosen.refused
    (['a', 'c'], {'b': '2.50 times as long (limit 2)'})
    """
    if max_models is not None:
        check_integer("max_models", max_models, 1, 2**31)
    _number("max_gap", max_gap, low=0.0)
    _number("max_length_ratio", max_length_ratio, low=1.0)
    _check_candidates(candidates)

    # The sort is stable: equal accuracies keep the given order.
    ranked = sorted(candidates, key=lambda name: -figures(name, candidates[name])[0])
    best, chosen = ranked[0], [ranked[0]]
    refused: dict[str, str] = {}
    for name in ranked[1:]:
        reasons = _reasons(name, best, candidates, max_gap, max_length_ratio)
        if not reasons and max_models is not None and len(chosen) >= max_models:
            reasons = [f"the maximum is reached ({max_models})"]
        if reasons:
            refused[name] = "; ".join(reasons)
        else:
            chosen.append(name)
    return Selection(chosen, refused, {name: candidates[name] for name in ranked})


def adaptive_weights(scores: Sequence[ModelScore]) -> list[float]:
    """Compute DeePEn-Adapt's weights: alpha_i = s_i / sum_j s_j, s_i = accuracy - chance (arXiv 2404.12715).

    A model that is not better than guessing gets weight 0.

    Raises
    ------
    ValueError
        There is no score, or no model is better than guessing.
    """
    if not scores:
        raise ValueError("scores must hold at least one model, got none")
    above = []
    for i, score in enumerate(scores):
        accuracy = _points(f"scores[{i}].accuracy", score.accuracy)
        above.append(max(0.0, accuracy - _points(f"scores[{i}].chance", score.chance)))
    if sum(above) == 0:
        raise ValueError(
            f"scores must hold a model above chance, got accuracies {[s.accuracy for s in scores]} with chance "
            f"{[s.chance for s in scores]}"
        )
    return [value / sum(above) for value in above]


def figures(name: str, score: ModelScore) -> tuple[float, float]:
    """Return a model's accuracy and mean length; ValueError if one is missing or impossible."""
    accuracy = _points(f"accuracy of {name!r}", score.accuracy)
    if score.mean_length is None:
        raise ValueError(
            f"mean_length of {name!r} must be given, got none: evaluate with logged samples (lm_eval --log_samples) "
            "of a task that generates text"
        )
    length = _number(f"mean_length of {name!r}", score.mean_length, low=0.0)
    if length == 0:
        raise ValueError(f"mean_length of {name!r} must be above 0, got 0: all its responses are empty")
    return accuracy, length


def _reasons(
    name: str, best: str, scores: Mapping[str, ModelScore], max_gap: float, max_length_ratio: float
) -> list[str]:
    """Why a model must not be combined with the best one; empty if it may."""
    reasons = []
    accuracy, length = figures(name, scores[name])
    highest, first = figures(best, scores[best])
    gap = highest - accuracy
    if gap > max_gap + _ROUNDING:
        reasons.append(f"{gap:.2f} points behind (limit {max_gap:g})")
    ratio = length / first
    if ratio > max_length_ratio * (1 + _ROUNDING):
        reasons.append(f"{ratio:.2f} times as long (limit {max_length_ratio:g})")
    elif 1 / ratio > max_length_ratio * (1 + _ROUNDING):
        reasons.append(f"1/{1 / ratio:.2f} as long (limit 1/{max_length_ratio:g})")
    return reasons


def _check_candidates(candidates: object) -> None:
    if not isinstance(candidates, Mapping):
        raise TypeError(f"candidates must map names to ModelScore, got {type(candidates).__name__}")
    if len(candidates) < 2:
        raise ValueError(
            "candidates must hold at least two models to choose from, got "
            + (f"only {next(iter(candidates))!r}" if candidates else "none")
        )
    for name, score in candidates.items():
        if not isinstance(score, ModelScore):
            raise TypeError(f"candidates[{name!r}] must be a ModelScore, got {type(score).__name__}")
        figures(name, score)
        _points(f"chance of {name!r}", score.chance)
    tasks = {name: score.task for name, score in candidates.items()}
    if len(set(tasks.values())) > 1:
        listed = ", ".join(f"{name}: {task}" for name, task in tasks.items())
        raise ValueError(f"candidates must be scored on the same task, got {listed}")


def _points(name: str, value: object) -> float:
    if value is None:
        raise ValueError(f"{name} must be points from 0 to 100, got none")
    return _number(name, value, low=0.0, high=100.0)


def _number(name: str, value: object, *, low: float, high: float = math.inf) -> float:
    """Return the value if it is a number from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not (math.isfinite(value) and low <= value <= high):
        expected = f"from {low:g} to {high:g}" if math.isfinite(high) else f"at least {low:g}"
        raise ValueError(f"{name} must be {expected}, got {value}")
    return value
