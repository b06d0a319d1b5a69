"""Four small models that ship with the package, and the demo that runs them.

The models solve short word problems from the grammar in `problems`. Nothing is downloaded.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..members.transformers import Member

COMPARABLE = ("qwen2", "mistral", "llama")
"""The three models of similar accuracy, the best on development problems first."""
WEAK = "gpt-neox"
"""The model that an ensemble loses from."""
MODELS = (*COMPARABLE, WEAK)

CHAT_TEMPLATE = (
    "{% set asked = messages | selectattr('role', 'equalto', 'user') | list %}"
    "{{ asked[-1]['content'] | trim if asked }}\n"
    "{% if messages[-1]['role'] == 'assistant' %}{{ messages[-1]['content'] }}{% endif %}"
)
"""Writes the last question as `problems.prompt_of` does: the models have learnt single questions, and no chats."""

__all__ = ["CHAT_TEMPLATE", "COMPARABLE", "MODELS", "WEAK", "load_member", "model_folder"]


def model_folder(name: str) -> Path:
    """The folder of one of `MODELS`, for `AutoModelForCausalLM` and `AutoTokenizer`."""
    if name not in MODELS:
        raise ValueError(f"name must be one of {', '.join(MODELS)}, got {name!r}")
    return Path(str(resources.files(__name__) / "models" / name))


def load_member(name: str, folder: Path | None = None, *, chat_template: str | None = None) -> Member:
    """Load one of `MODELS`, or a model of the same name in another folder, as a member of an ensemble."""
    from ..members.transformers import Member

    place = str(folder or model_folder(name))
    member = Member.from_pretrained(place, local_files_only=True, chat_template=chat_template)
    member.name = name
    return member
