"""The documentation site builds without a warning, shows every public name, and loads nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import unite_ext
from unite_ext.methods.registry import METHODS, method_class

ROOT = Path(__file__).resolve().parent.parent
pytest.importorskip("mkdocs", reason="the site needs pip install 'unite_ext[docs]'")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The folder of the built site. A warning is an error: dead links, names that are not found, pages out of reach."""
    folder = tmp_path_factory.mktemp("site")
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def anchors(site) -> set[str]:
    """What can be linked to in the API reference."""
    pages = (site / "api").rglob("index.html")
    return {anchor for page in pages for anchor in re.findall(r'id="(unite_ext[\w.]+)"', page.read_text())}


def test_every_public_name_has_its_place(anchors):
    for module in (unite_ext, unite_ext.testing, unite_ext.trace):
        for name in module.__all__:
            value = getattr(module, name)
            if callable(value):
                places = {f"{where}.{name}" for where in ("unite_ext", module.__name__, value.__module__)}
                assert places & anchors, name
    for name in METHODS:
        assert f"{method_class(name).__module__}.{method_class(name).__name__}" in anchors


def test_methods_of_public_classes_have_theirs(anchors):
    """Which also says that they have a docstring, or a line in their class's: the site leaves others out."""
    for name in unite_ext.__all__:
        value = getattr(unite_ext, name)
        if isinstance(value, type):
            own = {n for n, v in vars(value).items() if not n.startswith("_") and (callable(v) or hasattr(v, "fget"))}
            missing = {n for n in own if not {f"unite_ext.{name}.{n}", f"{value.__module__}.{name}.{n}"} & anchors}
            assert {n for n in missing if not re.search(rf"^    {n} : ", value.__doc__, re.MULTILINE)} == set(), name


def test_nothing_is_loaded_from_elsewhere(site):
    outside = re.compile(r'<(?:script|img|iframe|link)\b[^>]*?\b(?:src|href)="?(https?:[^">\s]+)')
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    assert {str(page): found for page in pages if (found := outside.findall(page.read_text()))} == {}
