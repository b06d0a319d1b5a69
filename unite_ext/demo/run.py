"""Let the demo's models solve problems alone and together, and count the right answers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

from ..decoding.ensemble import UniteEnsemble
from ..members.transformers import Member
from ..trace import Trace
from . import COMPARABLE, WEAK
from .problems import Problem, prompt_of, read_answer

TEST_SPLIT, TEST_SEED, TEST_SIZE = "test-1", 2410, 360
"""The test split in use. Every split is run once; docs/demo.md lists all runs."""
DEV_SEED, DEV_SIZE = 3777, 360
TOP_K = 10
MAX_NEW_TOKENS = 90
BATCH = 90


@dataclass(frozen=True)
class Result:
    """The results of one model or ensemble on a set of problems."""

    members: tuple[str, ...]
    """The primary first."""
    right: tuple[bool, ...]
    texts: tuple[str, ...]
    tokens: int
    """All generated tokens, the EOS of every text included."""
    union_sizes: int
    """The number of slots in all steps together."""
    seconds: float

    @property
    def name(self) -> str:
        """The members in one line."""
        return " + ".join(self.members)

    @property
    def accuracy(self) -> float:
        """Share of right answers, 0 to 1."""
        return sum(self.right) / len(self.right)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the accuracy."""
        return wilson(sum(self.right), len(self.right))

    @property
    def union_size(self) -> float:
        """Mean number of slots of a step."""
        return self.union_sizes / max(1, self.tokens)

    @property
    def ms_per_token(self) -> float:
        """Time per generated token, with many problems side by side."""
        return 1000 * self.seconds / max(1, self.tokens)

    @property
    def mean_length(self) -> float:
        """Mean number of characters of a text, a unit that does not depend on the tokenizer."""
        return sum(map(len, self.texts)) / len(self.texts)

    def to_dict(self) -> dict[str, str | float]:
        """The numbers, for JSON and CSV."""
        low, high = self.interval
        return {
            "members": self.name,
            "problems": len(self.right),
            "right": sum(self.right),
            "accuracy": round(100 * self.accuracy, 4),
            "low": round(100 * low, 4),
            "high": round(100 * high, 4),
            "mean_length": round(self.mean_length, 1),
            "tokens_per_step": round(self.union_size, 2),
            "ms_per_token": round(self.ms_per_token, 3),
        }


def wilson(right: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, estimated by `right` of `total`."""
    if total <= 0 or not 0 <= right <= total:
        raise ValueError(f"right must be from 0 to total and total positive, got {right} of {total}")
    z = 1.959964
    share, spread = right / total, z * z / total
    centre = share + spread / 2
    half = z * math.sqrt(share * (1 - share) / total + spread / total / 4)
    return max(0.0, (centre - half) / (1 + spread)), min(1.0, (centre + half) / (1 + spread))


def lineups() -> list[tuple[str, ...]]:
    """The ensembles in the demo's table: each model alone, the pairs, the three, and two with the weak one."""
    names = (*COMPARABLE, WEAK)
    pairs = list(combinations(COMPARABLE, 2))
    return [*((name,) for name in names), *pairs, COMPARABLE, (COMPARABLE[0], WEAK), names]


def work(
    members: Sequence[Member],
    problems: Sequence[Problem],
    *,
    k: int = TOP_K,
    on_solved: Callable[[], object] | None = None,
) -> Result:
    """Let these members, the primary first, solve the problems together; `on_solved` is called after each."""
    ensemble = UniteEnsemble(members, k=k)
    texts = [""] * len(problems)
    tokens = slots = 0
    started = time.perf_counter()
    prompts = [p.prompt for p in problems]
    for request in ensemble.generate_each(prompts, batch_size=BATCH, trace=True, max_new_tokens=MAX_NEW_TOKENS):
        texts[request.index] = request.decoded()
        tokens += request.num_steps
        slots += sum(len(record.union_probs) for record in request.records)
        if on_solved:
            on_solved()
    seconds = time.perf_counter() - started
    right = tuple(read_answer(text) == problem.answer for text, problem in zip(texts, problems))
    return Result(tuple(m.name for m in members), right, tuple(texts), tokens, slots, seconds)


def work_one(members: Sequence[Member], question: str, *, k: int = TOP_K) -> Trace:
    """Answer one question, with a trace."""
    return UniteEnsemble(members, k=k).trace(prompt_of(question), max_new_tokens=MAX_NEW_TOKENS)
