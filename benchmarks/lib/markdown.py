"""What the tables of the documents are made of."""

from __future__ import annotations

from pathlib import Path

from lib import records
from lib.records import Rows

RESULTS = Path(__file__).resolve().parents[1] / "results"


def newest(name: str, having: str = "") -> Rows:
    """The last rows of a CSV file in results/ that were measured together; of those that have this column, if given."""
    rows = records.read_rows(RESULTS / f"{name}.csv")
    return records.pick_measurement([row for row in rows if not having or row[having]])


def markdown(header: list[str], rows: list[list[str]], rows_are: str) -> str:
    """A table whose first column is text and whose others are figures."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" + "---:|" * (len(header) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + f"\n\n{rows_are}\n"


def measured_on(rows: Rows) -> str:
    """The line under a table: where its figures come from."""
    return f"Medians. {records.measured_on(rows)}."
