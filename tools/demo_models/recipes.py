"""The architectures, tokenizers and training mixtures of the demo's models.

Three models of similar accuracy rarely see a third of the kinds of problems each, so that each makes mistakes that the
other two do not make. The fourth sees all kinds but learns little: its tokenizer makes one token of a number, and its
training is short. Every number here was chosen on development problems.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from unite_ext.demo.problems import KINDS

RARE = 0.002
"""Share of a rarely seen kind in the training problems."""


@dataclass(frozen=True)
class Recipe:
    """How one model is made."""

    name: str
    architecture: str
    """`model_type` of its Hugging Face configuration."""
    tokenizer: str
    """A function of `demo_tokenizers`."""
    vocab_size: int
    seed: int
    steps: int
    rare: tuple[str, ...] = ()
    """Kinds that are rare in training."""
    config: Mapping[str, object] = field(default_factory=dict)
    """Settings of the configuration beside the common sizes."""

    @property
    def mixture(self) -> dict[str, float]:
        """Share of every kind in the training problems."""
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
