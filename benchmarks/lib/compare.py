"""Compares two measurements and exits with 1 if something became slower.

    python benchmarks/lib/compare.py results/step_cpu.csv                    the last two measurements in one file
    python benchmarks/lib/compare.py results/step_cpu.csv@00feed1 new.csv    one of a commit with the newest of a file

OLD and NEW are CSV files (their newest measurement counts) or FILE@COMMIT. A measurement is all rows with one date,
commit and machine. Its rows are matched on every column that is neither a fact about the run nor a result. A row is
slower or faster if the ratio of the medians passes the threshold and the bands from p10 to p90 do not overlap; a row
that holds a single sample has no band and decides nothing. Exit code 2: nothing could be compared.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a command, to find lib

from lib.records import FACTS, Rows, duration, measured_on, measurements, pick_measurement, read_rows

TIMES = ("p10_us", "p50_us", "p90_us")
RESULTS = (*TIMES, "mean_us", "over_amax", "gb_per_s", "sets", "calls", "samples", "note")
RESULTS += ("bytes", "gathered", "columns", "used")
PLAIN_WIDTH = 160  # of a table in a pipe
STYLES = {"slower": "bold red", "faster": "green"}

Key = tuple[str, ...]
Picked = TypeVar("Picked")


@dataclass(frozen=True)
class Change:
    """One row of both measurements; times are p10, p50 and p90 in microseconds."""

    key: Key
    old: tuple[float, ...]
    new: tuple[float, ...]
    threshold: float

    @property
    def ratio(self) -> float:
        """New median over old."""
        return self.new[1] / self.old[1]

    @property
    def verdict(self) -> str:
        """slower, faster, same; noise or one sample where the medians differ but prove nothing."""
        if 1 / self.threshold <= self.ratio <= self.threshold:
            return "same"
        if self.old[0] == self.old[2] or self.new[0] == self.new[2]:
            return "one sample"
        if self.old[0] <= self.new[2] and self.new[0] <= self.old[2]:
            return "noise"
        return "slower" if self.ratio > 1 else "faster"


@dataclass(frozen=True)
class Comparison:
    """What two measurements have in common and what they have not."""

    columns: Key
    changes: list[Change]
    only_old: list[Key]
    only_new: list[Key]


def read_measurement(source: str) -> Rows:
    """The measurement that FILE or FILE@COMMIT names. ValueError if there is none."""
    name, _, commit = source.rpartition("@") if "@" in source and not Path(source).exists() else (source, "", "")
    return pick(name, lambda rows: pick_measurement(rows, commit))


def last_two(source: str) -> tuple[Rows, Rows]:
    """The last two measurements of a file. ValueError if there are none."""

    def choose(rows: Rows) -> tuple[Rows, Rows]:
        pick_measurement(rows)
        found = measurements(rows)
        if len(found) < 2:
            raise ValueError(f"holds one measurement only ({measured_on(found[0])}); name a second file")
        return found[-2], found[-1]

    return pick(source, choose)


def pick(name: str, choose: Callable[[Rows], Picked]) -> Picked:
    """`choose` of a file's rows, errors with its name."""
    try:
        return choose(read_rows(Path(name)))
    except OSError as error:
        raise ValueError(f"{name}: {error.strerror}") from error
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{name}: {error}") from error


def times_by_key(rows: Rows, columns: Key) -> dict[Key, tuple[float, ...]]:
    """p10, p50 and p90 of every row; of rows with one key the last counts."""
    found = {}
    for row in rows:
        key = tuple(row[name] for name in columns)
        try:
            times = tuple(float(row[name]) for name in TIMES)
        except (TypeError, ValueError):
            times = (math.nan,)
        if not all(0 < time < math.inf for time in times):
            raise ValueError(f"no times in the row {describe(columns, key)}")
        found[key] = times
    return found


