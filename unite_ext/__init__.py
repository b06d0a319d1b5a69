"""UNITE: several language models of different families decode together.

`VocabAlignment` relates the members' vocabularies by bytes; `unite_step` takes one row of logits per model and gives
every model's next id. `unite_ext.reference` states the same in plain PyTorch.

The names here are imported on first use (PEP 562): `unite --help` need not wait for torch. The operators of
`torch.ops.unite_ext` are registered by whatever runs steps; for them alone, ``import unite_ext.ops``.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what type checkers and editors see
    from .decoding.engine import Engine
    from .decoding.ensemble import UniteEnsemble
    from .decoding.request import GenerateOutput, Request, StepRecord
    from .decoding.text_stream import TextStream
    from .members.base import BaseMember, MemberAway
    from .members.http import HttpMember
    from .members.transformers import Member
    from .ops import step_workspace, unite_step
    from .options import GenerationOptions, StepOptions
    from .selection.rule import ModelScore, Selection, select_models
    from .step_result import StepResult
    from .trace import Trace
    from .vocab.alignment import VocabAlignment
    from .vocab.vocabulary import Vocabulary

    __version__: str

__all__ = [
    "BaseMember",
    "Engine",
    "GenerateOutput",
    "GenerationOptions",
    "HttpMember",
    "Member",
    "MemberAway",
    "ModelScore",
    "Request",
    "Selection",
    "StepOptions",
    "StepRecord",
    "StepResult",
    "TextStream",
    "Trace",
    "UniteEnsemble",
    "VocabAlignment",
    "Vocabulary",
    "__version__",
    "select_models",
    "step_workspace",
    "unite_step",
]

_HOMES = {
    "BaseMember": "members.base",
    "Engine": "decoding.engine",
    "GenerateOutput": "decoding.request",
    "GenerationOptions": "options",
    "HttpMember": "members.http",
    "Member": "members.transformers",
    "MemberAway": "members.base",
    "ModelScore": "selection.rule",
    "Selection": "selection.rule",
    "Request": "decoding.request",
    "StepOptions": "options",
    "StepRecord": "decoding.request",
    "StepResult": "step_result",
    "TextStream": "decoding.text_stream",
    "Trace": "trace",
    "UniteEnsemble": "decoding.ensemble",
    "VocabAlignment": "vocab.alignment",
    "Vocabulary": "vocab.vocabulary",
    "select_models": "selection.rule",
    "step_workspace": "ops",
    "unite_step": "ops",
}
"""Name to the module that has it."""


if not TYPE_CHECKING:  # or any misspelt name would count as known

    def __getattr__(name: str) -> object:
        """A public name, the version, or a submodule; called only for what is not there yet."""
        if name == "__version__":
            value = _version()
        elif name in _HOMES:
            value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
        elif name.startswith("__"):  # Python asks for some of these
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        else:
            try:
                return import_module(f".{name}", __name__)
            except ModuleNotFoundError as error:
                if error.name != f"{__name__}.{name}":  # the submodule is there, something that it needs is not
                    raise
                raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("unite_ext")
    except PackageNotFoundError:  # a source tree that was never installed
        return "unknown"
