"""Start the processes of `torch.distributed` that tests of ranks need, as a launcher would.

They are forked off a server that has imported torch, transformers and this package once.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import torch


def context() -> Any:
    """The server's context."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(["rank_preload"])
    before, folder = os.environ.get("PYTHONPATH"), Path.cwd()
    os.environ["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)  # where the server finds what it imports
    os.chdir(Path(__file__).parent)  # which its path begins with, and not the sources, whose modules are not built
    try:
        forkserver.ensure_running()
    finally:
        os.chdir(folder)
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before
    return made


class Ranks:
    """Running processes.

    Parameters
    ----------
    target : callable
        Of a module; called as target(rank, *arguments) in every process.
    size : int
    arguments : sequence
    folder : Path
        Where each process's output is kept, and where it runs.
    """

    def __init__(self, target: Callable[..., object], size: int, arguments: Sequence[object], folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        self.started = time.monotonic()
        environments = [
            {
                "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "UNITE_CACHE": os.environ["UNITE_CACHE"],
            }
            for rank in range(size)
        ]  # fmt: skip
        self.processes = [
            context().Process(target=_run, args=(target, folder, environment, sys.path, arguments), daemon=True)
            for environment in environments
        ]
        for process in self.processes:
            process.start()

    def wait(self, seconds: float, ranks: Iterable[int] | None = None) -> list[int | None]:
        """The exit codes of these ranks (all by default), None for one that still runs after so many seconds."""
        chosen = [self.processes[r] for r in (range(len(self.processes)) if ranks is None else ranks)]
        end = time.monotonic() + seconds
        for process in chosen:
            process.join(max(0.0, end - time.monotonic()))
        return [process.exitcode for process in chosen]

    def said(self, rank: int) -> str:
        """What a rank has printed, without progress bars."""
        text = (self.folder / f"{rank}.out").read_text(encoding="utf-8", errors="replace")
        return "\n".join(line for line in text.split("\n") if "Loading weights" not in line)

    def end(self) -> None:
        """Leave none of them running."""
        for process in self.processes:
            process.kill()
            process.join(10)


def _run(
    target: Callable[..., object], folder: Path, environment: Mapping[str, str], path: Sequence[str], arguments: Any
) -> None:
    sys.path[:] = path
    os.environ.update(environment)
    os.chdir(folder)
    torch.set_num_threads(1)
    rank = int(environment["RANK"])
    file = os.open(folder / f"{rank}.out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    target(rank, *arguments)


def command(rank: int, arguments: Sequence[str]) -> None:
    """Run the `unite` command, as the process of a launcher."""
    from unite_ext.cli import app

    app([str(argument) for argument in arguments])