def compare(old: Rows, new: Rows, threshold: float) -> Comparison:
    """Matches the rows of two measurements. ValueError if they cannot be compared."""
    for rows in (old, new):
        if missing := [name for name in TIMES if name not in rows[0]]:
            raise ValueError(f"no column {', '.join(missing)}: not a file of times")
    columns, others = (tuple(name for name in rows[0] if name not in FACTS + RESULTS) for rows in (old, new))
    if set(columns) != set(others):
        odd = sorted(set(columns) ^ set(others))
        raise ValueError(f"only one of the two has the column {', '.join(odd)}: these are different benchmarks")
    before, after = times_by_key(old, columns), times_by_key(new, columns)
    changes = [Change(key, before[key], after[key], threshold) for key in after if key in before]
    if not changes:
        raise ValueError("no row of one measurement has a counterpart in the other")
    only_old, only_new = ([key for key in a if key not in b] for a, b in ((before, after), (after, before)))
    return Comparison(columns, changes, only_old, only_new)


def describe(columns: Key, key: Key) -> str:
    """A key in words."""
    return ", ".join(f"{name}={value}" for name, value in zip(columns, key))


def differing_facts(old: Rows, new: Rows) -> list[str]:
    """What else than the code differs between the measurements."""
    return [
        f"{name} differs: {old[0][name] or 'none'} -> {new[0][name] or 'none'}"
        for name in FACTS
        if name not in ("date", "commit") and old[0].get(name) != new[0].get(name)
    ]


def table_of(comparison: Comparison) -> Table:
    """Old, new, ratio and verdict by row; columns in which all rows agree go into the title."""
    columns, keys = comparison.columns, [change.key for change in comparison.changes]
    varying = [i for i in range(len(columns)) if len({key[i] for key in keys}) > 1]
    fixed = [f"{name}={keys[0][i]}" for i, name in enumerate(columns) if i not in varying]
    table = Table(title=", ".join(fixed) or None, title_justify="left")
    for i in varying:
        table.add_column(columns[i], no_wrap=True)
    for name in ("p50 old", "p50 new", "ratio"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for change in comparison.changes:
        cells = [change.key[i] for i in varying]
        cells += [duration(change.old[1]), duration(change.new[1]), f"{change.ratio:.2f}", change.verdict]
        table.add_row(*cells, style=STYLES.get(change.verdict))
    return table


def report(old: Rows, new: Rows, comparison: Comparison, console: Console) -> None:
    """Prints everything that is to be known about a comparison."""
    console.print(f"old: {measured_on(old)}\nnew: {measured_on(new)}")
    for line in differing_facts(old, new):
        console.print(f"warning: {line}", style="yellow")
    console.print(table_of(comparison))
    for side, keys in (("old", comparison.only_old), ("new", comparison.only_new)):
        for key in keys:
            console.print(f"only in {side}: {describe(comparison.columns, key)}")
    counts = Counter(change.verdict for change in comparison.changes)
    verdicts = ", ".join(f"{counts[verdict]} {verdict}" for verdict in sorted(counts))
    console.print(f"{len(comparison.changes)} rows compared: {verdicts}")


def main(arguments: list[str] | None = None) -> int:
    """Command line; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", metavar="OLD", help="FILE or FILE@COMMIT")
    parser.add_argument("new", metavar="NEW", nargs="?", help="FILE or FILE@COMMIT (default: the last two of OLD)")
    parser.add_argument("--threshold", type=float, default=1.1, help="ratio that counts as a change (default: 1.10)")
    options = parser.parse_args(arguments)
    if not 1 <= options.threshold < math.inf:
        parser.error("--threshold must be at least 1")
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else PLAIN_WIDTH)
    try:
        if options.new is None:
            old, new = last_two(options.old)
        else:
            old, new = read_measurement(options.old), read_measurement(options.new)
        comparison = compare(old, new, options.threshold)
    except ValueError as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    report(old, new, comparison, console)
    return int(any(change.verdict == "slower" for change in comparison.changes))


if __name__ == "__main__":
    raise SystemExit(main())
