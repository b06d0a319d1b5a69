"""Find the nearest vector by cosine, for as many vectors as a vocabulary has."""

from __future__ import annotations

import time

import torch
from torch import Tensor
from tqdm import tqdm

_PAIRS = 2**25  # cosines computed at a time
_ROWS = 1024  # vectors whose products are timed, and pairs computed in float64 at a time
_BLOCK = 64  # targets that are excluded together, by their largest cosine
_UNIT = 2**-8  # unit roundoff of bfloat16; torch may compute products of float32 in it too, if the user allowed it


def nearest_vectors(queries: Tensor, targets: Tensor, *, progress: bool | None = None) -> Tensor:
    """Find the target with the largest cosine to every query.

    A product in the fastest type excludes most targets. Those that its rounding cannot exclude are compared in float64.

    Parameters
    ----------
    queries, targets : Tensor, float32 [N, D], [V, D]
        Vectors of length 1, at least one target.
    progress : bool, optional
        Whether to show a progress bar; by default only on a terminal.

    Returns
    -------
    Tensor, int64 [N]
        Indices of targets; of equal cosines the lowest.
    """
    for name, vectors in (("queries", queries), ("targets", targets)):
        if not torch.isfinite(vectors).all():
            raise ValueError(f"{name} must be finite, got NaN or infinity")
    dtype = _fastest_type(queries, targets)
    others = torch.nn.functional.pad(targets.to(dtype), (0, 0, 0, -len(targets) % _BLOCK)).T
    found = []
    off = None if progress is None else not progress
    with tqdm(total=len(queries), desc="Nearest tokens by embedding", unit="token", disable=off) as bar:
        for chunk in queries.split(max(1, _PAIRS // len(targets))):
            found.append(_nearest(chunk, targets, others))
            bar.update(len(chunk))
    return torch.cat(found) if found else queries.new_zeros(0, dtype=torch.int64)


def _nearest(queries: Tensor, targets: Tensor, others: Tensor) -> Tensor:
    cosines = (queries.to(others.dtype) @ others).unflatten(1, (-1, _BLOCK))
    largest = cosines.amax(dim=2)
    limit = (largest.amax(dim=1).float() - _window(len(others))).to(others.dtype)
    rows, blocks = torch.nonzero(largest >= limit[:, None], as_tuple=True)
    hits, places = torch.nonzero(cosines[rows, blocks] >= limit[rows, None], as_tuple=True)
    rows, columns = rows[hits], _BLOCK * blocks[hits] + places
    real = columns < len(targets)  # the other columns fill up the last block
    rows, columns = rows[real], columns[real]
    exact = torch.cat(
        [
            (queries[r].double() * targets[c].double()).sum(dim=1)
            for r, c in zip(rows.split(_ROWS), columns.split(_ROWS))
        ]
    )
    best = torch.full((len(queries),), -torch.inf, dtype=torch.float64, device=queries.device)
    best.scatter_reduce_(0, rows, exact, "amax")
    first = torch.full((len(queries),), len(targets), device=queries.device)
    return first.scatter_reduce_(0, rows, torch.where(exact == best[rows], columns, len(targets)), "amin")


def _window(size: int) -> float:
    """Bound how far the computed cosine of the nearest target can be below the largest computed one.

    Rounding both vectors changes a product by at most 2 units (Cauchy-Schwarz), adding `size` terms in float32 by
    size * 2^-24, and rounding the sum by one unit. This happens to both cosines that are compared. The limit is rounded
    as well.
    """
    return 2 * (3.1 * _UNIT + 2 * size * 2**-24) + 1.1 * _UNIT


def _fastest_type(queries: Tensor, targets: Tensor) -> torch.dtype:
    """Return bfloat16 if the processor multiplies it faster than float32, else float32."""
    if queries.device.type != "cpu" or len(queries) < _ROWS:
        return torch.float32
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        left, right = queries[:_ROWS].to(dtype), targets[: 2 * _ROWS].to(dtype).T
        trials = []
        for _ in range(3):
            started = time.perf_counter()
            left @ right
            trials.append(time.perf_counter() - started)
        seconds[dtype] = min(trials)
    return min(seconds, key=seconds.__getitem__)
