"""How members are called where a person reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath


def short_names(names: Sequence[str]) -> list[str]:
    """The last part of each path or Hugging Face name, where these differ."""
    short = [PurePath(name).name or name for name in names]
    return short if len(set(short)) == len(short) else list(names)
