"""The step, its floor and its rivals on the CPU: logits they agree on, and a check that they do before any is timed."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch

from lib.dictionary_step import CLEAR, DictionaryStep, assert_same_winners
from lib.vocabularies import Family
from unite_ext import reference, unite_step

CALLS = ("amax", "unite_step", "topk", "reference", "dictionary")
CLEAN_TOKENS = 40


def clean_logits(family: Family, batch: int, dtype: torch.dtype, tokens: int = CLEAN_TOKENS) -> list[torch.Tensor]:
    """Gaussian logits whose best are `tokens` tokens per row that all members have.

    On such rows a dictionary of surface strings is right, so that it can be compared; its top-k should take up to half
    of them.
    """
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(batch, width, generator=generator) for width in family.widths]
    for row in range(batch):
        chosen = family.shared_ids[torch.randint(len(family.shared_ids), (tokens,), generator=generator)]
        for m, x in enumerate(logits):
            x[row, chosen[:, m]] += 10 + 2 * torch.randn(tokens, generator=generator)
    return [x.to(dtype) for x in logits]


def checked_calls(
    family: Family, logits: list[torch.Tensor], k: int, names: Collection[str] = CALLS
) -> dict[str, Callable[[], object]]:
    """What is timed, by name; AssertionError if a step among them is not that of the reference."""
    alignment = family.alignment
    dictionary = DictionaryStep(family.tokenizers) if "dictionary" in names else None
    calls: dict[str, Callable[[], object]] = {
        "amax": lambda: [x.amax(dim=1) for x in logits],
        "unite_step": lambda: unite_step(logits, alignment, k=k),
        "topk": lambda: [x.topk(k) for x in logits],
        "reference": lambda: reference.unite_step(logits, alignment, k=k),
        "dictionary": lambda: dictionary(logits, k),
    }
    expected = reference.unite_step(logits, alignment, k=k)
    if not torch.equal(calls["unite_step"]().next_ids, expected.next_ids):
        raise AssertionError("unite_step and the reference disagree")
    if "dictionary" in names:
        clear = 1e-5 if logits[0].dtype == torch.float32 else CLEAR
        if not assert_same_winners(dictionary(logits, k), expected, clear):
            raise AssertionError("no row is decided clearly enough to compare the dictionary implementation")
    return {name: calls[name] for name in CALLS if name in names}
