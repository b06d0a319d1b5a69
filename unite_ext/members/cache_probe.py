"""How a model's KV cache may be reused, found by comparing drop-and-append with running everything anew.

A wrong attention moves logits by about their own spread. In float32 rounding moves them by less than a ten-thousandth
of it, in bfloat16 some by up to a third (SmolLM2-135M on a CPU): too close to decide. So 16-bit models are compared in
float32 arithmetic on their own weights. Where that is not possible (kernels that only know 16 bits, quantized
weights), the measure is how far rounding alone moves the same model's logits, over several seeds.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from .forward import lacks_argument, uses_window
from .kv_cache import REUSE, RaggedCache
from .tree_cache import TreeCache

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

SEEDS = 3  # of the comparison in 16 bits; in float32 one decides
EXACT = 1e-3  # of the logits' spread: what float32 rounding stays below
ROUNDING = 4.0  # times what rounding alone was seen to do
NEVER = 0.5  # of the spread: no rounding excuses more; six ids forgotten of 24 move logits by 0.8 to 1.1
WIDENED_BYTES = 2 << 30  # of weights that are kept in float32 during the comparison; others are widened at every use
SLOW_ELEMENTS = 2_000_000_000  # a CPU would take minutes to widen more weights than these

_LOW = (torch.bfloat16, torch.float16)
_START = (9, 5)  # ids of two rows, then (drop, append) of each
_EDITS = (((3, 4), (0, 2)), ((1, 1), (4, 6)))


@torch.no_grad()
def probe_reuse(model: PreTrainedModel, *, name: str = "model") -> str:
    """Find out how a model's cache may be reused.

    Returns
    -------
    str
        The first of "holes", "compact" and "recompute" that gives the logits of each row alone.

    Raises
    ------
    ValueError
        Not even recomputing in a padded batch does; says why, with the model's own exception as the cause.
    """
    called = f"{name} ({type(model).__name__})"
    for argument in ("position_ids", "logits_to_keep"):
        if lacks_argument(model, argument):
            raise ValueError(f"{called} cannot be a member: its forward takes no {argument}")
    _run_once(model, called)
    low = any(p.dtype in _LOW for p in model.parameters())
    if low and _may_widen(model):
        try:
            with _Float32(model):
                return _first_exact(model, called, seeds=1, widened=True)
        except Exception as error:  # no memory for float32, kernels that only know 16 bits, caches that refuse
            logger.debug("%s: compared in 16 bits, as float32 arithmetic gives: %s", name, error)
    try:
        return _first_exact(model, called, seeds=SEEDS if low else 1)
    except _NoReuse as refusal:
        raise ValueError(str(refusal)) from refusal.__cause__


@torch.no_grad()
def probe_trees(model: PreTrainedModel, reuse: str, *, name: str = "model") -> bool:
    """Find out whether a model gives the logits of many places in one pass, see `TreeCache`."""
    if reuse == "recompute":
        return False
    low = any(p.dtype in _LOW for p in model.parameters())
    try:
        if low and _may_widen(model):
            with _Float32(model):
                return max(_tree_errors(model, reuse, 0)) <= EXACT
        allowed = _allowed(model, SEEDS) if low else EXACT
        return max(e for seed in range(SEEDS if low else 1) for e in _tree_errors(model, reuse, seed)) <= allowed
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # an attention that takes no masks of ours
        logger.debug("%s: one place of a text per pass, as trees raise %s", name, _said(error))
        return False


def _tree_errors(model: PreTrainedModel, reuse: str, seed: int) -> Iterator[float]:
    """How far the logits at the ends of a tree's branches are from those of each path alone."""
    first, second = _sample(model, seed)
    cache = TreeCache(model, 2, reuse=reuse)
    cache.edit(0, 0, first[:16])
    cache.edit(1, 0, second[:9])
    cache.next_logits()
    for _ in range(2):  # the second time on top of what is left of the first
        ids = cache.ids
        places = [(0, 0, ()), (0, 0, second[:3]), (0, 0, second[:1]), (0, 2, second[4:9]), (1, 3, first[5:7])]
        for (r, drop, append), got in zip(places, cache.place_logits(places)):
            path = [*ids[r][: len(ids[r]) - drop], *append]
            yield _distance(got, _logits(model, [path])[0, -1])
        cache.edit(0, 2, second[4:8])
        cache.edit(1, 0, first[:1])
        for r, got in enumerate(cache.next_logits()):
            yield _distance(got, _logits(model, [cache.ids[r]])[0, -1])


class _NoReuse(Exception):
    """No way of reuse gives a row's own logits."""


def _run_once(model: PreTrainedModel, called: str) -> None:
    """Run two ids, so that what fails without us is said as it is."""
    try:
        model(input_ids=torch.ones(1, 2, dtype=torch.long, device=model.device), use_cache=False)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise ValueError(f"{called} cannot be a member: it does not run, {_said(error)}") from error


