"""Every Python block of the README and of docs/ runs, as written, on small models in place of the named ones."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import toy_tokenizers
from toy_models import toy_model

ROOT = Path(__file__).resolve().parent.parent
NAMED = ("Qwen/Qwen2-1.5B-Instruct", "HuggingFaceTB/SmolLM2-1.7B-Instruct")
BLOCKS = [
    pytest.param(match[1], id=f"{path.relative_to(ROOT)}:{path.read_text()[: match.start()].count(chr(10)) + 1}")
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    for match in re.finditer(r"```python\n(.*?)```", path.read_text(), re.DOTALL)
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """Where a small model lies for each that the documents name."""
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


def test_the_api_is_documented():
    import unite_ext

    table = (ROOT / "docs" / "backend.md").read_text()
    for name in unite_ext.__all__:
        if name != "__version__":
            assert f"`{name}`" in table, name
            assert getattr(unite_ext, name).__doc__


def test_tables_are_those_of_the_csv_files():
    command = [sys.executable, ROOT / "benchmarks" / "tables.py", "--check"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
