"""PackLLM: weights from each member's perplexity on the prompt (Mavromatis et al. 2024, arXiv 2404.11531)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..decoding.generation import Row
from ..ops import unite_step
from ..reference import StepResult
from ..vocab.alignment import VocabAlignment
from .base import Method


class PackLLM(Method):
    """UNITE with PackLLM-sim's weights, chosen anew for every prompt (arXiv 2404.11531).

    alpha_m = softmax_m(-log PPL_m / tau), with PPL_m member m's perplexity on the prompt. The step is UNITE's.

    The paper compares perplexities over one tokenization. Members here keep their own, so log PPL_m is member m's
    negative log-likelihood of the prompt, divided for all members by the number of the primary's tokens: the same text
    in the same unit. A prompt's first token has no probability; a prompt of one token gives uniform weights.

    Parameters
    ----------
    tau : float
        Temperature: smaller prefers the best member more.
    """

    name: ClassVar[str] = "packllm"
    samples: ClassVar[bool] = True

    def __init__(
        self, alignment: VocabAlignment, members: Sequence[Any], step_options: Mapping[str, Any], *, tau: float = 1.0
    ) -> None:
        self.alignment = alignment
        self.members = members
        self.tau = tau
        self._options = {n: step_options[n] for n in ("k", "primary", "score", "duplicates")}
        self._weights: dict[int, list[float]] = {}
        self._slots = self._steps = 0

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """See `Method.check_options`."""
        super().check_options(options)
        tau = options.get("tau", 1.0)
        if isinstance(tau, bool) or not isinstance(tau, (int, float)):
            raise TypeError(f"tau must be a number, got {type(tau).__name__}")
        if not tau > 0:
            raise ValueError(f"tau must be above 0, got {tau}")

    @classmethod
    def check(cls, alignment: VocabAlignment, step_options: Mapping[str, Any]) -> None:
        """Weights come from the prompt, so none may be given."""
        if step_options["weights"] is not None:
            raise ValueError(f"weights must be None with method 'packllm', got {step_options['weights']}")

    @property
    def tokens_per_step(self) -> float:
        """Mean size of the unions so far; NaN before the first step."""
        return self._slots / self._steps if self._steps else float("nan")

    def start(self, rows: Sequence[Row], prompts: Sequence[Sequence[Sequence[int]]]) -> None:
        """Weigh the members for every row's prompt."""
        for row, ids in zip(rows, prompts):
            losses = [negative_log_likelihood(m.model, own) for m, own in zip(self.members, ids)]
            unit = max(1, len(ids[self._options["primary"]]) - 1)
            self._weights[row.index] = prompt_weights([loss / unit for loss in losses], self.tau)

    def step(self, logits: Sequence[Tensor], rows: Sequence[Row]) -> StepResult:
        """UNITE's step, its members averaged with the row's weights."""
        return self._step(logits, rows, None)

    def likelihood(self, logits: Sequence[Tensor], rows: Sequence[Row], targets: Tensor) -> tuple[Tensor, StepResult]:
        """See `Method.likelihood`."""
        from ..decoding.likelihood import emission_probability

        step = self._step(logits, rows, targets)
        return emission_probability(step, targets, self.alignment, self._options["primary"]), step

    def _step(self, logits: Sequence[Tensor], rows: Sequence[Row], include: Tensor | None) -> StepResult:
        step = unite_step(logits, self.alignment, include=include, **self._options)
        weights = torch.tensor([self._weights[row.index] for row in rows], device=step.union_probs.device)
        self._slots += int(step.union_size.sum())
        self._steps += len(rows)
        return reweighed(step, weights, self.alignment, self._options["primary"])


def prompt_weights(log_perplexities: Sequence[float], tau: float) -> list[float]:
    """softmax(-log PPL / tau)."""
    return (-torch.tensor(log_perplexities, dtype=torch.float64) / tau).softmax(dim=0).tolist()


@torch.no_grad()
def negative_log_likelihood(model: Any, ids: Sequence[int]) -> float:
    """-log p(ids[1:] | ids[0]) under a model."""
    if len(ids) < 2:
        return 0.0
    tensor = torch.tensor([list(ids)], device=model.device)
    logits = model(input_ids=tensor, use_cache=False).logits[0, :-1].float()
    return float(torch.nn.functional.cross_entropy(logits, tensor[0, 1:].to(logits.device), reduction="sum"))


def reweighed(step: StepResult, weights: Tensor, alignment: VocabAlignment, primary: int) -> StepResult:
    """The same step with another average: weights [B, M], one row's summing to 1."""
    probs = torch.zeros_like(step.union_probs)
    for m in range(step.member_probs.shape[2]):
        probs = probs + weights[:, m : m + 1] * step.member_probs[:, :, m]
    ids = step.union_ids
    emits = ids[:, :, primary] >= 0
    for m, vocabulary in enumerate(alignment.vocabularies):  # EOS can win even if the primary has no id for it
        eos = torch.tensor(list(vocabulary.eos_token_ids), dtype=torch.int64, device=ids.device)
        emits |= torch.isin(ids[:, :, m], eos)
    winner = probs.masked_fill(~emits, -1.0).argmax(dim=1)
    next_ids = ids.gather(1, winner[:, None, None].expand(-1, 1, ids.shape[2]))[:, 0]
    bad = step.status != 0
    return step._replace(
        next_ids=next_ids.masked_fill(bad[:, None], -1),
        winner=winner.int().masked_fill(bad, -1),
        union_probs=probs.masked_fill(bad[:, None], 0.0),
    )
