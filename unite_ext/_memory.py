"""How much memory a device has left, and giving back what is not used."""

from __future__ import annotations

import contextlib
import ctypes
import os

import torch


def free_bytes(device: torch.device) -> int | None:
    """Memory free on a device; None where that cannot be asked."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            available = next(line for line in file if line.startswith("MemAvailable"))
        return int(available.split()[1]) * 1024
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def give_back() -> None:
    """Let the allocator return to the system what was freed, where it is glibc's, which keeps much of it."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
