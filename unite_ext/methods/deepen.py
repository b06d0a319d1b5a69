"""DeePEn: fusion in a relative space that the members share (Huang et al., NeurIPS 2024, arXiv 2404.12715)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from .._checks import check_integer
from .._memory import free_bytes
from ..members.base import BaseMember
from ..options import StepOptions
from ..vocab.alignment import EOS_CLASS, FIRST_SUB_TOKEN, ID_MASK, VocabAlignment
from .entries import PrimaryEntryMethod

TEMPERATURE = 100.0  # of the softmax over a token's similarities; the authors' constant
_CHUNK = 4096  # tokens whose similarities are computed at a time
_RESERVE = 1.25  # what a step and the construction need beside the matrices


class DeepenAvg(PrimaryEntryMethod):
    """DeePEn-Avg (arXiv 2404.12715): members agree in the space of similarities to common tokens.

    With A the tokens that all members have (anchors) and E_m member m's input embeddings, a token's relative
    representation is its cosine similarities to the anchors, scaled to length 1 and normalised:

        R_m = softmax(100 * normalize(cos(E_m, E_m[A])))                   [V_m, A]
        r = sum_m alpha_m p_m R_m                                          the average, [A]

    The way back to the primary's vocabulary is a search. Its logits x start as the primary's own and take T steps of
    gradient descent on KL(r || softmax(x) R_p); the largest x wins. As in the authors' code the steps are AdamW's with
    the rate `eta` on a cosine schedule, the divergence is averaged over the anchors, and where the primary's own best
    token is EOS nothing is searched.

    Parameters
    ----------
    eta : float
        The rate, which the paper searches between 0.05 and 0.30 on development data.
    steps : int
        T.
    anchors : int, optional
        Sample this many of the common tokens; all by default.
    seed : int
        Of the sample.
    max_bytes : int, optional
        Refuse to need more than this; by default what is free on the device.
    """

    name: ClassVar[str] = "deepen-avg"

    def __init__(
        self,
        alignment: VocabAlignment,
        members: Sequence[BaseMember],
        options: StepOptions,
        *,
        eta: float = 0.15,
        steps: int = 5,
        anchors: int | None = None,
        seed: int = 0,
        max_bytes: int | None = None,
    ) -> None:
        super().__init__(alignment, members, options)
        self.eta, self.steps = float(eta), steps
        ids = _sampled(common_ids(alignment), anchors, seed)
        self._anchors = len(ids)
        self.matrices = [
            relative_representations(member.input_embeddings()[: alignment.vocab_sizes[m]], ids[:, m], alignment.device)
            for m, member in enumerate(members)
        ]

    @classmethod
    def check_options(cls, own: Mapping[str, Any]) -> None:
        """See `Method.check_options`."""
        super().check_options(own)
        for name, low in (("steps", 1), ("anchors", 1), ("seed", 0), ("max_bytes", 1)):
            if own.get(name) is not None:
                check_integer(name, own[name], low, 2**63 - 1)
        eta = own.get("eta", 0.15)
        if isinstance(eta, bool) or not isinstance(eta, (int, float)):
            raise TypeError(f"eta must be a number, got {type(eta).__name__}")
        if not 0 < eta <= 1:
            raise ValueError(f"eta must be above 0 and at most 1, got {eta}")

    @classmethod
    def check(cls, alignment: VocabAlignment, options: StepOptions, own: Mapping[str, Any]) -> None:
        """There are common tokens, enough memory for the matrices, and no weights that the average would ignore."""
        super().check(alignment, options, own)
        cls._check_weights(options.weights)
        common = len(common_ids(alignment))
        if common == 0:
            raise ValueError(f"method {cls.name!r} needs tokens that all members have, got none")
        wanted = own.get("anchors")
        if wanted is not None and wanted > common:
            raise ValueError(f"anchors must be at most the {common:,} common tokens, got {wanted:,}")
        needed = memory_estimate(alignment, wanted or common)
        device = alignment.device
        limit = own.get("max_bytes") or free_bytes(device)
        if limit is not None and needed > limit:
            per_anchor = memory_estimate(alignment, 1)
            fitting = limit // per_anchor
            advice = f"sample anchors, at most {fitting:,}: method_options={{'anchors': {fitting}}}"
            raise ValueError(
                f"method {cls.name!r} needs {needed / 1e9:,.1f} GB for relative representations with "
                f"{wanted or common:,} anchors, {limit / 1e9:,.1f} GB are free on {device}: "
                + (advice if fitting else "use another method")
            )

    @classmethod
    def _check_weights(cls, weights: Sequence[float] | None) -> None:
        if weights is not None and len(set(weights)) > 1:
            raise ValueError(f"method 'deepen-avg' has uniform weights, got {list(weights)}; 'deepen-adapt' takes them")

    @property
    def tokens_per_step(self) -> float:
        """Number of anchors."""
        return float(self._anchors)

    def scores(self, probs: Sequence[Tensor], logits: Sequence[Tensor]) -> Tensor:
        """[B, V_p]: the primary's probabilities after the search."""
        average = torch.zeros(len(probs[0]), self._anchors, device=probs[0].device)
        for weight, prob, matrix in zip(self.weights, probs, self.matrices):
            average += weight * (prob @ matrix)
        own = logits[self.primary]
        found = self._search(own, average)
        ends = self.gather_eos(probs[self.primary]).argmax(dim=1) == self.alignment.eos_ids[self.primary]
        return self.gather_eos(torch.where(ends[:, None], own, found).softmax(dim=1))

    def _search(self, own: Tensor, target: Tensor) -> Tensor:
        """[B, V_p]: logits whose relative representation is close to the target [B, A]."""
        matrix = self.matrices[self.primary]
        tiny = torch.finfo(torch.float32).tiny
        with torch.enable_grad():
            x = own.clone().requires_grad_()
            optimizer = torch.optim.AdamW([x], lr=self.eta)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10, eta_min=self.eta / 4)
            for _ in range(self.steps):
                relative = (x.softmax(dim=1) @ matrix).clamp(min=tiny)
                loss = torch.nn.functional.kl_div(relative.log(), target, reduction="none").mean(dim=1).sum()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        return x.detach()


