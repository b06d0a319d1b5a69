"""Reading the CSV files in results/: their rows, and which of them were measured together."""

from __future__ import annotations

import csv
from pathlib import Path

FACTS = ("date", "commit", "machine", "driver", "cuda", "torch", "python")  # as measure.machine() writes them
TOGETHER = ("date", "commit", "machine")

Rows = list[dict[str, str]]


def read_rows(path: Path) -> Rows:
    """The rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def measurements(rows: Rows) -> list[Rows]:
    """Rows with one date, commit and machine, the newest measurement (the one with the file's last row) last."""
    groups: dict[tuple[str, ...], Rows] = {}
    for row in rows:
        key = tuple(row[name] for name in TOGETHER)
        groups[key] = [*groups.pop(key, []), row]
    return list(groups.values())


def newest(path: Path) -> Rows:
    """The newest measurement in a CSV file."""
    return measurements(read_rows(path))[-1]


def measured_on(rows: Rows) -> str:
    """Where the figures of one measurement come from."""
    row = rows[0]
    return f"{row['machine']}, torch {row['torch']}, {row['date']}, commit {row['commit']}"


def duration(microseconds: float) -> str:
    """Three significant digits, in µs, ms or s."""
    scale, unit = next((n, u) for n, u in ((1e6, "s"), (1e3, "ms"), (1, "µs")) if microseconds >= n or n == 1)
    value = microseconds / scale
    return f"{value:.{max(0, 3 - len(str(int(value))))}f} {unit}"
