"""What tests of code that builds on this package need: synthetic steps, a comparison of steps, recorded members.

For a backend's author (docs/backend.md shows it at work):

- `synthetic_alignment` and `make_logits` make a step's arguments from a seed, without tokenizers or models, awkward
  values included; `alignment_from_classes` makes an alignment that is known id by id.
- `step_in_parts` takes a step by the five functions of `unite_ext.step_parts`, or by others of the same names.
- `assert_same_step` compares two results as far as they have to agree, `assert_bitwise_equal` bit by bit.

For the author of a kind of member (docs/extending.md): `Recorder` and `RecordedMember`.
"""

from .members import RecordedMember, Recorder
from .steps import (
    ATOL,
    LOGIT_KINDS,
    alignment_from_classes,
    assert_bitwise_equal,
    assert_same_step,
    make_logits,
    step_in_parts,
    synthetic_alignment,
)

__all__ = [
    "ATOL",
    "LOGIT_KINDS",
    "RecordedMember",
    "Recorder",
    "alignment_from_classes",
    "assert_bitwise_equal",
    "assert_same_step",
    "make_logits",
    "step_in_parts",
    "synthetic_alignment",
]
