"""The probe's choice of how to reuse a cache depends on the model, not on rounding or on the probe's seed."""

from __future__ import annotations

import logging

import pytest
import torch
import toy_tokenizers
import transformers
from toy_models import toy_model

from unite_ext.members import cache_probe
from unite_ext.members.cache_probe import probe_reuse
from unite_ext.members.forward import cache_argument

CASES = pytest.mark.parametrize(
    ("kind", "dtype", "seeds", "reuse"),
    [
        ("llama", torch.bfloat16, range(6), "holes"),
        ("llama", torch.float16, range(2), "holes"),
        ("gpt-neox", torch.bfloat16, range(2), "holes"),
        ("mistral-window", torch.bfloat16, range(2), "compact"),
    ],
)


def make(kind: str = "llama", **options):
    return toy_model(kind, toy_tokenizers.byte_level(), **options)


def deep(kind: str, seed: int, dtype: torch.dtype):
    """A model with so many layers that rounding errors add up as in a real model."""
    return make(kind, seed=seed, num_hidden_layers=12).to(dtype)


@pytest.fixture
def float32_refused(monkeypatch):
    """Act as a model whose kernels support only 16 bits."""

    def refuse(*_):
        raise RuntimeError("only 16 bits")

    monkeypatch.setattr(cache_probe._Float32, "__enter__", refuse)


@CASES
def test_the_answer_does_not_depend_on_rounding(kind, dtype, seeds, reuse):
    assert {probe_reuse(deep(kind, seed, dtype)) for seed in seeds} == {reuse}


@CASES
def test_nor_where_float32_is_not_possible(kind, dtype, seeds, reuse, float32_refused):
    assert {probe_reuse(deep(kind, seed, dtype)) for seed in seeds} == {reuse}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_window_is_noticed_without_being_told(dtype, monkeypatch):
    monkeypatch.setattr(cache_probe, "uses_window", lambda config: False)
    assert probe_reuse(deep("mistral-window", 1, dtype)) == "compact"


def test_a_window_is_noticed_in_16_bits_alone(float32_refused, monkeypatch):
    monkeypatch.setattr(cache_probe, "uses_window", lambda config: False)
    assert probe_reuse(deep("mistral-window", 1, torch.bfloat16)) == "compact"


def test_widening_changes_neither_weights_nor_later_passes():
    model = deep("llama", 0, torch.bfloat16)
    ids = torch.tensor([[1, 2, 3]])
    before = model(input_ids=ids).logits
    weights = {name: p.clone() for name, p in model.named_parameters()}
    with cache_probe._Float32(model), torch.no_grad():
        assert model(input_ids=ids).logits.dtype == torch.float32
    torch.testing.assert_close(model(input_ids=ids).logits, before, rtol=0, atol=0)
    assert all(torch.equal(p, weights[name]) and p.dtype == torch.bfloat16 for name, p in model.named_parameters())


def with_forward(forward):
    """A toy model whose forward is replaced; `inner` is the true one."""
    model = make()
    inner = model.forward
    model.forward = forward(inner)
    return model


def test_a_forward_without_position_ids_is_named():
    def forward(inner):
        return lambda input_ids, attention_mask=None, cache=None, use_cache=None, logits_to_keep=0: inner(input_ids)

    with pytest.raises(ValueError, match=r"^odd \(LlamaForCausalLM\) .*its forward takes no position_ids$"):
        probe_reuse(with_forward(forward), name="odd")


def test_a_forward_without_logits_to_keep_is_named():
    def forward(inner):
        return lambda input_ids, attention_mask=None, position_ids=None, cache=None, use_cache=None: inner(input_ids)

    with pytest.raises(ValueError, match=r"its forward takes no logits_to_keep$"):
        probe_reuse(with_forward(forward), name="odd")


def test_the_models_own_exception_is_said_and_attached():
    def always(inner):
        def run(**_):
            raise KeyError("no such layer")

        return run

    with pytest.raises(ValueError, match=r"odd .* does not run, KeyError: 'no such layer'") as caught:
        probe_reuse(with_forward(always), name="odd")
    assert isinstance(caught.value.__cause__, KeyError)

    def in_a_batch(inner):
        def run(input_ids, attention_mask=None, **options):
            if attention_mask is not None:
                raise NotImplementedError("masks of two dimensions")
            return inner(input_ids, **options)

        return run

    with pytest.raises(ValueError, match="padded batch, NotImplementedError: masks of two dim") as caught:
        probe_reuse(with_forward(in_a_batch), name="odd")
    assert isinstance(caught.value.__cause__, NotImplementedError)


def test_out_of_memory_is_not_called_anything_else():
    def forward(inner):
        def run(input_ids, attention_mask=None, **options):
            if attention_mask is not None:
                raise torch.OutOfMemoryError("no memory")
            return inner(input_ids, **options)

        return run

    with pytest.raises(torch.OutOfMemoryError):
        probe_reuse(with_forward(forward))


def test_a_swallowed_cache_is_noticed(caplog):
    """Otherwise every step would see only its new ids."""

    def forward(inner):
        def run(input_ids, attention_mask=None, position_ids=None, logits_to_keep=0, use_cache=None, **_):
            return inner(input_ids, attention_mask=attention_mask, position_ids=position_ids)

        return run

    with caplog.at_level(logging.WARNING):
        assert probe_reuse(with_forward(forward), name="odd") == "recompute"
    assert "odd (LlamaForCausalLM): its cache cannot be cut back" in caplog.text


def test_the_cache_goes_by_the_name_that_the_forward_knows():
    newest = tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 24)
    assert cache_argument(make()) == ("cache" if newest else "past_key_values")

    class Old(torch.nn.Module):
        def forward(self, input_ids, past_key_values=None, **_): ...

    class Wrapper(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, *arguments, **options): ...

    class New(torch.nn.Module):
        def forward(self, input_ids, cache=None, past_key_values=None): ...

    assert cache_argument(Old()) == "past_key_values"
    assert cache_argument(Wrapper(Wrapper(Old()))) == "past_key_values"
    assert cache_argument(Wrapper(New())) == "cache"
    assert cache_argument(torch.compile(make())) == cache_argument(make())
