"""Measure every method on the demo's models and problems, for `unite eval --demo`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypedDict

import torch

from ..decoding.ensemble import UniteEnsemble
from ..members.transformers import Member
from ..methods.base import AnswerMethod, TokenMethod
from ..methods.registry import METHODS, UNITE
from ..selection.rule import ModelScore, adaptive_weights
from . import COMPARABLE, WEAK
from .problems import Problem, read_answer
from .run import BATCH, DEV_SEED, DEV_SIZE, MAX_NEW_TOKENS, TEST_SEED, TEST_SIZE, TEST_SPLIT, wilson

ANSWER = r"The answer is (-?\d+)"
TASK = "demo"
# The best on development problems of the rates that DeePEn's paper tries, see docs/methods.md.
ETA = 0.30
NEEDS_MORE = ("pair-ranker",)
"""Methods that need a model which does not ship with the package."""


@dataclass(frozen=True)
class Measured:
    """The results of one model, or of members with a method, on a set of problems."""

    name: str
    members: tuple[str, ...]
    problems: int
    right: int
    mean_length: float
    """Mean number of characters of a text."""
    tokens_per_step: float | None
    """None if no step combines members."""
    ms_per_token: float
    extra_bytes: int
    """Memory beside the models: the tensors of the alignment and of the method."""

    @property
    def accuracy(self) -> float:
        """Share of right answers, 0 to 1."""
        return self.right / self.problems

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the accuracy."""
        return wilson(self.right, self.problems)

    def to_dict(self) -> dict[str, str | float]:
        """The row of a CSV file."""
        low, high = self.interval
        return {
            "name": self.name,
            "members": " + ".join(self.members),
            "problems": self.problems,
            "right": self.right,
            "accuracy": round(100 * self.accuracy, 4),
            "low": round(100 * low, 4),
            "high": round(100 * high, 4),
            "mean_length": round(self.mean_length, 1),
            "tokens_per_step": "" if self.tokens_per_step is None else round(self.tokens_per_step, 2),
            "ms_per_token": round(self.ms_per_token, 3),
            "extra_kb": round(self.extra_bytes / 1000, 1),
        }


def lineup() -> list[tuple[str, tuple[str, ...], str]]:
    """All runs as (name, members, method): each model alone, then the comparable ones with every method."""
    alone = [(name, (name,), UNITE) for name in (*COMPARABLE, WEAK)]
    return [*alone, *((method, COMPARABLE, method) for method in METHODS if method not in NEEDS_MORE)]


def measure(
    name: str,
    members: Sequence[Member],
    method: str,
    problems: Sequence[Problem],
    *,
    weights: Sequence[float] | None = None,
    options: Mapping[str, object] | None = None,
) -> tuple[Measured, list[str]]:
    """Let members solve the problems with a method. Returns the measurements and the texts."""
    ensemble = UniteEnsemble(members, method=method, weights=weights, method_options=options)
    made = ensemble.plan({}).method
    # If a method's number of tokens differs from step to step, the records are counted.
    counts = len(members) > 1 and isinstance(made, TokenMethod) and made.tokens_per_step is None
    texts = [""] * len(problems)
    steps = slots = 0
    started = time.perf_counter()
    prompts = [p.prompt for p in problems]
    for request in ensemble.generate_each(prompts, batch_size=BATCH, trace=counts, max_new_tokens=MAX_NEW_TOKENS):
        texts[request.index] = request.decoded()
        steps += request.num_steps
        slots += sum(len(record.union_probs) for record in request.records)
    seconds = time.perf_counter() - started
    right = sum(read_answer(text) == problem.answer for text, problem in zip(texts, problems))
    tokens = slots / steps if counts else made.tokens_per_step if isinstance(made, TokenMethod) else None
    measured = Measured(
        name,
        tuple(member.name for member in members),
        len(problems),
        right,
        sum(map(len, texts)) / len(texts),
        tokens,
        1000 * seconds / steps,
        0 if len(members) == 1 or isinstance(made, AnswerMethod) else extra_bytes(ensemble),
    )
    return measured, texts


class Settings(TypedDict, total=False):
    """What `measure` needs to know of a method."""

    weights: Sequence[float]
    options: Mapping[str, object]


def method_settings(method: str, scores: Sequence[ModelScore]) -> Settings:
    """The weights and options of a method in the demo; `scores` are the members' on development problems."""
    settings: Settings = {}
    if method.startswith("deepen"):
        settings["options"] = {"eta": ETA}
    if method == "deepen-adapt":
        settings["weights"] = adaptive_weights(scores)
    if method == "voting":
        settings["options"] = {"pattern": ANSWER}
    return settings


