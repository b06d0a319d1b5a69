"""`import unite_ext` and `unite --help` load nothing that is not used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import unite_ext

TESTS = Path(__file__).resolve().parent


def run(code: str) -> str:
    """What a new interpreter prints; in this folder, so that it imports the package that the tests import."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=TESTS)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"], ["demo", "--help"]])
def test_help_needs_no_torch(arguments):
    code = f"""
import sys
sys.argv = ["unite", *{arguments}]
from unite_ext.cli import app
try:
    app()
finally:
    print("loaded:", *sys.modules.keys() & {{"torch", "transformers", "tokenizers", "numpy", "lm_eval"}})
"""
    said, loaded = run(code).split("loaded:")
    assert "Usage" in said
    assert loaded.split() == []


def test_names_are_found_on_first_use():
    run(
        """
import sys
import unite_ext
assert "torch" not in sys.modules
assert {*unite_ext.__all__, "__version__"} <= set(dir(unite_ext))
assert unite_ext.reference.__name__ == "unite_ext.reference"
for name in unite_ext.__all__:
    value = getattr(unite_ext, name)
    assert name == "__version__" or value.__name__ == name, name
    assert vars(unite_ext)[name] is value
import torch
assert torch.ops.unite_ext.fused_step
"""
    )


def test_unknown_names_are_refused():
    with pytest.raises(AttributeError, match="module 'unite_ext' has no attribute 'unite_stepp'"):
        _ = unite_ext.unite_stepp
    with pytest.raises(ImportError, match="unite_stepp"):
        from unite_ext import unite_stepp  # noqa: F401
    assert not hasattr(unite_ext, "__wrapped__")


def test_a_broken_submodule_is_not_called_unknown():
    code = "import sys, unite_ext; sys.modules['typer'] = None; unite_ext.cli.select"  # as if it were not installed
    with pytest.raises(AssertionError, match="ModuleNotFoundError: import of typer"):
        run(code)
