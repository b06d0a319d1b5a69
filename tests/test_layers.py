"""Imports between packages point one way, without circles, and private names stay in their file."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NAME = "unite_ext"
CSRC = ROOT / "csrc"

LEAVES = {"_checks", "_core", "_host", "_jsonl", "_launch", "_memory", "_text", "exchange"}
OPERATORS = {"ops", "step_parts", "step_result"}
BELOW = {
    *LEAVES,
    *OPERATORS,
    "_backend",
    "decoding",
    "members",
    "methods",
    "options",
    "reference",
    "structured",
    "trace",
    "vocab",
}

# What a package or a file at the top may import beside itself. "members.base" is that file alone.
# Imports for annotations count, too: whoever names a class in a signature knows it.
ALLOWED = {
    "_arguments": {"_checks", "_core", "vocab"},
    "_checks": {"_core"},
    "_memory": set(),
    "_core": {"_host"},
    "_jsonl": set(),
    "_launch": set(),
    "_text": set(),
    "exchange": set(),
    "_backend": LEAVES,
    "vocab": LEAVES,
    "structured": {*LEAVES, "vocab"},
    "options": {*LEAVES, "structured", "vocab"},
    "step_result": {*LEAVES, "vocab"},
    "reference": {*LEAVES, "step_result", "vocab"},
    "reference_exact": set(),
    "ops": {*LEAVES, "_arguments", "_backend", "options", "step_parts", "step_result", "vocab"},
    "step_parts": {*LEAVES, "_arguments", "_backend", "options", "step_result", "vocab"},
    "members": {*LEAVES, *OPERATORS, "_backend", "options", "vocab"},
    "methods": {*LEAVES, *OPERATORS, "options", "reference", "vocab", "members.base"},
    "trace": LEAVES,
    "selection": LEAVES,
    "decoding": BELOW,
    "testing": {*LEAVES, *OPERATORS, "members", "options", "vocab"},
    "demo": {*BELOW, "selection", NAME},
    "harness": {*BELOW, "selection", NAME},
    "serve": {*BELOW, "selection", NAME},
    "cli": {*BELOW, "demo", "harness", "selection", "serve", "testing", NAME},
    "__main__": {"cli"},
    NAME: {*BELOW, "selection"},  # what the package exports
}

NAMED_TUPLE = {"_asdict", "_fields", "_make", "_replace"}  # public, in spite of their names


def modules() -> dict[str, Path]:
    """Every file of the package by its dotted name below the package; the package itself by its own."""
    found = {}
    for path in sorted((ROOT / NAME).rglob("*.py")):
        parts = path.relative_to(ROOT / NAME).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        found[".".join(parts) or NAME] = path
    return found


MODULES = modules()
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def imports(name: str) -> Iterator[tuple[str, str | None]]:
    """Every import of ours in a file, late ones and those for annotations included: the file, and the name in it."""
    path, package = MODULES[name], [] if name == NAME else name.split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name == NAME or alias.name.startswith(f"{NAME}."):
                    yield alias.name.removeprefix(f"{NAME}.") or NAME, None
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                parts = package[: len(package) + 1 - node.level]
            elif node.module and node.module.split(".")[0] == NAME:
                parts = []
            else:
                continue
            given = (node.module or "").split(".") if node.module else []
            parts = parts + (given if node.level else given[1:])
            for alias in node.names:
                whole = ".".join([*parts, alias.name])
                # `from .. import _backend` imports a file, `from .. import __version__` a name of the package.
                yield (whole, None) if whole in MODULES or whole == "_host" else (".".join(parts) or NAME, alias.name)


def layer(name: str) -> str:
    return name.split(".")[0]


def test_the_table_is_that_of_the_files():
    """Every package and file at the top has a line in the table. Lines may be for packages that do not exist yet."""
    assert {layer(name) for name in MODULES} <= ALLOWED.keys()
    for name, allowed in ALLOWED.items():
        assert {layer(a) for a in allowed} <= {*ALLOWED, "_host"}, name


def test_the_table_has_no_circle():
    graph = {name: {layer(a) for a in allowed} & ALLOWED.keys() - {name} for name, allowed in ALLOWED.items()}
    graph[NAME] = set()  # it only exports
    assert circles(graph) == set()


def test_imports_follow_the_table():
    found = {
        (name, target)
        for name in MODULES
        for target, _ in imports(name)
        if layer(target) != layer(name) and not {layer(target), target} & ALLOWED[layer(name)]
    }
    assert found == set(), "imports that the table does not allow"


def test_nobody_imports_what_stands_above():
    """The same for those that the table could be widened for by mistake."""
    above = {"cli", "demo", "harness", "serve"}
    for name in MODULES:
        if layer(name) not in (*above, "__main__"):
            assert not {layer(target) for target, _ in imports(name)} & above, name


def test_files_import_in_no_circle():
    graph = {name: {target for target, _ in imports(name)} - {name} for name in MODULES}
    assert circles(graph) == set(), "circles of imports"


def circles(graph: dict[str, set[str]]) -> set[frozenset[str]]:
    """Sets of nodes that all reach each other."""
    reach = {node: set(targets) for node, targets in graph.items()}
    for middle in graph:
        for node in graph:
            if middle in reach[node]:
                reach[node] |= reach[middle]
    return {
        frozenset(other for other in graph if other in reach[node] and node in reach[other])
        for node in graph
        if node in reach[node]
    }


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_" and name not in NAMED_TUPLE


def private_uses(name: str) -> Iterator[str]:
    """Private names that a file takes from others: imported, or as attributes that nothing in it defines."""
    for _, what in imports(name):
        if what and private(what):
            yield what
    defined = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            defined.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            defined.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_own(node):
            defined.add(node.attr)
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Attribute) and private(node.attr) and node.attr not in defined:
            yield node.attr


def is_own(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def test_private_names_stay_in_their_file():
    found = {(name, used) for name in MODULES for used in private_uses(name)}
    assert found == set(), "private names of other files"


# The tests see what they should


def test_late_and_typed_imports_are_seen(monkeypatch):
    text = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from ..vocab.alignment import VocabAlignment
def f():
    from ..cli import select
    from .. import __version__, _text
    import unite_ext.demo.run
    from unite_ext.trace import Trace
    from ..vocab.alignment import _fill
    other._hidden
    self._also_hidden
    step._replace(x=1)
class C:
    def __init__(self):
        self._mine = 1
    def g(self, other):
        return other._mine
"""
    monkeypatch.setitem(MODULES, "ops.invented", ROOT / NAME / "ops" / "invented.py")
    monkeypatch.setitem(TREES, "ops.invented", ast.parse(text))
    assert set(imports("ops.invented")) == {
        ("vocab.alignment", "VocabAlignment"), ("cli.select", None), (NAME, "__version__"), ("_text", None),
        ("demo.run", None), ("trace", "Trace"), ("vocab.alignment", "_fill"),
    }  # fmt: skip
    assert set(private_uses("ops.invented")) == {"_fill", "_hidden", "_also_hidden"}
    for test in (test_imports_follow_the_table, test_private_names_stay_in_their_file):
        with pytest.raises(AssertionError, match=r"ops\.invented"):
            test()
    monkeypatch.setitem(TREES, "ops.invented", ast.parse("from . import other"))
    monkeypatch.setitem(MODULES, "ops.other", ROOT / NAME / "ops" / "other.py")
    monkeypatch.setitem(TREES, "ops.other", ast.parse("def f():\n    from .invented import g"))
    with pytest.raises(AssertionError, match="circles of imports"):
        test_files_import_in_no_circle()


