"""UNITE: several language models of different families decode together.

`VocabAlignment` relates the members' vocabularies by bytes; `unite_step` takes one row of logits per model and gives
every model's next id. `unite_ext.reference` states the same in plain PyTorch.
"""

from importlib.metadata import PackageNotFoundError, version

from .alignment import VocabAlignment
from .ensemble import UniteEnsemble
from .generation import GenerateOutput, GenerationOptions, StepTrace, TextStream
from .member import Member
from .ops import step_workspace, unite_step
from .reference import StepResult
from .selection import ModelScore, Selection, select_models
from .trace import Trace
from .vocab import Vocabulary

try:
    __version__ = version("unite_ext")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "unknown"

__all__ = [
    "GenerateOutput",
    "GenerationOptions",
    "Member",
    "ModelScore",
    "Selection",
    "StepResult",
    "StepTrace",
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
