"""What processes do that are to end, to stop or to disagree in the midst of a run.

Beside the tests and not in them: a process that is forked finds it by this name, whatever pytest calls its modules.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from rank_cases import generated, load
from rank_processes import command

from unite_ext.members.rank_group import RankError, RankGroup

TIMEOUT = 12.0  # of ranks; long enough for pulses on a busy machine
WAYS = {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP}


def fail_at(number: int, way: str, delay: float = 0.0) -> None:
    """Let this process end or stop in its exchange of this number after the loading, others having waited a while."""
    exchange, before = RankGroup._exchange, [0]

    def counted(group, *arguments, **keywords):
        if group.names and getattr(group, "loaded", False):
            before[0] += 1
            if before[0] == number:
                time.sleep(delay)
                os.kill(os.getpid(), WAYS[way])
        return exchange(group, *arguments, **keywords)

    use_devices = RankGroup.use_devices

    def used(group, device):
        use_devices(group, device)
        group.loaded = True

    RankGroup._exchange, RankGroup.use_devices = counted, used


def generate_until_fault(rank: int, folders: list[Path], culprit: int, number: int, way: str, delay: float) -> None:
    """Every rank makes the same calls, of which one fails."""
    if rank == culprit:
        fail_at(number, way, delay)
    try:
        ensemble = load(folders, ranks="auto", rank_timeout=TIMEOUT)
        generated()(ensemble)
    except RankError as error:
        print(f"RankError: {error}", flush=True)
        sys.exit(3)


def ask_for_different_things(rank: int, folders: list[Path]) -> None:
    ensemble = load(folders, ranks="auto", rank_timeout=TIMEOUT)
    try:
        ensemble.generate(["A", "B"][rank], max_new_tokens=3)
    except RankError as error:
        print(f"RankError: {error}", flush=True)
        sys.exit(3)


def command_until_fault(rank: int, arguments: list[str], culprit: int, number: int, way: str) -> None:
    if rank == culprit:
        fail_at(number, way)
    command(rank, arguments)
