"""Attention that does not copy a shared cache gives what transformers' own gives, and is what members run."""

from __future__ import annotations

import pytest
import torch
import toy_tokenizers
from toy_models import toy_model
from transformers.integrations import sdpa_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from unite_ext import UniteEnsemble
from unite_ext.members import attention
from unite_ext.members.attention import GROUPED, grouped_attention, use_grouped_attention
from unite_ext.members.transformers import Member

PROMPTS = ["Once upon a time", "2024 was", "A"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_bool", [True, False])
@pytest.mark.parametrize(("heads", "shared"), [(4, 4), (4, 2), (14, 2), (3, 1)])
@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_it_is_transformers_own(heads, shared, count, is_bool, dtype):
    """To rounding: 1e-6 in float32, 2e-2 in bfloat16. 40 places are so many that the original runs."""
    g = torch.Generator().manual_seed(count)
    batch, width, dim = 3, 50, 16
    module = torch.nn.Module().eval()
    module.num_key_value_groups = heads // shared
    query = torch.randn(batch, heads, count, dim, generator=g).to(dtype)
    key, value = torch.randn(2, batch, shared, width, dim, generator=g).to(dtype)
    mask = torch.rand(batch, 1, count, width, generator=g) < 0.7
    mask[..., 0] = True
    if not is_bool:
        mask = torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
    found, weights = grouped_attention(module, query, key, value, mask, scaling=0.2)
    expected, _ = sdpa_attention.sdpa_attention_forward(module, query, key, value, mask, scaling=0.2)
    assert weights is None
    assert found.shape == (batch, count, heads, dim)
    torch.testing.assert_close(found, expected, atol=1e-6 if dtype == torch.float32 else 2e-2, rtol=0)


def test_dropout_is_transformers_own():
    module = torch.nn.Module().eval()
    module.num_key_value_groups = 2
    query, (key, value) = torch.randn(1, 4, 2, 16), torch.randn(2, 1, 2, 50, 16)
    mask = torch.ones(1, 1, 2, 50, dtype=torch.bool)
    found = []
    for attention_of in (grouped_attention, sdpa_attention.sdpa_attention_forward):
        torch.manual_seed(0)
        found.append(attention_of(module, query, key, value, mask, dropout=0.5)[0])
    assert torch.equal(*found)


def test_members_copy_no_cache(monkeypatch):
    """Ragged batches, drafts and trees: with a mask, only passes over as many ids as a prompt has run as before."""
    loaders = [("llama", toy_tokenizers.byte_level), ("mistral-window", toy_tokenizers.sentencepiece)]
    models = [toy_model(kind, load(), seed=i) for i, (kind, load) in enumerate(loaders)]
    ens = UniteEnsemble(models, [load() for _, load in loaders])
    assert [member.model.config._attn_implementation for member in ens.members] == [GROUPED, GROUPED]
    fed: list[int] = []
    original = sdpa_attention.sdpa_attention_forward

    def counted(module, query, key, value, mask, **options):
        if mask is not None:
            fed.append(query.shape[2])
        return original(module, query, key, value, mask, **options)

    monkeypatch.setattr(sdpa_attention, "sdpa_attention_forward", counted)
    expected = ens.generate(PROMPTS, max_new_tokens=12)
    assert ens.generate(PROMPTS, max_new_tokens=12, speculate=4) == expected
    ens.generate(PROMPTS, max_new_tokens=12, boundaries="exact")
    assert all(count >= 16 for count in fed)  # two heads of eight
    for member in ens.members:
        member.model.set_attn_implementation("sdpa")
    before = len(fed)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", counted)
    assert ens.generate(PROMPTS, max_new_tokens=12) == expected
    assert 1 in fed[before:]


@pytest.mark.parametrize("kind", ["llama", "gpt-neox"])
def test_other_implementations_are_left_alone(kind):
    tokenizer = toy_tokenizers.byte_level()
    model = toy_model(kind, tokenizer)
    if kind == "llama":
        model.set_attn_implementation("eager")
    before = model.config._attn_implementation
    use_grouped_attention(model)
    assert model.config._attn_implementation == before != GROUPED
    assert Member(model, tokenizer).model.config._attn_implementation == before


@pytest.mark.parametrize(
    "code", ["if config._attn_implementation == 'sdpa': ALL_ATTENTION_FUNCTIONS", "class Attention: pass"]
)
def test_models_that_ask_by_name_are_left_alone(code, monkeypatch):
    model = toy_model("llama", toy_tokenizers.byte_level())
    monkeypatch.setattr(attention.inspect, "getsource", lambda _: code)
    use_grouped_attention(model)
    assert model.config._attn_implementation == "sdpa"
