"""The constants of csrc/core, which states them; needs no torch."""

from __future__ import annotations

from pathlib import Path

try:
    from ._host import (
        BAD_INCLUDE,
        EOS_CLASS,
        FIRST_SUB_TOKEN,
        ID_BITS,
        ID_MASK,
        MAX_K,
        MAX_LOG2_CAPACITY,
        MAX_MEMBERS,
        MAX_PROBES,
        MAX_WALK,
        NO_CLASS,
        NO_ID,
    )
except ImportError as error:
    raise ImportError(
        f"unite_ext's compiled module _host does not load from {Path(__file__).parent}. If this is a source checkout, "
        "install it and run Python from another folder; else rebuild it with: "
        "pip install --no-build-isolation --force-reinstall --no-deps <path to unite_ext>"
    ) from error

__all__ = [
    "BAD_INCLUDE",
    "EOS_CLASS",
    "FIRST_SUB_TOKEN",
    "ID_BITS",
    "ID_MASK",
    "MAX_K",
    "MAX_LOG2_CAPACITY",
    "MAX_MEMBERS",
    "MAX_PROBES",
    "MAX_WALK",
    "NO_CLASS",
    "NO_ID",
]
