"""How likely an ensemble finds a given text: the decode loop, made to say it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..methods.base import Method
from ..ops import unite_step
from ..reference import StepResult
from ..vocab.alignment import VocabAlignment
from .generation import Row

if TYPE_CHECKING:
    from .ensemble import UniteEnsemble


@dataclass(frozen=True)
class Likelihood:
    """What `score_continuations` says of one continuation."""

    index: int
    """Its position in the requests."""
    log_prob: float
    """Natural logarithm of the probability of all its tokens."""
    is_greedy: bool
    """Whether the ensemble would generate it."""


class Forced(Method):
    """Emits given ids of the primary whatever the members say, and notes how likely each was.

    A target is given to the step with `include`, so that it is a slot. Its probability is that of its text being
    emitted: the sum over the slots whose id in the primary has the target's text (a slot of a foreign text counts for
    its first sub-token, which is what it would emit).

    Parameters
    ----------
    alignment : VocabAlignment
    inner : Method, optional
        What decides a step; UNITE by default.
    unite_options : mapping
        Of `unite_step`, when there is no inner method.
    targets : mapping of int to sequence of int
        Per row index the primary's ids.
    """

    name: ClassVar[str] = "forced"

    def __init__(
        self,
        alignment: VocabAlignment,
        inner: Method | None,
        unite_options: Mapping[str, Any],
        targets: Mapping[int, Sequence[int]],
    ) -> None:
        self.alignment = alignment
        self.inner = inner
        self.unite_options = dict(unite_options)
        self.primary: int = self.unite_options["primary"]
        self.targets = targets
        self.found: dict[int, list[tuple[float, bool]]] = {index: [] for index in targets}

    @property
    def tokens_per_step(self) -> float:
        """As the inner method's."""
        return float("nan") if self.inner is None else self.inner.tokens_per_step

    def start(self, rows: Sequence[Row], prompts: Sequence[Sequence[Sequence[int]]]) -> None:
        """See `Method.start`."""
        if self.inner is not None:
            self.inner.start(rows, prompts)

    def step(self, logits: Sequence[Tensor], rows: Sequence[Row]) -> StepResult:
        """Take every row's next target; a row whose last one it is ends here, as if by EOS."""
        wanted = [self.targets[row.index][len(row.ids)] for row in rows]
        include = torch.tensor(wanted, device=self.alignment.device)
        if self.inner is None:
            step = unite_step(logits, self.alignment, include=include, **self.unite_options).check()
            probs = emission_probability(step, include, self.alignment, self.primary)
        else:
            probs, step = self.inner.likelihood(logits, rows, include)
            step.check()
        classes = self.alignment.classes[self.primary]
        chosen = step.next_ids[:, self.primary]
        same = (classes[chosen.clamp(min=0)] == classes[include]) & (chosen >= 0)
        for row, prob, greedy in zip(rows, probs.double().tolist(), same.tolist()):
            self.found[row.index].append((math.log(max(prob, torch.finfo(torch.float32).tiny)), greedy))
        ended = torch.tensor([len(row.ids) + 1 == len(self.targets[row.index]) for row in rows], device=include.device)
        next_ids = step.next_ids.clone()
        next_ids[:, self.primary] = torch.where(ended, -1, include)
        return step._replace(next_ids=next_ids)


def emission_probability(step: StepResult, targets: Tensor, alignment: VocabAlignment, primary: int) -> Tensor:
    """[B] float32: the probability that a step emits the text of the primary's ids `targets`, int64 [B]."""
    classes = alignment.classes[primary]
    ids = step.union_ids[:, :, primary]
    same = (ids >= 0) & (classes[ids.clamp(min=0)] == classes[targets][:, None])
    return (step.union_probs * same).sum(dim=1)


def score_continuations(
    ensemble: UniteEnsemble,
    requests: Sequence[tuple[Any, Sequence[int]]],
    *,
    batch_size: int | None = None,
    progress: bool = False,
    **options: Any,
) -> Iterator[Likelihood]:
    """The ensemble's likelihood of continuations, each as soon as it is known.

    Parameters
    ----------
    ensemble : UniteEnsemble
    requests : sequence of (prompt, ids)
        A prompt as in `UniteEnsemble.generate`, or a list with every member's own ids of it; and the primary's ids of
        the continuation, at least one, all eligible.
    batch_size : int, optional
        How many run side by side; all by default.
    progress : bool
        Show a progress bar.
    **options
        Step options (`k`, `primary`, `weights`, `method`, ...) for this call.

    Raises
    ------
    TypeError, ValueError
        An option, a prompt or an id is wrong, or the method gives no likelihoods; no model has run.
    """
    from .config import take_step_options
    from .decode_loop import DecodeLoop

    step = take_step_options(options, ensemble.step_options, len(ensemble.members))
    if options:
        raise TypeError(f"unknown option {sorted(options)[0]!r}")
    alignment = ensemble.alignment.to(ensemble.members[step["primary"]].device)
    for i, (_, ids) in enumerate(requests):
        if not ids:
            raise ValueError(f"requests[{i}]: the continuation must have at least one token, got none")
        bad = [t for t in ids if alignment.class_of(step["primary"], t) < 0]
        if bad:
            raise ValueError(f"requests[{i}]: id {bad[0]} is not an eligible id of the primary")
    inner = ensemble.method_for(step)
    if inner is None and step["method"] != "unite":
        raise ValueError(f"method {step['method']!r} chooses among whole answers and gives no likelihoods")
    unite_options = {name: value for name, value in step.items() if not name.startswith("method")}
    forced = Forced(alignment, inner, unite_options, {i: list(ids) for i, (_, ids) in enumerate(requests)})
    longest = max((len(ids) for _, ids in requests), default=1)
    loop_options = {**step, "method": forced, "method_options": None, "max_new_tokens": longest + 1}
    run = DecodeLoop(ensemble, loop_options, trace=False)
    encoded = [list(p) if _is_encoded(p) else run.encode(p) for p, _ in requests]
    return _finished(ensemble._generate_each(run, encoded, range(len(requests)), batch_size, progress), forced)


def _finished(rows: Iterator[Row], forced: Forced) -> Iterator[Likelihood]:
    for row in rows:
        found, targets = forced.found[row.index], forced.targets[row.index]
        if len(found) < len(targets):
            raise ValueError(
                f"requests[{row.index}]: only {len(found)} of its {len(targets)} tokens fit into the members' contexts"
            )
        yield Likelihood(row.index, math.fsum(p for p, _ in found), all(greedy for _, greedy in found))


def _is_encoded(prompt: Any) -> bool:
    return isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], list)
