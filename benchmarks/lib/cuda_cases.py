"""Which shapes are measured on a GPU, and which calls on each."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lib.cuda_backend import EAGER, GRAPH

PEAKS = 40  # per row: tokens that every member has and likes
SHORT = (("unite_step", GRAPH), ("amax", GRAPH), ("topk", GRAPH))
MAIN = (*SHORT, ("unite_step", EAGER), ("empty", GRAPH), ("hash_map", GRAPH), ("plain_array", GRAPH))
RIVALS = (*SHORT, ("flashinfer_topk", GRAPH), ("dictionary", EAGER), ("reference", EAGER), ("reference", GRAPH))
COMPILED = (*SHORT[:2], ("reference_compiled", EAGER), ("reference_compiled", GRAPH))
MAY_BE_MISSING = {("flashinfer_topk", GRAPH), ("reference", GRAPH), *COMPILED[2:]}
DICTIONARY_MAX_BATCH, DICTIONARY_MAX_K = 8, PEAKS // 2


@dataclass(frozen=True)
class Case:
    """One shape of input and the calls to be timed on it."""

    batch: int
    calls: tuple[tuple[str, str], ...] = SHORT
    members: int = 2
    k: int = 10
    dtype: torch.dtype = torch.bfloat16
    logits: str = "peaked"

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"B={self.batch} M={self.members} k={self.k} {dtype} {self.logits}"


def all_cases(quick: bool) -> list[Case]:
    """The most telling first, since time may run out."""
    float32, float16 = torch.float32, torch.float16
    cases = [Case(batch, MAIN) for batch in (1, 64, 256, 8)]
    cases += [Case(1, MAIN, k=64), Case(1, MAIN, members=8), Case(64, dtype=float32), Case(1, RIVALS)]
    if quick:
        return cases
    cases += [Case(batch, MAIN) for batch in (2, 4, 16, 32, 128, 512)]
    cases += [Case(batch, MAIN, k=k) for k in (20, 64, 256) for batch in (1, 64) if (k, batch) != (64, 1)]
    cases += [Case(batch, members=members) for members in (3, 8) for batch in (1, 8, 64) if (members, batch) != (8, 1)]
    cases += [Case(batch, dtype=d) for d in (float32, float16) for batch in (1, 64, 256) if (d, batch) != (float32, 64)]
    kinds = ("gaussian", "equal", "ascending", "descending", "sparse", "clustered")
    cases += [Case(batch, SHORT[:2], logits=kind) for kind in kinds for batch in (1, 64)]
    cases += [Case(batch, RIVALS) for batch in (8, 64)]
    cases += [Case(batch, COMPILED) for batch in (1, 8)]
    return cases