def extra_bytes(ensemble: UniteEnsemble) -> int:
    """The bytes of all tensors of an ensemble's method and alignment."""
    alignment = ensemble.alignment
    tensors = [alignment.table, alignment.class_ids, alignment.eligible]
    tensors += [t for value in vars(ensemble.plan({}).method).values() for t in _tensors(value)]
    return sum(t.numel() * t.element_size() for t in tensors)


def _tensors(value: object) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)


def write_results(folder: Path, measured: Measured, texts: Sequence[str], problems: Sequence[Problem]) -> None:
    """Write a run's results and samples in the form of lm_eval, which `unite select` reads."""
    target = folder / _folder_name(measured.name)
    target.mkdir(parents=True, exist_ok=True)
    date = f"n{len(problems)}"
    with (target / f"samples_{TASK}_{date}.jsonl").open("w", encoding="utf-8") as file:
        for i, (text, problem) in enumerate(zip(texts, problems)):
            right = float(read_answer(text) == problem.answer)
            sample = {
                "doc_id": i, "doc": {"question": problem.question, "kind": problem.kind}, "target": str(problem.answer),
                "resps": [[text]], "filter": "none", "exact_match": right,
            }  # fmt: skip
            file.write(json.dumps(sample, ensure_ascii=False) + "\n")
    results = {
        "results": {TASK: {"alias": TASK, "exact_match,none": measured.accuracy}},
        "group_subtasks": {TASK: []},
        "config": {"model": "unite", "model_args": {"pretrained": measured.name}},
        "model_name": measured.name,
        "measured": asdict(measured),
    }
    # Written last, so that a folder with results is complete and a run that was stopped continues after it.
    (target / f"results_{date}.json").write_text(json.dumps(results, indent=1), encoding="utf-8")


def read_results(folder: Path, name: str, problems: int) -> Measured | None:
    """Read what `write_results` wrote of a run on so many problems; None if there is nothing."""
    path = folder / _folder_name(name) / f"results_n{problems}.json"
    if not path.exists():
        return None
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))["measured"]
        return Measured(**{**kept, "members": tuple(kept["members"])})
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} must be a file that unite eval --demo wrote, got {type(error).__name__}: {error}"
        ) from error


def run(
    members: Mapping[str, Member],
    *,
    limit: int | None = None,
    folder: Path | None = None,
    wanted: Sequence[str] | None = None,
    on_start: Callable[[str], object] | None = None,
) -> list[Measured]:
    """Do all runs of `lineup` on the test problems, or on the first `limit` of them.

    Parameters
    ----------
    members : mapping
        The demo's members by name.
    limit : int, optional
    folder : Path, optional
        Where results are written. A result that is there already is not computed again.
    wanted : sequence of str, optional
        Only these models and methods.
    on_start : callable, optional
        Called with the name of each run before it starts.
    """
    from .problems import problem_set

    problems = problem_set(TEST_SPLIT, TEST_SEED, TEST_SIZE)[:limit]
    names = [name for name, *_ in lineup()]
    unknown = set(wanted or ()) - set(names)
    if unknown:
        raise ValueError(f"method must be one of {', '.join(names)}, got {sorted(unknown)[0]!r}")
    found: list[Measured] = []
    scores: list[ModelScore] = []
    for name, own, method in lineup():
        if wanted and name not in wanted:
            continue
        kept = read_results(folder, name, len(problems)) if folder else None
        if kept is None:
            if on_start:
                on_start(name)
            if method == "deepen-adapt" and not scores:
                scores = development_scores([members[n] for n in COMPARABLE])
            line = [members[n] for n in own]
            kept, texts = measure(name, line, method, problems, **method_settings(method, scores))
            if folder:
                write_results(folder, kept, texts, problems)
        found.append(kept)
    return found


def development_scores(members: Sequence[Member], size: int = DEV_SIZE) -> list[ModelScore]:
    """Score every member alone on development problems."""
    from .problems import problem_set

    problems = problem_set("dev", DEV_SEED, size)
    measured = [measure(member.name, [member], UNITE, problems)[0] for member in members]
    return [ModelScore(100 * m.accuracy, m.mean_length, TASK) for m in measured]


def _folder_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)


def measure_rates(members: Mapping[str, Member]) -> list[dict[str, str | float]]:
    """Measure DeePEn on development problems at the rates that its paper tries."""
    from .problems import problem_set

    problems = problem_set("dev", DEV_SEED, DEV_SIZE)
    line = [members[name] for name in COMPARABLE]
    rows: list[dict[str, str | float]] = []
    for eta in (0.05, 0.10, 0.15, 0.20, 0.25, 0.30):
        measured, _ = measure("deepen-avg", line, "deepen-avg", problems, options={"eta": eta})
        rows.append({"split": "dev", "eta": eta, **measured.to_dict()})
    return rows
