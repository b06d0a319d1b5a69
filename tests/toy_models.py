"""Tiny causal language models with random weights, for any tokenizer. Their logits are spread as a trained model's."""

from __future__ import annotations

import functools
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Qwen2Config,
)

KINDS: dict[str, tuple[type, dict[str, Any]]] = {
    "llama": (LlamaConfig, {"num_key_value_heads": 2}),
    "qwen2": (Qwen2Config, {"num_key_value_heads": 2}),
    "mistral": (MistralConfig, {"num_key_value_heads": 2, "sliding_window": None}),
    "mistral-window": (MistralConfig, {"num_key_value_heads": 2, "sliding_window": 8}),
    "gpt-neox": (GPTNeoXConfig, {}),
    "gemma2": (Gemma2Config, {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8}),
    "mixtral": (MixtralConfig, {"num_key_value_heads": 2, "num_local_experts": 4}),
}


def toy_model(
    kind: str, tokenizer: Any, *, seed: int = 0, padding: int = 0, context: int = 4096, **overrides: Any
) -> Any:
    """A model of two layers for `tokenizer`, its EOS ids set to the tokenizer's; `padding` more logits than ids."""
    config_class, options = KINDS[kind]
    eos = tokenizer.eos_token_id
    config = config_class(
        vocab_size=len(tokenizer) + padding,
        hidden_size=32,
        intermediate_size=64,
        num_attention_heads=4,
        max_position_embeddings=context,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=eos,
        pad_token_id=None,
        tie_word_embeddings=False,
        **{"num_hidden_layers": 2, **options, **overrides},
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                torch.nn.init.normal_(weight, std=0.7 if "embed" in name or "head" in name else 0.25)
    model.generation_config.eos_token_id = eos
    return model


@functools.lru_cache(maxsize=24)
def cached_toy_model(kind: str, load_tokenizer: Any, name: str, seed: int = 0) -> Any:
    """The same model on each call, for a tokenizer that `load_tokenizer(name)` gives."""
    return toy_model(kind, load_tokenizer(name), seed=seed, padding=5)
