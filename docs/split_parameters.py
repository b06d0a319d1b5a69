"""Give every parameter of a line `k, primary, weights` an entry of its own in the API reference.

The parser of NumPy's docstrings gives all of them the first one's type and default.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

SHARED = re.compile(
    r"^(?P<indent> *)(?P<names>\w+(?:, \w+)+)(?P<type> : .*)?\n(?P<text>(?:(?P=indent) +.*\n)*)", re.MULTILINE
)


class SplitParameters(griffe.Extension):
    """Rewrites docstrings before they are parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Split the lines of one object's docstring."""
        if obj.docstring is not None and "\n----" in obj.docstring.value:
            obj.docstring.value = SHARED.sub(split, obj.docstring.value + "\n")


def split(line: re.Match[str]) -> str:
    """The same text under each name."""
    names = line["names"].split(", ")
    return "".join(f"{line['indent']}{name}{line['type'] or ''}\n{line['text']}" for name in names)