def _first_exact(model: PreTrainedModel, called: str, *, seeds: int, widened: bool = False) -> str:
    """The first way of reuse whose logits differ from each row's own by rounding only.

    What raises is not possible; unless it is `widened`, when the widening may be to blame.
    """
    allowed: float | None = None
    worst, cause = 0.0, None
    for reuse in REUSE[1:] if uses_window(model.config) else REUSE:
        try:
            error = max(e for seed in range(seeds) for e in _errors(model, reuse, seed))
        except torch.OutOfMemoryError:
            raise
        except Exception as raised:
            if widened:
                raise
            logger.debug("%s: cache reuse %r is not possible: %s", called, reuse, raised)
            worst, cause = 0.0, raised
            continue
        if error > EXACT and allowed is None:
            allowed = _allowed(model, seeds)
        if error <= (allowed or EXACT):
            if reuse == "recompute":
                why = "" if cause is None else f" ({_said(cause)})"
                logger.warning("%s: its cache cannot be cut back, every step runs the whole text again%s", called, why)
            return reuse
        worst, cause = error, None
    if cause is not None:
        raise _NoReuse(f"{called} cannot be a member: it does not run in a padded batch, {_said(cause)}") from cause
    raise _NoReuse(
        f"{called} gives other logits in a batch of different lengths than alone: they differ by {worst:.2g} of their "
        f"spread, where rounding explains {allowed or EXACT:.2g}"
    )


def _errors(model: PreTrainedModel, reuse: str, seed: int) -> Iterator[float]:
    """How far two rows of a cache are from each alone, after every edit."""
    fresh = [iter(row) for row in _sample(model, seed)]
    cache = RaggedCache(model, len(fresh), reuse=reuse)
    for step in (tuple((0, n) for n in _START), *_EDITS):
        for r, (drop, append) in enumerate(step):
            cache.edit(r, drop, list(islice(fresh[r], append)))
        got = cache.next_logits()
        for r, row in enumerate(cache.ids):
            yield _distance(got[r], _logits(model, [row])[0, -1])


def _allowed(model: PreTrainedModel, seeds: int) -> float:
    """The distance that rounding explains.

    Seen where nothing but rounding can differ: two rows of one length beside each other against each alone, and the
    same ids with others after them, which a causal model does not see.
    """
    seen = 0.0
    for seed in range(seeds):
        first, second = (row[: _START[0]] for row in _sample(model, seed))
        both, longer = _logits(model, [first, second]), _logits(model, [first + second])[0]
        alone = [_logits(model, [row])[0] for row in (first, second)]
        for at in range(2, len(first)):
            seen = max(seen, _distance(both[0, at], alone[0][at]), _distance(longer[at], alone[0][at]))
            seen = max(seen, _distance(both[1, at], alone[1][at]))
    # The logits' own rounding, where the few comparisons above happen to find none.
    least = max(EXACT, 16 * torch.finfo(both.dtype).eps)
    return min(max(least, ROUNDING * seen), NEVER)


def _distance(got: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference, in spreads of what is expected; infinite where either is not finite."""
    got, expected = got.float(), expected.float()
    distance = float((got - expected).square().mean().sqrt() / expected.std())
    return distance if distance == distance else float("inf")


def _sample(model: PreTrainedModel, seed: int) -> list[list[int]]:
    size = min(embedding_rows(model), 1000)
    generator = torch.Generator(device="cpu").manual_seed(seed)
    return torch.randint(1, size, (2, 24), generator=generator, device="cpu").tolist()


def _logits(model: PreTrainedModel, rows: list[list[int]]) -> Tensor:
    return model(input_ids=torch.tensor(rows, device=model.device), use_cache=False).logits


def embedding_rows(model: PreTrainedModel) -> int:
    """How many ids a model has an embedding for, packed weights included."""
    embedding = model.get_input_embeddings()
    rows = getattr(embedding, "num_embeddings", None)
    if isinstance(rows, int):
        return rows
    weight = getattr(embedding, "weight", None)
    return weight.shape[0] if isinstance(weight, Tensor) else model.config.get_text_config().vocab_size


def _said(error: BaseException) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _may_widen(model: PreTrainedModel) -> bool:
    return model.device.type != "cpu" or sum(p.numel() for p in model.parameters()) <= SLOW_ELEMENTS


class _Float32(TorchDispatchMode):
    """Run a 16-bit model in float32 arithmetic: every 16-bit tensor becomes float32 where an operator takes it."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self._weights = {id(p) for p in model.parameters()}
        self._kept: dict[int, Tensor] = {}
        self._room = WIDENED_BYTES

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*tree_map(self._widen, args), **tree_map(self._widen, kwargs or {}))

    def _widen(self, value: Any) -> Any:
        if isinstance(value, torch.dtype):
            return torch.float32 if value in _LOW else value
        if not isinstance(value, Tensor) or value.dtype not in _LOW:
            return value
        if id(value) not in self._weights:
            return value.float()
        wide = self._kept.get(id(value))
        if wide is None:
            wide = value.float()
            if self._room >= wide.nbytes:
                self._room -= wide.nbytes
                self._kept[id(value)] = wide
        return wide
