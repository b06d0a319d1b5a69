"""What the benchmark of written code counts as a function that compiles, by hand."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "real_models" / "code_prompts.py"
PROMPT = "def f(a):\n"


@pytest.fixture(scope="module")
def script():
    before = [*sys.path]
    spec = importlib.util.spec_from_file_location("code_prompts", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path[:] = before
    return module


@pytest.mark.parametrize(
    ("answer", "finished", "kept"),
    [
        ("    return a\n\n\ndef g():\n    pass", False, ["    return a", "", ""]),  # up to the next function
        ("    return a", True, ["    return a"]),
        ("    b = 1\n    retur", False, ["    b = 1"]),  # cut off inside a line
        ("    b = f(\n        1,\n    c", False, []),  # and inside a bracket
        ('    b = 1\n    """Text\n    more', False, ["    b = 1"]),  # and inside a string
        ("    if a:\n  return\n    b", False, ["    if a:", "  return"]),  # wrong, and not for being cut off
        ("print(f(1))\n", False, []),  # nothing of the function
        ("", True, [""]),
    ],
)
def test_the_lines_of_a_function(script, answer, finished, kept):
    assert script.kept_lines(PROMPT, answer, finished) == kept


def test_the_rest_of_the_prompts_last_line_belongs_to_it(script):
    assert script.kept_lines("def f(a", "):\n    return a\nprint()", False) == ["):", "    return a"]


@pytest.mark.parametrize(
    ("lines", "compiles", "regular"),
    [
        (["    return a"], True, True),
        (["   return a"], True, False),  # Python takes it
        (["    if a:", "        return a", "   return 0"], False, False),
        (["    if a:", "    return a"], False, True),
        (["\treturn a"], True, False),
        (["    return a", ""], True, True),
    ],
)
def test_verdicts(script, lines, compiles, regular):
    assert script.compiles(PROMPT + "\n".join(lines) + "\n") is compiles
    assert script.is_regular(lines) is regular
