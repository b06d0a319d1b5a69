"""Run one benchmark of two checkouts alternately, and compare their medians.

    python benchmarks/lib/against.py FOLDER bench_decode.py --quick
    python benchmarks/lib/against.py FOLDER bench_decode.py --quick --append results/decode_against.csv

FOLDER is another checkout, with its compiled modules built in place (`python setup.py build_ext --inplace`). Each
round runs the named script of the other checkout, then of this one, in processes of their own, so that a drifting
machine affects both. For every row that both wrote, the medians over the rounds and their ratio are printed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a command, to find lib

from lib.measure import append_csv, machine
from lib.records import FACTS, read_rows

ROOT = Path(__file__).resolve().parents[2]


Key = tuple[tuple[str, str], ...]
"""The columns of a row that say what was measured, with their values."""


def run(checkout: Path, script: str, arguments: list[str], out: Path) -> dict[Key, float]:
    """The p50 of every row that a checkout's script writes, by the row's keys."""
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    command = [sys.executable, "-W", "ignore", str(checkout / "benchmarks" / script), *arguments, "--out", str(out)]
    subprocess.run(command, check=True, env=environment, cwd=out.parent, stdout=subprocess.DEVNULL)
    rows = read_rows(out)
    out.unlink()
    measured = ("p10_us", "p50_us", "p90_us")
    keys = [name for name in rows[0] if name not in (*FACTS, *measured)]
    return {tuple((name, row[name]) for name in keys): float(row["p50_us"]) for row in rows if row["p50_us"]}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the other checkout")
    parser.add_argument("script", help="a bench_*.py that takes --out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--append", type=Path, help="CSV file to append the comparison to")
    arguments, rest = parser.parse_known_args()
    checkouts = {"other": arguments.folder.resolve(), "this": ROOT}
    found: dict[str, dict[Key, list[float]]] = {name: {} for name in checkouts}
    with tempfile.TemporaryDirectory() as scratch:
        for _ in range(arguments.rounds):
            for name, checkout in checkouts.items():
                for key, value in run(checkout, arguments.script, rest, Path(scratch) / "rows.csv").items():
                    found[name].setdefault(key, []).append(value)
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, cwd=arguments.folder).stdout.strip()
    facts, compared = machine(), []
    for key, values in found["this"].items():
        if key in found["other"]:
            other, this = median(found["other"][key]), median(values)
            print(f"{' '.join(value for _, value in key):40} {other:12.1f} -> {this:12.1f} us  {this / other:.2f}x")
            compared.append(facts | {"other": commit} | dict(key) | {"other_us": other, "this_us": this})
    if arguments.append and compared:
        append_csv(arguments.append, compared)


if __name__ == "__main__":
    main()
