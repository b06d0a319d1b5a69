"""docs/methods.md: every method is on it, its code runs, its tables are those of the CSV files."""

from __future__ import annotations

import csv
import re
from pathlib import Path

from unite_ext.methods.registry import METHODS, TOKEN_METHODS

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")


def test_every_method_is_listed_with_its_file():
    rows = re.findall(r"^\| `([\w-]+)` \|.*\| `(\S+)` \|$", PAGE, re.MULTILINE)
    assert [name for name, _ in rows] == list(METHODS)
    assert all((ROOT / "unite_ext" / file).is_file() for _, file in rows)


def test_its_code_runs():
    block, *_ = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    scope: dict = {}
    exec(compile(block, "docs/methods.md", "exec"), scope)
    assert scope["text"]
    assert scope["same_models"]


def test_its_figures_are_the_measured_ones():
    with (ROOT / "benchmarks" / "results" / "demo_methods.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file)]
    newest = {row["name"]: row for row in rows}
    assert newest.keys() >= TOKEN_METHODS.keys()
    for name, row in newest.items():
        shown = f"{float(row['accuracy']):.1f} % ({float(row['low']):.1f}–{float(row['high']):.1f})"
        assert re.search(rf"^\| `{name}`( alone)? \| {re.escape(shown)} \|", PAGE, re.MULTILINE), name