class DeepenAdapt(DeepenAvg):
    """DeePEn-Adapt: DeePEn with weights alpha_m = s_m / sum_j s_j from the members' scores on development data.

    Give them as `weights`; `Selection.adaptive_weights` computes them. Otherwise as `DeepenAvg`.
    """

    name: ClassVar[str] = "deepen-adapt"

    @classmethod
    def _check_weights(cls, weights: Sequence[float] | None) -> None:
        if weights is None:
            raise ValueError("method 'deepen-adapt' needs weights, such as Selection.adaptive_weights(), got none")


def common_ids(alignment: VocabAlignment) -> Tensor:
    """[A, M] int64: every member's ids of the texts that all members have as one token, EOS aside."""
    tagged = alignment.class_ids[EOS_CLASS + 1 :]
    whole = ((tagged >= 0) & (tagged & FIRST_SUB_TOKEN == 0)).all(dim=1)
    return (tagged[whole] & ID_MASK).long()


def memory_estimate(alignment: VocabAlignment, anchors: int) -> int:
    """Bytes that the relative representations of all members take, and the work around them."""
    return int(_RESERVE * 4 * anchors * sum(alignment.vocab_sizes))


@torch.no_grad()
def relative_representations(embeddings: Tensor, anchors: Tensor, device: torch.device) -> Tensor:
    """[V, A] float32, see `DeepenAvg`.

    Parameters
    ----------
    embeddings : Tensor [V, D]
    anchors : Tensor, int64 [A]
        Rows of the embeddings.
    device : torch.device
        Where the result goes.
    """
    embeddings = embeddings.to(device)
    bases = torch.nn.functional.normalize(embeddings[anchors.to(device)].float(), dim=1)
    result = torch.empty(len(embeddings), len(bases), device=device)
    for start in range(0, len(embeddings), _CHUNK):
        chunk = torch.nn.functional.normalize(embeddings[start : start + _CHUNK].float(), dim=1)
        similarity = torch.nn.functional.normalize(chunk @ bases.T, dim=1)
        result[start : start + _CHUNK] = (TEMPERATURE * similarity).softmax(dim=1)
    return result


def _sampled(ids: Tensor, count: int | None, seed: int) -> Tensor:
    if count is None or count >= len(ids):
        return ids
    generator = torch.Generator(device="cpu").manual_seed(seed)
    chosen = torch.randperm(len(ids), generator=generator, device="cpu")[:count].sort().values
    return ids[chosen.to(ids.device)]
