"""Members with chat templates whose prompts end in a special token, for tests of the start state."""

from __future__ import annotations

from functools import cache
from typing import Any

import toy_tokenizers
from tokenizers import Tokenizer
from toy_models import toy_model
from transformers import PreTrainedTokenizerFast

from unite_ext import UniteEnsemble
from unite_ext.members.transformers import Member

OPEN, CLOSE, END = "[INST]", "[/INST]", "[END]"
DIRECT = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]"
    "{% else %}{{ m.content }}[END]{% endif %}{% endfor %}"
)
SPACED = DIRECT.replace("{% else %}{{ m.content }}", "{% else %} {{ m.content }}")
"""As Mistral v0.3's: a space before the answer."""
IN_TEXT = SPACED.replace("[INST]", "<s>Q:").replace("[/INST]", "\nA:")
"""As Llama-2's and Vicuna's: the prompt ends in text, and a space stands before the answer."""
HI = [{"role": "user", "content": "The quick 42"}]
TEMPLATES = {"direct": DIRECT, "spaced": SPACED, "in text": IN_TEXT}


def with_template(tokenizer: Any, template: str) -> PreTrainedTokenizerFast:
    """A copy of a tokenizer with a chat template, and the special tokens it writes."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.add_special_tokens([OPEN, CLOSE, END])
    names = {name: value for name, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    copied = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    copied.chat_template = template
    return copied


@cache
def chat_tokenizer(name: str, template: str = "direct") -> PreTrainedTokenizerFast:
    """One of `toy_tokenizers` with one of `TEMPLATES`."""
    return with_template(getattr(toy_tokenizers, name)(), TEMPLATES[template])


@cache
def member(name: str, template: str = "direct", seed: int = 0) -> Member:
    """A member with random weights and this tokenizer."""
    tokenizer = chat_tokenizer(name, template)
    kind = "llama" if name.startswith("byte") else "mistral"
    return Member(toy_model(kind, tokenizer, seed=seed), tokenizer, name=f"{name}-{seed}")


def ensemble(*members: tuple[str, str], **options: Any) -> UniteEnsemble:
    """Members of these tokenizers and templates."""
    return UniteEnsemble([member(name, template, seed) for seed, (name, template) in enumerate(members)], **options)
