"""Every Python block of the README and of docs/ runs, with small models instead of the named ones; commands parse.

In a page with `<!-- blocks continue` the blocks are one program, and a text block after one is what it prints.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import toy_tokenizers
import typer
from toy_models import toy_model

from unite_ext.cli import app
from unite_ext.trace import DECISIONS, Trace, TraceStep

ROOT = Path(__file__).resolve().parent.parent
NAMED = ("Qwen/Qwen2-1.5B-Instruct", "HuggingFaceTB/SmolLM2-1.7B-Instruct")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
CONTINUED = [path for path in PAGES if "<!-- blocks continue" in path.read_text()]
BLOCKS = [
    pytest.param(match[1], id=f"{path.relative_to(ROOT)}:{path.read_text()[: match.start()].count(chr(10)) + 1}")
    for path in PAGES
    if path not in CONTINUED
    for match in re.finditer(r"```python\n(.*?)```", path.read_text(), re.DOTALL)
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """The folder of a small model for each model that the documents name."""
    found = {}
    for name, kind, tokenizer in zip(
        NAMED, ("llama", "mistral"), (toy_tokenizers.byte_level(), toy_tokenizers.sentencepiece())
    ):
        folder = tmp_path_factory.mktemp(kind)
        toy_model(kind, tokenizer).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        found[name] = str(folder)
    return found


@pytest.mark.parametrize("block", BLOCKS)
def test_block_runs(block, folders, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some write files
    for name, folder in folders.items():
        block = block.replace(name, folder)
    exec(compile(block, "document", "exec"), {"__name__": "document"})


@pytest.mark.parametrize("path", CONTINUED, ids=lambda path: path.name)
def test_page_prints_what_it_shows(path, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "document"}
    blocks = re.findall(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```)?", path.read_text(), re.DOTALL)
    assert sum(bool(shown) for _, shown in blocks) > 1
    capsys.readouterr()
    for block, shown in blocks:
        exec(compile(block, path.name, "exec"), names)
        assert capsys.readouterr().out == shown, block


COMMANDS = [
    pytest.param(shlex.split(command, comments=True), id=f"{path.name}: {command[:60]}")
    for path in PAGES
    for block in re.findall(r"```(?:bash|console)\n(.*?)```", path.read_text(), re.DOTALL)
    for command in re.split(r"\n|&&", block.strip())
]


@pytest.mark.parametrize("command", COMMANDS)
def test_command_exists(command, tmp_path):
    """Every shell command has the options that the documents give it; the README's own are run where tests begin."""
    if command[0] == "unite":
        group = typer.main.get_command(app)
        name, parser, arguments = group.resolve_command(group.context_class(group), command[1:])
        parser.make_context(name, list(arguments))  # parses, and runs nothing
    elif command[0] == "python":
        program, options = (
            (command[1:3], command[3:]) if command[1] == "-m" else ([str(ROOT / command[1])], command[2:])
        )
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        known = subprocess.run(
            [sys.executable, *program, "--help"],
            capture_output=True,
            text=True,
            env=environment,
            cwd=tmp_path,  # not the source folder, whose package may lack its compiled modules
        )
        assert known.returncode == 0, known.stderr
        for option in (a for a in options if a.startswith("--")):
            assert option in known.stdout
    else:
        assert command[0] in ("pip", "pytest")


def test_shell_blocks_say_so():
    """Every code block names its language; otherwise no test would read it."""
    for path in PAGES:
        fences = re.findall(r"^```(\w*)$", path.read_text(), re.MULTILINE)
        assert set(fences[::2]) <= {"bash", "console", "python", "bibtex", "text"}, path.name
        assert set(fences[1::2]) <= {""}, path.name


def test_the_api_is_documented():
    import unite_ext

    table = (ROOT / "docs" / "backend.md").read_text()
    for name in unite_ext.__all__:
        if name != "__version__":
            assert f"`{name}`" in table, name
            assert getattr(unite_ext, name).__doc__


def test_the_fields_of_a_trace_are_documented():
    page = (ROOT / "docs" / "traces.md").read_text()
    for kind in (Trace, TraceStep):
        for field in dataclasses.fields(kind):
            assert f"`{field.name}`" in page, field.name
    for decided in DECISIONS:
        assert f"| `{decided}` |" in page


def test_tables_are_those_of_the_csv_files():
    command = [sys.executable, ROOT / "benchmarks" / "lib" / "tables.py", "--check"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
