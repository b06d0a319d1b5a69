"""DeePEn: fusion in a relative space that the members share (Huang et al., NeurIPS 2024, arXiv 2404.12715)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

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
_RESERVE = 1.25  # memory for the matrices, a step and the construction, relative to the matrices alone


class DeepenAvg(PrimaryEntryMethod):
    """DeePEn-Avg (arXiv 2404.12715): members agree in the space of similarities to common tokens.

    A are the tokens that all members have (anchors), E_m are member m's input embeddings. A token's relative
    representation is its cosine similarities to the anchors, scaled to length 1 and normalised:

        R_m = softmax(100 * normalize(cos(E_m, E_m[A])))                   [V_m, A]
        r = sum_m alpha_m p_m R_m                                          the average, [A]

    The way back to the primary's vocabulary is a search: logits x start as the primary's own and take T steps of
    gradient descent on KL(r || softmax(x) R_p). The largest x wins. As in the authors' code the steps are AdamW's with
    the rate `eta` on a cosine schedule, and the divergence is averaged over the anchors. If the primary's own best
    token is EOS, nothing is searched.

    Parameters
    ----------
    eta : float
        The rate of the search. The paper chooses it between 0.05 and 0.30 on development data.
    steps : int
        The number of steps T.
    anchors : int, optional
        How many of the common tokens to sample as anchors; all by default.
    seed : int
        The seed of this sample.
    max_bytes : int, optional
        Raise ValueError if more memory is needed than this; by default what is free on the device.
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
    def check_options(cls, own: Mapping[str, object]) -> None:
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
    def check(cls, alignment: VocabAlignment, options: StepOptions, own: Mapping[str, object]) -> None:
        """Check the weights, that there are common tokens, and that there is memory for the matrices."""
        super().check(alignment, options, own)
        cls._check_weights(options.weights)
        common = len(common_ids(alignment))
        if common == 0:
            raise ValueError(f"method {cls.name!r} needs tokens that all members have, got none")
        wanted = _count(own, "anchors")
        if wanted is not None and wanted > common:
            raise ValueError(f"anchors must be at most the {common:,} common tokens, got {wanted:,}")
        needed = memory_estimate(alignment, wanted or common)
        device = alignment.device
        limit = _count(own, "max_bytes") or free_bytes(device)
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
            raise ValueError(
                f"weights must be uniform with method 'deepen-avg', got {list(weights)}; 'deepen-adapt' takes others"
            )

    @property
    def tokens_per_step(self) -> float:
        """The number of anchors."""
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
    """DeePEn-Adapt: `DeepenAvg` with weights alpha_m = s_m / sum_j s_j from the members' scores on development data.

    They are given as `weights`; `Selection.adaptive_weights` computes them.
    """

    name: ClassVar[str] = "deepen-adapt"

    @classmethod
    def _check_weights(cls, weights: Sequence[float] | None) -> None:
        if weights is None:
            raise ValueError(
                "weights must be given with method 'deepen-adapt', such as Selection.adaptive_weights(), got none"
            )


def common_ids(alignment: VocabAlignment) -> Tensor:
    """Every member's ids of the texts that all members have as one token, EOS aside: int64 [A, M]."""
    tagged = alignment.class_ids[EOS_CLASS + 1 :]
    whole = ((tagged >= 0) & (tagged & FIRST_SUB_TOKEN == 0)).all(dim=1)
    return (tagged[whole] & ID_MASK).long()


def memory_estimate(alignment: VocabAlignment, anchors: int) -> int:
    """Estimate the bytes for the relative representations of all members, and for building and using them."""
    return int(_RESERVE * 4 * anchors * sum(alignment.vocab_sizes))


@torch.no_grad()
def relative_representations(embeddings: Tensor, anchors: Tensor, device: torch.device) -> Tensor:
    """Compute the relative representations of all tokens, float32 [V, A], see `DeepenAvg`.

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


def _count(own: Mapping[str, object], name: str) -> int | None:
    value = own.get(name)
    return value if isinstance(value, int) else None  # check_options refused anything else


def _sampled(ids: Tensor, count: int | None, seed: int) -> Tensor:
    if count is None or count >= len(ids):
        return ids
    generator = torch.Generator(device="cpu").manual_seed(seed)
    chosen = torch.randperm(len(ids), generator=generator, device="cpu")[:count].sort().values
    return ids[chosen.to(ids.device)]
