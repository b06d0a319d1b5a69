"""Print for all commands: two consoles, error messages, and texts whose control characters are visible."""

from __future__ import annotations

import sys

import typer
from rich.console import Console

from .._text import visible

console = Console()
errors = Console(stderr=True)


def write_anything() -> None:
    """Let characters that a terminal's or pipe's encoding lacks appear as escapes: none of them ends a command."""
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", None) == "strict" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def fail(message: object) -> typer.Exit:
    """Print an error, and return the exception to raise."""
    errors.print(f"[bold red]error:[/] {plain(message)}", soft_wrap=True)
    return typer.Exit(code=1)


def plain(text: object) -> str:
    """Make rich print a text as it is: without markup, and with visible control characters."""
    return visible(str(text)).replace("[", r"\[")
