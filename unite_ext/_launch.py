"""Whether a launcher such as torchrun has started this process as one of several; needs no torch."""

from __future__ import annotations

import os


def is_launched() -> bool:
    """Whether this is one of several processes that a launcher has started."""
    return os.environ.get("RANK", "").isdigit() and int(os.environ.get("WORLD_SIZE") or 1) > 1


def launched_rank() -> int:
    """Which of them; 0 where there is one."""
    return int(os.environ["RANK"]) if is_launched() else 0
