"""The sums of a member's probabilities, in the order of its tokens' bytes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import toy_tokenizers

from unite_ext import VocabAlignment
from unite_ext.vocab.byte_order import byte_order


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sums_are_those_of_the_probabilities(dtype):
    """Over all eligible ids, those that end a text included; NaN counts as nothing, and a row of nothing gives NaN."""
    [vocabulary] = VocabAlignment.from_tokenizers([toy_tokenizers.byte_level()]).vocabularies
    order = byte_order(vocabulary)
    logits = (3 * torch.randn(4, vocabulary.size + 3, generator=torch.Generator().manual_seed(1))).to(dtype)
    logits[1, order.ids[:5]] = float("nan")
    logits[2] = -torch.inf
    eos = list(vocabulary.eos_token_ids)
    wanted = torch.tensor([*order.ids.tolist(), *eos])
    probs = logits[:, wanted].double().nan_to_num(nan=-torch.inf, neginf=-torch.inf).softmax(dim=1).numpy()
    found = order.probability_sums(logits)
    assert len(found) == len(logits)
    for row, (sums, ending) in enumerate(found):
        assert sums.shape == (len(order) + 1,)
        if row == 2:
            assert np.isnan(sums[-1])
            continue
        np.testing.assert_allclose(sums, np.concatenate([[0.0], np.cumsum(probs[row, : len(order)])]), atol=1e-6)
        assert ending == pytest.approx(probs[row, len(order) :].sum(), rel=1e-5)
        assert ending > 0
