"""Copies of the CUDA source with exact replacements, for what tests need and the kernels must not contain."""

from __future__ import annotations

import shutil
from pathlib import Path

CSRC = Path(__file__).resolve().parent.parent / "csrc"


def copy_source(folder: Path) -> Path:
    """Copy csrc/core and csrc/cuda into `folder`, which replaces the repository."""
    for name in ("core", "cuda"):
        shutil.copytree(CSRC / name, folder / "csrc" / name)
    return folder


def replace_once(path: Path, old: str, new: str) -> None:
    """Replace the one place in a file where `old` stands; the test fails where there is none, or more than one."""
    text = path.read_text()
    found = text.count(old)
    assert found == 1, f"{path.name} must hold this once, got {found} times:\n{old}"
    path.write_text(text.replace(old, new))
