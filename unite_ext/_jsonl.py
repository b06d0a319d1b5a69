"""Lines of text and JSON lines in files, read and written in one way.

A line ends at a newline, with or without a carriage return before it, and nowhere else: `str.splitlines` also cuts at
U+2028, U+0085 and others, which may stand inside a JSON string. A byte order mark is no part of the first line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

_NO_UTF8 = "{place}: must be UTF-8, got byte 0x{byte:02x} at byte {at}"


def split_lines(data: bytes | str, *, place: object = "the input") -> list[str]:
    """Lines without their ends; what follows the last newline counts if it is not empty.

    Parameters
    ----------
    data : bytes or str
        Bytes are read as UTF-8.
    place
        What an error calls the text: a path, or an argument.

    Raises
    ------
    ValueError
        The bytes are not UTF-8.
    """
    text = decode(data, place=place) if isinstance(data, bytes) else data.removeprefix("\ufeff")
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines if lines[-1] else lines[:-1]


def decode(data: bytes, *, place: object = "the input") -> str:
    """Bytes as UTF-8 without a byte order mark; says where they are not."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(_NO_UTF8.format(place=place, byte=error.object[error.start], at=error.start)) from error


def read_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a text file that are not blank, with their numbers from 1."""
    lines = split_lines(path.read_bytes(), place=path)
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def read_records(path: Path, *, expected: str = "JSON") -> Iterator[tuple[int, object]]:
    """The value on every line of a JSON-lines file, with the line's number from 1; blank lines are passed over.

    Raises
    ------
    ValueError
        A line is not JSON; names file and line, and what was `expected`.
    """
    for number, line in read_lines(path):
        yield number, parse_record(line, place=f"{path}, line {number}", expected=expected)


def parse_record(line: str, *, place: str, expected: str = "JSON") -> object:
    """The value on one line."""
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(f"{place}: must be {expected}, got {_shortened(line)}") from error


def record_line(record: object, *, ascii_only: bool = False) -> str:
    """A value as one line with its end; `ascii_only` for a stream that may not be UTF-8."""
    return json.dumps(record, ensure_ascii=ascii_only) + "\n"


def takes_unicode(stream: object) -> bool:
    """Whether a text stream is written as UTF-8 (or UTF-16, UTF-32), which can hold every character."""
    return str(getattr(stream, "encoding", None) or "").lower().replace("-", "").startswith("utf")


def _shortened(line: str) -> str:
    return repr(line if len(line) <= 60 else line[:57] + "...")
