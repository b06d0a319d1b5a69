"""The linters and the type checker pass, and files hold one idea each."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [
    path
    for folder in ("csrc", "unite_ext", "benchmarks", "tests")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in (".py", ".cpp", ".h", ".cu", ".cuh") and "build" not in path.parts
]


def tool(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        pytest.skip(f"{name} is not installed: pip install '.[test]'")
    return found


@pytest.mark.parametrize("arguments", [("check",), ("format", "--check")])
def test_ruff(arguments):
    result = subprocess.run([tool("ruff"), *arguments, "."], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_clang_format():
    files = [str(path) for path in SOURCES if path.suffix != ".py"]
    result = subprocess.run(
        [tool("clang-format"), "--dry-run", "-Werror", *files], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


def test_mypy():
    """The package is typed, and tests/typed shows what a program that uses it sees."""
    pytest.importorskip("mypy", reason="mypy is not installed: pip install '.[test]'")
    # Of this interpreter, so that it finds what the package imports.
    result = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_files_stay_short():
    long = {
        str(p.relative_to(ROOT)): n
        for p in SOURCES
        if (n := len(p.read_text().splitlines())) > 400 and "tests" not in p.parts
    }
    assert not long


def test_the_reference_stays_short():
    assert len((ROOT / "unite_ext" / "reference.py").read_text().splitlines()) < 250
    assert len((ROOT / "setup.py").read_text().splitlines()) <= 100


def test_the_map_of_the_tests_is_complete():
    page = (ROOT / "tests" / "README.md").read_text()
    for path in sorted((ROOT / "tests").glob("*.py")):
        if path.name != "conftest.py":
            assert f"`{path.name}`" in page, path.name
