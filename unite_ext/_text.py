"""Text made safe to show."""

from __future__ import annotations


def visible(text: str) -> str:
    """Text on one line, its line ends and other control characters as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
