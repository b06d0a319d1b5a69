"""Temperature, top_k and top_p mean what they mean in transformers."""

from __future__ import annotations

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from unite_ext import GenerationOptions
from unite_ext.decoding.sampling import sample, warped

PROBS = torch.tensor([0.05, 0.4, 0.0, 0.2, 0.1, 0.25], dtype=torch.float64)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("top_k", [0, 1, 3, 50])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 1.0])
def test_warps_as_transformers_does(temperature, top_k, top_p):
    scores = TemperatureLogitsWarper(temperature)(None, PROBS.log()[None])
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(None, scores)
    options = GenerationOptions(temperature=temperature, top_k=top_k, top_p=top_p)
    torch.testing.assert_close(warped(PROBS, options), scores.softmax(dim=1)[0])


def test_equal_probabilities_keep_the_lower_slots():
    kept = warped(torch.full((4,), 0.25, dtype=torch.float64), GenerationOptions(top_k=2))
    assert kept.tolist() == [0.5, 0.5, 0.0, 0.0]


def test_draws_follow_the_warped_distribution():
    options, generator, draws = GenerationOptions(temperature=0.8, top_k=4), torch.Generator().manual_seed(0), 4000
    counts = torch.zeros(len(PROBS), dtype=torch.float64)
    for _ in range(draws):
        counts[sample(PROBS, options, generator)] += 1
    expected = warped(PROBS, options)
    assert (counts[expected == 0] == 0).all()
    assert ((counts / draws - expected).abs() < 5 * (expected * (1 - expected) / draws).sqrt() + 1e-9).all()
