#!/usr/bin/env python3
"""Install a wheel into fresh environments, and run the demo and the tests of the kernels in each.

    tools/try_wheel.py dist/unite_ext-*.whl
    tools/try_wheel.py dist/unite_ext-*.whl --pair python3.12=2.13.0 --pair /opt/python3.13/bin/python=newest

A pair is a Python and a version of torch. By default these are 3.10 with torch 2.10.0, 3.11 and 3.12 with 2.13.0 and
3.13 with the newest, as far as these Pythons are found on the PATH or below ~/.pyenv/versions. Every environment is
new and is removed at the end; torch is downloaded for each, several GB where only a CUDA build is offered. Fails if
anything does.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAIRS = {"3.10": "2.10.0", "3.11": "2.13.0", "3.12": "2.13.0", "3.13": "newest"}
KERNEL_TESTS = (
    "test_step.py",
    "test_step_laws.py",
    "test_step_meaning.py",
    "test_step_parts.py",
    "test_step_errors.py",
)
TEST_PACKAGES = ("pytest", "hypothesis")


def found_pairs() -> list[str]:
    """The default pairs whose Python is on this machine."""
    pairs = []
    for version, torch in PAIRS.items():
        own = sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python"))
        for python in [f"python{version}", *map(str, own)]:
            try:
                subprocess.run([python, "-c", "import venv"], check=True, capture_output=True)
            except (OSError, subprocess.CalledProcessError):
                continue
            pairs.append(f"{python}={torch}")
            break
    return pairs


def try_pair(python: str, torch: str, wheel: Path) -> dict[str, str]:
    """What came out for one Python and one torch: versions, and "ok" or "FAILED" for each thing tried."""
    row = {"Python": python, "torch": torch}
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        environment |= {"UNITE_CACHE": str(folder / "cache"), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        environment["HYPOTHESIS_STORAGE_DIRECTORY"] = str(folder / "hypothesis")
        programs = folder / "venv" / "bin"

        def run(what: str, *command: object, cwd: Path = folder) -> bool:
            start = time.monotonic()
            result = subprocess.run(list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True)
            good = result.returncode == 0
            row[what] = f"{'ok' if good else 'FAILED'}, {time.monotonic() - start:.0f} s"
            if not good:
                print(result.stdout[-4000:], result.stderr[-4000:], sep="\n", file=sys.stderr)
            return good

        wanted = "torch" if torch == "newest" else f"torch=={torch}"
        tests = [ROOT / "tests" / name for name in KERNEL_TESTS]
        if (
            run("environment", python, "-m", "venv", programs.parent)
            and run("torch installs", programs / "pip", "install", "--quiet", wanted)
            and run("wheel installs", programs / "pip", "install", "--quiet", "--only-binary", "unite_ext", wheel)
            and run("tests install", programs / "pip", "install", "--quiet", *TEST_PACKAGES)
        ):
            ask = "import platform, torch; print(platform.python_version(), torch.__version__)"
            said = subprocess.run([programs / "python", "-c", ask], capture_output=True, text=True, env=environment)
            row["Python"], row["torch"] = said.stdout.split() or ("?", "?")
            run("demo", programs / "unite", "demo", "--problems", 9)
            run("kernel tests", programs / "pytest", "-q", "-p", "no:cacheprovider", *tests, cwd=ROOT)
    return row


def main() -> int:
    """Try all pairs and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--pair", action="append", metavar="PYTHON=TORCH", help="may be repeated")
    arguments = parser.parse_args()
    if not arguments.wheel.is_file():
        parser.error(f"there is no wheel {arguments.wheel}: build it with tools/build_wheel.sh")
    pairs = arguments.pair or found_pairs()
    if not pairs or any("=" not in pair for pair in pairs):
        parser.error(f"pairs must be PYTHON=TORCH, at least one, got {pairs}")
    rows = []
    for pair in pairs:
        python, torch = pair.rsplit("=", 1)
        rows.append(try_pair(python, torch, arguments.wheel.resolve()))
        print("; ".join(f"{name}: {value}" for name, value in rows[-1].items()), flush=True)
    tried = ("wheel installs", "demo", "kernel tests")
    print("\n| Python | torch |", " | ".join(tried), "|\n|---|---|---|---|---|")
    for row in rows:
        print(f"| {row['Python']} | {row['torch']} |", " | ".join(row.get(what, "not run") for what in tried), "|")
    return any("FAILED" in value for row in rows for value in row.values())


if __name__ == "__main__":
    sys.exit(main())
