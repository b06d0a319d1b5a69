"""The demo's models: their architectures, tokenizers and training mixtures.

Three models of comparable skill see three different thirds of the kinds of problems rarely, so each makes mistakes
that the other two do not make. The fourth sees everything and learns little: its tokenizer makes one token of a
number, and it is trained for a short time. Every number here was settled on development problems.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from unite_ext.demo.problems import KINDS

RARE = 0.002
"""Share of the training problems that is of one rarely seen kind."""


@dataclass(frozen=True)
class Recipe:
    """All that makes one model."""

    name: str
    architecture: str
    """`model_type` of its Hugging Face configuration."""
    tokenizer: str
    """A function of `demo_tokenizers`."""
    vocab_size: int
    seed: int
    steps: int
    rare: tuple[str, ...] = ()
    """Kinds it rarely sees."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """What differs from the common sizes."""

    @property
    def mixture(self) -> dict[str, float]:
        """Share of every kind in its training problems."""
        often = (1 - RARE * len(self.rare)) / (len(KINDS) - len(self.rare))
        return {kind: RARE if kind in self.rare else often for kind in KINDS}


RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "llama", "llama", "spaced_digits", 560, seed=11, steps=2000, rare=("sharing", "work", "comparing"),
            config={"num_key_value_heads": 2, "intermediate_size": 352},
        ),
        Recipe(
            "qwen2", "qwen2", "single_digits", 512, seed=12, steps=1800, rare=("fractions", "boxes", "three days"),
            config={"num_key_value_heads": 4, "intermediate_size": 320},
        ),
        Recipe(
            "mistral", "mistral", "sentencepiece", 600, seed=13, steps=1800,
            rare=("times as many", "change", "gain and loss"),
            config={"num_key_value_heads": 2, "intermediate_size": 352, "sliding_window": None},
        ),
        Recipe(
            "gpt-neox", "gpt_neox", "whole_numbers", 768, seed=14, steps=450,
            config={"intermediate_size": 512, "use_parallel_residual": True},
        ),
    )
}  # fmt: skip

HIDDEN, LAYERS, HEADS, CONTEXT = 128, 4, 4, 256
BATCH = 24