# C++: csrc/{cpu,cuda} -> core -> the standard library

C_SOURCES = {
    path.relative_to(CSRC).as_posix(): path.read_text(encoding="utf-8")
    for path in sorted(CSRC.rglob("*"))
    if path.suffix in (".h", ".cpp", ".cu", ".cuh")
}
C_ALLOWED = {
    "core": {"core"},
    "cpu": {"core", "cpu", "."},
    "cuda": {"core", "cuda", "."},
    "host": {"core", "host"},
    ".": {"core", "."},  # ops.cpp and what both kernels' bindings share: no kernel
}
EMULATOR = "cuda_emu.h"  # compat.cuh reads it in place of CUDA's headers where the tests run kernels on the CPU


def c_includes(name: str) -> Iterator[tuple[str, bool]]:
    """What a file includes: a file below csrc, or a header of others, and whether it is ours."""
    for quote, target in re.findall(r'^[ \t]*#[ \t]*include[ \t]*([<"])([^>"]+)[>"]', C_SOURCES[name], re.MULTILINE):
        if quote == "<":
            yield target, False
            continue
        beside = ((CSRC / name).parent / target).resolve()
        found = next((p for p in (beside, CSRC / target) if p.is_relative_to(CSRC) and p.exists()), None)
        if found is None:
            assert target == EMULATOR, f"{name} includes {target}, which is not below csrc"
        else:
            yield found.relative_to(CSRC).as_posix(), True


def c_layer(name: str) -> str:
    return name.split("/")[0] if "/" in name else "."


@pytest.mark.parametrize("name", C_SOURCES)
def test_c_includes_follow_the_table(name):
    for target, ours in c_includes(name):
        if ours:
            assert c_layer(target) in C_ALLOWED[c_layer(name)], target
        elif c_layer(name) == "core":
            # The standard library's headers have neither folder nor ending; torch's and CUDA's have.
            assert re.fullmatch(r"[a-z_0-9]+", target), f"core includes <{target}>"
        elif c_layer(name) == "cpu" or name == "ops.cpp":
            assert not re.match(r"cuda|cub/|thrust/", target), f"{name} includes <{target}>"


def test_c_files_include_in_no_circle():
    graph = {name: {target for target, ours in c_includes(name) if ours} for name in C_SOURCES}
    assert circles(graph) == set()
