"""The notebook runs from top to bottom on the bundled models, and shows what its text says."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

PATH = Path(__file__).resolve().parent.parent / "docs" / "notebooks" / "first_steps.ipynb"


@pytest.fixture(scope="module")
def cells(tmp_path_factory) -> list[nbformat.NotebookNode]:
    """The notebook's cells after a run in a kernel of its own."""
    notebook = nbformat.read(PATH, as_version=4)
    folder = tmp_path_factory.mktemp("notebook")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",  # the models are so small that threads only wait for each other
        "IPYTHONDIR": str(folder),
        "JUPYTER_RUNTIME_DIR": str(folder),
    }
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}})
    client.execute(env=environment)
    return notebook.cells


def printed(cell: nbformat.NotebookNode) -> str:
    return "".join(o.text for o in cell.outputs if o.output_type == "stream" and o.name == "stdout")


def test_together_is_right_where_one_is_wrong(cells):
    [said] = [printed(c) for c in cells if c.cell_type == "code" and "together = " in c.source]
    lines = said.splitlines()
    assert lines[-1].endswith("The answer is 52.")
    assert not all(line.endswith("The answer is 52.") for line in lines[:-1])


def test_a_trace_shows_its_page(cells):
    [shown] = [c.outputs for c in cells if c.cell_type == "code" and c.source.startswith("trace = ")]
    assert any("<iframe" in o.get("data", {}).get("text/html", "") for o in shown)


def test_the_ensemble_is_ahead(cells):
    [shown] = [c.outputs for c in cells if c.cell_type == "code" and c.source.endswith("scores")]
    [scores] = [eval(o.data["text/plain"]) for o in shown if o.output_type == "execute_result"]
    assert scores["together"] > max(value for name, value in scores.items() if name != "together")


def test_no_outputs_are_kept():
    """They would differ from machine to machine, and a trace's page is large."""
    notebook = nbformat.read(PATH, as_version=4)
    nbformat.validate(notebook)
    assert all(not c.outputs and c.execution_count is None for c in notebook.cells if c.cell_type == "code")
