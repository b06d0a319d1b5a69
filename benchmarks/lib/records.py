"""Reading the CSV files in results/: their rows, and which of them were measured together."""

from __future__ import annotations

import csv
from pathlib import Path

FACTS = ("date", "commit", "machine", "driver", "cuda", "torch", "python")  # as measure.machine() writes them
TOGETHER = ("date", "commit", "machine")

Rows = list[dict[str, str]]


def read_rows(path: Path) -> Rows:
    """The rows of a CSV file. ValueError where one is not as long as the header."""
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        rows = []
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(f"line {reader.line_num} is not as long as the header")
            rows.append(row)
        return rows


def measurements(rows: Rows) -> list[Rows]:
    """Rows with one date, commit and machine, the newest measurement (the one with the file's last row) last."""
    groups: dict[tuple[str, ...], Rows] = {}
    for row in rows:
        key = tuple(row[name] for name in TOGETHER)
        groups[key] = [*groups.pop(key, []), row]
    return list(groups.values())


def pick_measurement(rows: Rows, commit: str = "") -> Rows:
    """The newest measurement, of a commit if one is named. ValueError if there is none."""
    if not rows:
        raise ValueError("no rows")
    if missing := [name for name in FACTS if name not in rows[0]]:
        raise ValueError(f"no column {', '.join(missing)}")
    found = [group for group in measurements(rows) if group[0]["commit"].startswith(commit)]
    if not found:
        commits = ", ".join(dict.fromkeys(row["commit"] for row in rows))
        raise ValueError(f"nothing was measured at commit {commit}, only at {commits}")
    return found[-1]


def measured_on(rows: Rows) -> str:
    """Where the figures of one measurement come from."""
    row = rows[0]
    return f"{row['machine']}, torch {row['torch']}, {row['date']}, commit {row['commit']}"


def duration(microseconds: float) -> str:
    """Three significant digits, in µs, ms or s."""
    scale, unit = next((n, u) for n, u in ((1e6, "s"), (1e3, "ms"), (1, "µs")) if microseconds >= n or n == 1)
    value = microseconds / scale
    return f"{value:.{max(0, 3 - len(str(int(value))))}f} {unit}"
