"""The three real models that benchmarks/real_models measures, and the ensembles of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import torch

from unite_ext import Member

FOLDERS = {"qwen": "qwen25-coder", "smol": "smollm2", "gemma": "gemma3"}

Names = tuple[str, ...]


def ensembles(only: Sequence[str] | None) -> list[Names]:
    """Every member alone, every pair, all three; of these only the ones that are named, such as "qwen+gemma"."""
    found: list[Names] = [(name,) for name in FOLDERS] + list(combinations(FOLDERS, 2)) + [tuple(FOLDERS)]
    known = ["+".join(names) for names in found]
    if unknown := [name for name in only or () if name not in known]:
        raise ValueError(f"members must be of {', '.join(known)}, got {', '.join(unknown)}")
    return [names for names in found if not only or "+".join(names) in only]


def orders(names: Names, rule: str) -> list[Names]:
    """In which orders an ensemble is run by a rule: by the paper's step either member of a pair leads."""
    return [names, names[::-1]] if rule in ("repeat", "drop") and len(names) == 2 else [names]


def load(folder: Path, wanted: Sequence[Names], dtype: torch.dtype = torch.float32) -> dict[str, Member]:
    """The members of these ensembles."""
    return {
        name: Member.from_pretrained(str(folder / own), dtype=dtype)
        for name, own in FOLDERS.items()
        if any(name in names for names in wanted)
    }


def interval(values: list[float], sizes: list[int]) -> tuple[float, float]:
    """95 % of the sum of values per unit of size, for texts drawn with replacement."""
    draw = random.Random(0)
    found = []
    for _ in range(2000):
        chosen = [draw.randrange(len(values)) for _ in values]
        found.append(sum(values[i] for i in chosen) / sum(sizes[i] for i in chosen))
    found.sort()
    return found[49], found[1949]
