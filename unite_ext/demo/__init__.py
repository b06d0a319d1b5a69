"""Four small models that ship with the package, and the demo that runs them.

They work short word problems from the grammar in `problems`. `COMPARABLE` names the three that are worth ensembling,
best first on development problems, `WEAK` the one that is not. Nothing is downloaded.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..members.transformers import Member

COMPARABLE = ("qwen2", "mistral", "llama")
"""The members worth ensembling, best on development problems first."""
WEAK = "gpt-neox"
"""The one to refuse."""
MODELS = (*COMPARABLE, WEAK)

__all__ = ["COMPARABLE", "MODELS", "WEAK", "load_member", "model_folder"]


def model_folder(name: str) -> Path:
    """The folder of one of `MODELS`, for `AutoModelForCausalLM` and `AutoTokenizer`."""
    if name not in MODELS:
        raise ValueError(f"name must be one of {', '.join(MODELS)}, got {name!r}")
    return Path(str(resources.files(__name__) / "models" / name))


def load_member(name: str, folder: Path | None = None) -> Member:
    """One of `MODELS`, or a model of the same name in another folder, ready for a `UniteEnsemble`."""
    from ..members.transformers import Member

    member = Member.from_pretrained(str(folder or model_folder(name)), local_files_only=True)
    member.name = name
    return member
