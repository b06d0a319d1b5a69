"""`unite_step`: the fused step as one operator, on the CPU and on CUDA devices.

`step_parts.py` has the same step in parts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import _arguments, _backend, _checks
from .options import StepOptions
from .step_parts import step_outputs
from .step_result import StepResult
from .vocab.alignment import VocabAlignment


def unite_step(
    logits: Sequence[Tensor],
    alignment: VocabAlignment,
    *,
    k: int = 10,
    primary: int = 0,
    weights: Sequence[float] | None = None,
    score: str = "logits",
    duplicates: str = "repeat",
    combine: str = "mean",
    include: Tensor | None = None,
    workspace: Tensor | None = None,
) -> StepResult:
    """One UNITE step (arXiv 2410.03777, Algorithm 1): from every member's logits to every member's next id.

    `unite_ext.reference.unite_step` states the same step in plain PyTorch; ids agree exactly.

    Parameters
    ----------
    logits : list of Tensor
        One [B, V_m] tensor per member: float32, bfloat16 or float16, any row stride, contiguous in the last
        dimension. V_m may exceed the tokenizer (padded heads). NaN counts as -inf, +inf as the dtype's largest
        finite value.
    alignment : VocabAlignment
        The members' vocabularies, on the logits' device.
    k : int
        How many tokens each member proposes, 1 to 256; at most 1024 for all members together.
    primary : int
        The member that leads: its proposals come first, ties go to them, and a slot wins only if it has an id there.
    weights : sequence of float, optional
        One weight per member, uniform by default. With combine="mean" not negative, and scaled to sum 1. With "product"
        as they are, from -1e6 to 1e6; members whose weight is not above 0 score the slots but do not propose, and the
        primary's must be above 0.
    score : {"logits", "probs"}
        "logits": softmax over the union's logits, as the authors' code does. "probs": softmax of the members'
        probabilities, which is Algorithm 1 read literally, and much flatter.
    duplicates : {"repeat", "drop"}
        What happens when several slots point at one id of a member: each keeps its logit, or only the one that is
        not a mere first sub-token (else the first) does.
    combine : {"mean", "product"}
        "mean": the weighted average of the members' softmaxes over the slots. "product": the log-linear pool, a softmax
        over the weighted sum of their logarithms (docs/methods.md). There a slot without a finite score in a member
        takes that member's smallest score over the union.
    include : Tensor, optional
        [B] int64: an eligible id of the primary whose class becomes a slot whatever the proposals are; -1 for none.
    workspace : Tensor, optional
        CUDA only: scratch memory owned by the caller, see `step_workspace`. Needed for calls captured into a CUDA
        graph; by default one per device and stream is kept.

    Returns
    -------
    StepResult
        Tensors on the logits' device, with static shapes.

    Raises
    ------
    TypeError, ValueError
        An argument is wrong; nothing has been computed. On the CPU also when a row of a member has no eligible logit
        above -inf, or an `include` id is not eligible; on CUDA nothing waits, and `StepResult.check` raises.
    RuntimeError
        CUDA tensors without the CUDA module, or an error of the device.
    """
    _arguments.check_alignment(alignment)
    _arguments.check_logits(logits, alignment)
    _checks.check_step_options(len(logits), k, primary, score, duplicates, combine)
    scaled = _checks.step_weights(weights, len(logits), combine, primary)
    first = logits[0]
    if include is not None:
        _arguments.check_include(include, first.shape[0], first.device)
    _backend.require_cuda_for(first)
    step = _launch(logits, alignment, k, primary, scaled, score, duplicates, combine, include, workspace)
    if first.is_cpu and not torch.compiler.is_compiling():
        step.check()
    return step


def fused_step(
    logits: Sequence[Tensor],
    alignment: VocabAlignment,
    options: StepOptions,
    *,
    include: Tensor | None = None,
) -> StepResult:
    """`unite_step` with options that were checked before: the arguments are not looked at, rows do not raise."""
    weights = options.step_weights(len(logits))
    rules = (options.score, options.duplicates, options.combine)
    return _launch(logits, alignment, options.k, options.primary, weights, *rules, include, None)


def _launch(
    logits: Sequence[Tensor],
    alignment: VocabAlignment,
    k: int,
    primary: int,
    weights: Sequence[float],
    score: str,
    duplicates: str,
    combine: str,
    include: Tensor | None,
    workspace: Tensor | None,
) -> StepResult:
    return StepResult(
        *torch.ops.unite_ext.fused_step.default(
            logits,
            alignment.table,
            alignment.class_ids,
            alignment.eligible,
            alignment.eligible_offsets,
            alignment.vocab_sizes,
            k,
            primary,
            weights,
            score,
            duplicates,
            combine,
            include,
            workspace,
        )
    )


@torch.library.register_fake("unite_ext::fused_step")
def _(
    logits: Sequence[Tensor],
    table: Tensor,
    class_ids: Tensor,
    eligible: Tensor,
    eligible_offsets: Sequence[int],
    vocab_sizes: Sequence[int],
    k: int,
    primary: int,
    weights: Sequence[float],
    score: str,
    duplicates: str,
    combine: str,
    include: Tensor | None = None,
    workspace: Tensor | None = None,
) -> tuple[Tensor, ...]:
    slots = len(logits) * k + int(include is not None)
    return step_outputs(logits[0], logits[0].shape[0], slots, len(logits))


def step_workspace(
    logits: Sequence[Tensor], alignment: VocabAlignment, *, k: int = 10, score: str = "logits"
) -> Tensor:
    """Scratch memory for steps on logits of these shapes and dtypes, to be passed as `workspace`.

    A CUDA graph that captures a step should own one, made before the capture and kept as long as the graph; a
    captured step without one zeroes its memory at every replay. Two steps that may run at the same time need one
    each. CPU tensors need none and get an empty one.

    Returns
    -------
    Tensor
        [bytes] uint8 on the logits' device.
    """
    _arguments.check_logits(logits, alignment)
    _checks.check_step_options(len(logits), k, 0, score, "repeat", "mean")
    if logits[0].is_cpu:
        return torch.empty(0, dtype=torch.uint8, device="cpu")
    _backend.require_cuda_for(logits[0])
    return torch.ops.unite_ext.step_workspace(logits, alignment.vocab_sizes, k, score)


def cpu_instruction_set(name: str | None = None) -> str:
    """The instruction set that the CPU kernel uses: "avx512", "avx2" or "scalar".

    With `name`, switch to it first (for tests and measurements).

    Raises
    ------
    ValueError
        This machine does not have it, or it is unknown.
    """
    try:
        return torch.ops.unite_ext.cpu_instruction_set(name or "")
    except RuntimeError as error:
        raise ValueError(f"name must be an instruction set of this machine, got {name!r}") from error
