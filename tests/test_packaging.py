"""The source archive holds the whole project, an installation the package and nothing else."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
from pathlib import Path, PurePosixPath

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
HOSTING = (".ci/", ".devcontainer/", ".github/")  # of the repository, of no use in an archive
MADE = {"PKG-INFO", "setup.cfg"}
JUNK = {".so", ".pyc", ".pyo", ".o", ".log"}


def project_files() -> set[str]:
    """The files that git tracks; in an unpacked archive, all files in its folders."""
    if (ROOT / ".git").exists():
        git = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
        if git.returncode == 0:
            return {name for name in git.stdout.split("\0") if name and (ROOT / name).exists()}
    found = {path for path in ROOT.iterdir() if path.is_file()}
    for folder in ("csrc", "unite_ext", "tests", "benchmarks", "docs", "tools"):
        found |= {path for path in (ROOT / folder).rglob("*") if path.is_file()}
    names = {path.relative_to(ROOT).as_posix() for path in found if path.suffix not in JUNK}
    return {name for name in names if "__pycache__" not in name} - MADE


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A copy of the project with files that must not be in an archive."""
    copy = tmp_path_factory.mktemp("project")
    for name in project_files():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).symlink_to(ROOT / name)
    for name in ("unite_ext/_C.so", "unite_ext/__pycache__/x.pyc", "csrc/core/x.o", "build/lib/x.py", "tests/x.log"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text("junk")
    return copy


def setup(copy: Path, *arguments: str) -> None:
    result = subprocess.run(
        [sys.executable, "setup.py", "--quiet", *arguments], cwd=copy, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def archive(copy) -> set[str]:
    """The names in the source archive."""
    setup(copy, "sdist")
    [path] = (copy / "dist").glob("*.tar.gz")
    with tarfile.open(path) as tar:
        return {str(PurePosixPath(*PurePosixPath(m.name).parts[1:])) for m in tar.getmembers() if not m.isdir()}


def test_source_archive_is_complete(archive):
    missing = project_files() - {".gitignore"} - archive
    assert not {name for name in missing if not name.startswith(HOSTING)}


def test_source_archive_holds_nothing_else(archive):
    assert not {n for n in archive - project_files() - MADE if not n.startswith("unite_ext.egg-info/")}


def test_what_is_installed_is_the_package(copy):
    """Without the compiled modules, which `setup.py build_ext` adds."""
    setup(copy, "build_py", "--build-lib", "installed")
    folder = copy / "installed"
    installed = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert installed == {name for name in project_files() if name.startswith("unite_ext/")}


def test_one_version():
    """What to cite is the version of pyproject.toml."""
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    assert re.search(rf"^## {re.escape(version)}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_the_paper_is_cited_as_in_the_readme():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())["preferred-citation"]
    names = [f"{author['family-names']}, {author['given-names']}" for author in cited["authors"]]
    readme = (ROOT / "README.md").read_text()
    assert cited["title"] in readme
    assert " and ".join(names) in readme
