"""Run the `unite` command in a process of its own, without waiting for an interpreter to import everything again."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from rank_processes import context


class Command:
    """A command that runs, forked off the server of `rank_processes`.

    Parameters
    ----------
    arguments : sequence of str
    folder : Path
        Where it runs, and where its output is kept.
    given : str
        What it reads.
    environment : mapping
        Variables beside the server's own.
    """

    def __init__(
        self, arguments: Sequence[str], folder: Path, *, given: str = "", environment: Mapping[str, str] | None = None
    ) -> None:
        self.folder = folder
        (folder / "given").write_text(given)
        variables = {"UNITE_CACHE": os.environ["UNITE_CACHE"], "COLUMNS": "200", "NO_COLOR": "1", **(environment or {})}
        self.process = context().Process(target=_run, args=(folder, variables, sys.path, arguments), daemon=True)
        self.process.start()

    @property
    def stdout(self) -> str:
        """What it has printed."""
        return self._said("stdout")

    @property
    def stderr(self) -> str:
        """What it has complained of."""
        return self._said("stderr")

    def _said(self, name: str) -> str:
        file = self.folder / name
        return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""

    def send_signal(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.process.pid, number)

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        return self.process.exitcode

    def wait(self, seconds: float = 120) -> int:
        """The exit code, the signal's number below zero if one ended it; TimeoutError if it runs so long."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            raise TimeoutError(f"the command still runs after {seconds} seconds; it said: {self.stderr[-2000:]}")
        return self.process.exitcode

    def end(self) -> None:
        """Leave nothing running."""
        self.process.kill()
        self.process.join(10)


def _run(folder: Path, variables: Mapping[str, str], path: Sequence[str], arguments: Sequence[str]) -> None:
    # Whoever runs the tests in the background has them ignore the signal; a terminal's programs do not.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.path[:] = path
    os.environ.update(variables)
    os.chdir(folder)
    torch.set_num_threads(1)
    os.dup2(os.open("given", os.O_RDONLY), 0)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    from unite_ext.cli import app

    app([str(argument) for argument in arguments])
