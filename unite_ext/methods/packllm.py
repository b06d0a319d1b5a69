"""PackLLM: weights from each member's perplexity on the prompt (Mavromatis et al. 2024, arXiv 2404.11531)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ..members.base import BaseMember, Scores
from ..options import StepOptions
from ..step_result import StepResult
from ..vocab.alignment import VocabAlignment
from .base import TokenMethod
from .unite import emission_probability, unite_scores


class PackLLM(TokenMethod):
    """UNITE with PackLLM-sim's weights, which depend on the prompt (arXiv 2404.11531).

    alpha_m = softmax_m(-log PPL_m / tau), with PPL_m member m's perplexity on the prompt. The step is UNITE's.

    The paper's members share a tokenization. Here they have their own, so log PPL_m is member m's negative
    log-likelihood of the prompt, divided by the number of the primary's tokens for all members. A prompt's first token
    has no probability; a prompt of one token gives uniform weights.

    Parameters
    ----------
    tau : float
        The temperature; a smaller one gives the best member more weight.
    """

    name: ClassVar[str] = "packllm"
    is_large: ClassVar[bool] = False
    samples: ClassVar[bool] = True
    needs_logits: ClassVar[bool] = False
    reads_prompts: ClassVar[bool] = True
    keeps_structure: ClassVar[bool] = True

    def __init__(
        self, alignment: VocabAlignment, members: Sequence[BaseMember], options: StepOptions, *, tau: float = 1.0
    ) -> None:
        super().__init__(alignment, members, options)
        self.members = members
        self.tau = tau

    @classmethod
    def check_options(cls, own: Mapping[str, object]) -> None:
        """See `Method.check_options`."""
        super().check_options(own)
        tau = own.get("tau", 1.0)
        if isinstance(tau, bool) or not isinstance(tau, (int, float)):
            raise TypeError(f"tau must be a number, got {type(tau).__name__}")
        if not tau > 0:
            raise ValueError(f"tau must be above 0, got {tau}")

    @classmethod
    def check(cls, alignment: VocabAlignment, options: StepOptions, own: Mapping[str, object]) -> None:
        """Check that no weights are given, because they come from the prompt."""
        if options.weights is not None:
            raise ValueError(f"weights must be None with method 'packllm', got {list(options.weights)}")

    def start(self, prompt_ids: Sequence[Sequence[int]]) -> tuple[float, ...]:
        """Compute the members' weights for a prompt."""
        losses = [member.negative_log_likelihood(own) for member, own in zip(self.members, prompt_ids)]
        unit = max(1, len(prompt_ids[self.primary]) - 1)
        return tuple(prompt_weights([loss / unit for loss in losses], self.tau))

    @property
    def averages(self) -> bool:
        """See `TokenMethod.averages`."""
        return True

    def member_weights(self, states: Sequence[object]) -> Tensor:
        """See `TokenMethod.member_weights`."""
        return torch.tensor(states, dtype=torch.float64, device=self.alignment.device)

    def step(self, scores: Sequence[Scores], states: Sequence[object]) -> StepResult:
        """Do UNITE's step, with each request's weights."""
        return self._step(scores, states, None)

    def likelihood(
        self, scores: Sequence[Scores], states: Sequence[object], targets: Tensor
    ) -> tuple[Tensor, StepResult]:
        """See `TokenMethod.likelihood`."""
        step = self._step(scores, states, targets)
        return emission_probability(step, targets, self.alignment, self.primary), step

    def _step(self, scores: Sequence[Scores], states: Sequence[object], include: Tensor | None) -> StepResult:
        step = unite_scores(scores, self.alignment, self.options, include)
        return reweighed(step, torch.tensor(states, device=step.union_probs.device), self.alignment, self.primary)


def prompt_weights(log_perplexities: Sequence[float], tau: float) -> list[float]:
    """Compute softmax(-log PPL / tau)."""
    return (-torch.tensor(log_perplexities, dtype=torch.float64, device="cpu") / tau).softmax(dim=0).tolist()


def reweighed(step: StepResult, weights: Tensor, alignment: VocabAlignment, primary: int) -> StepResult:
    """Decide a step again with other weights [B, M], whose rows sum to 1."""
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
