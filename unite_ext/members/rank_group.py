"""The processes of `torch.distributed` that an ensemble's members live in, and what they exchange: tensors only.

Started by torchrun, or by whatever else sets its environment variables. Member m lives on rank m modulo the number of
ranks. Whatever goes wrong with one process ends the wait of the others with an error that names it and its members.
"""

from __future__ import annotations

import atexit
import hashlib
import itertools
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from .._launch import is_launched
from .rank_watch import SLOW, RankWatch, Store, seconds

RANK_TIMEOUT = 60.0
"""Seconds after which a process that does not answer is given up, by default."""
_EXCHANGE = 0.6  # of that time, for an exchange; in the rest the culprit is found
_KEEP = 8  # signs of life of an idle rank 0 in that time
_START = 600.0  # until all processes are there
_OPEN: list[RankGroup] = []
_made = itertools.count()


class RankError(RuntimeError):
    """A process that holds members has ended, hangs, or could not load its member; says which, and whose."""


IDLE, OPEN, STEP, CLOSE = range(4)
"""What a header announces: nothing, a new engine, a step of one, or the end."""


class Header(NamedTuple):
    """What rank 0 tells the others before every step, as int64."""

    action: int
    engine: int
    length: int
    """Bytes of the message that follows; 0 for none."""
    digest: int
    """Of what has been asked since the last step."""


class Layout(NamedTuple):
    """Which member lives on which rank."""

    rank: int
    """This process's."""
    size: int
    """How many processes there are."""
    holders: tuple[int, ...]
    """Per member its rank."""

    def holds(self, member: int) -> bool:
        """Whether a member lives in this process."""
        return self.holders[member] == self.rank


def check_ranks(ranks: str | None, members: int) -> Layout | None:
    """Which member lives where with this value of `ranks`; None where there is one process.

    Raises
    ------
    ValueError
        It is not None, "auto" or "led", or there are more processes than members.
    """
    if ranks not in (None, "auto", "led"):
        raise ValueError(f"ranks must be None, 'auto' or 'led', got {ranks!r}")
    return None if ranks is None else layout(members)


def layout(members: int) -> Layout | None:
    """Which member lives where, from the launcher's environment variables; None where there is one process.

    Raises
    ------
    ValueError
        There are more processes than members.
    """
    if not is_launched():
        return None
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if size > members:
        raise ValueError(
            f"ranks must be at most one per member, {members}, got {size} processes: start torchrun with "
            f"--nproc-per-node {members}, or less on each of several nodes"
        )
    return Layout(rank, size, tuple(m % size for m in range(members)))


class RankGroup:
    """The processes of one ensemble, of which this is one.

    Parameters
    ----------
    places : Layout
    names : sequence of str
        The members', for messages.
    timeout : float
        Seconds after which a process that does not answer is given up.
    led : bool
        Whether rank 0 alone is asked for something and tells the others, which `follow`; else every process makes the
        same calls.

    Attributes
    ----------
    sent_bytes, num_exchanges : int
        Bytes that this process has given to exchanges, and how many there were.
    device : torch.device
        Where this process's members are, or the first of them.
    busy : bool
        Whether rank 0 is in a step, in which it gives no signs of life.
    when_lost : callable or None
        Called with the error, on a thread of its own, where an idle rank 0 finds out that another process has ended.
    """

    def __init__(
        self, places: Layout, names: Sequence[str], *, timeout: float = RANK_TIMEOUT, led: bool = False
    ) -> None:
        if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
            raise TypeError(f"rank_timeout must be a number, got {type(timeout).__name__}")
        if not 0.5 <= timeout <= 86400:
            raise ValueError(f"rank_timeout must be from 0.5 to 86400 seconds, got {timeout}")
        self.rank, self.size, self.holders = places
        self.names = list(names)
        self.timeout = float(timeout)
        self.led = led
        self.device = torch.device("cpu")
        self.sent_bytes = self.num_exchanges = 0
        self.busy = False
        self.when_lost: Callable[[RankError], None] | None = None
        self._told_at = time.monotonic()
        self._telling = threading.Lock()
        self._ends = threading.Event()
        self._device_group: Any = None
        store = self._connect()
        self._watch = RankWatch(store, f"unite/{next(_made)}", self.rank, self.size, self.timeout)
        self._watch.start()
        _OPEN.append(self)

    def _connect(self) -> Store:
        """Meet the other processes."""
        _check_host_name()
        try:
            store, _, _ = next(rendezvous("env://", self.rank, self.size, timeout=seconds(_START)))
            if not dist.is_initialized():
                atexit.register(_destroy)
                dist.init_process_group(
                    "gloo", store=store, rank=self.rank, world_size=self.size, timeout=seconds(_START)
                )
            # A wait that nothing ends would keep the process from ending: every exchange has a limit.
            self._steps = dist.new_group(backend="gloo", timeout=seconds(_EXCHANGE * self.timeout))
            self._headers = dist.new_group(backend="gloo", timeout=seconds(_EXCHANGE * self.timeout))
        except (RuntimeError, ValueError, OSError) as error:
            asked = os.environ.get("GLOO_SOCKET_IFNAME")
            raise RankError(
                f"rank {self.rank} cannot reach the others at MASTER_ADDR={os.environ.get('MASTER_ADDR')}: set "
                f"GLOO_SOCKET_IFNAME to the network interface that reaches them, {_interfaces()} (now "
                f"{asked or 'not set'}): {str(error).splitlines()[0]}"
            ) from error
        return store

    def holds(self, member: int) -> bool:
        """Whether a member lives in this process."""
        return self.holders[member] == self.rank

    def called(self, rank: int) -> str:
        """A rank, with the names of its members."""
        members = [name for name, holder in zip(self.names, self.holders) if holder == rank]
        return f"rank {rank} ({', '.join(members)})"

    # Exchanges in a step

    def gather(self, tensor: Tensor) -> Tensor:
        """Every rank's tensor of this shape and dtype, [ranks, ...], on the tensor's device."""
        on_device = self._device_group is not None and tensor.device.type == "cuda"
        given = (tensor if on_device else tensor.cpu()).contiguous()
        found = torch.empty((self.size, *given.shape), dtype=given.dtype, device=given.device)
        group = self._device_group if on_device else self._steps
        self._exchange(given, lambda: dist.all_gather(list(found), given, group=group))
        return found.to(tensor.device)

    def share(self, tensor: Tensor, source: int) -> Tensor:
        """One rank's tensor, on the CPU; the others give one of the same shape and dtype."""
        given = tensor.cpu().contiguous()
        self._exchange(given, lambda: dist.broadcast(given, source, group=self._steps), sends=self.rank == source)
        return given

    def _exchange(self, given: Tensor, call: Callable[[], object], *, sends: bool = True) -> None:
        self._watch.reached += 1
        self.num_exchanges += 1
        if sends:
            self.sent_bytes += given.numel() * given.element_size()
        try:
            call()
        except RuntimeError as error:
            raise self.failure() from error

    # What rank 0 tells the others, and what all tell each other at the start

    def tell(self, header: Header, message: bytes = b"") -> None:
        """Rank 0 tells the others what comes; the message's length is filled in."""
        header = header._replace(length=len(message))
        with self._telling:
            self._told_at = time.monotonic()
            self._broadcast(torch.tensor(header, dtype=torch.int64, device="cpu"))
            if message:
                self._broadcast(_bytes_tensor(message))

    def listen(self) -> tuple[Header, bytes]:
        """What rank 0 tells next; while it is idle, it gives signs of life."""
        header = Header(IDLE, 0, 0, 0)
        while header.action == IDLE:
            values = torch.zeros(len(Header._fields), dtype=torch.int64, device="cpu")
            self._broadcast(values)
            header = Header(*values.tolist())
        if not header.length:
            return header, b""
        data = torch.zeros(header.length, dtype=torch.uint8, device="cpu")
        self._broadcast(data)
        return header, data.numpy().tobytes()

    def _broadcast(self, tensor: Tensor) -> None:
        self._exchange(tensor, lambda: dist.broadcast(tensor, 0, group=self._headers), sends=self.rank == 0)

    def keep_alive(self) -> None:
        """Let rank 0 give signs of life from now on whenever it is idle."""
        if self.led and self.rank == 0:
            threading.Thread(target=self._keep, name="unite-idle", daemon=True).start()

    def _keep(self) -> None:
        period = self.timeout / _KEEP
        while not self._ends.wait(period / 2):
            if not self.busy and time.monotonic() - self._told_at > period:
                try:
                    self.tell(Header(IDLE, 0, 0, 0))
                except RankError as error:  # the next exchange meets it as well
                    if self.when_lost is not None:
                        self.when_lost(error)
                    return

    def compare(self, header: Header) -> None:
        """Check that all processes are asked for the same.

        Raises
        ------
        RankError
            This process was asked for something else than rank 0.
        """
        values = self.share(torch.tensor(header, dtype=torch.int64, device="cpu"), 0)
        if values.tolist() != list(header):
            error = RankError(
                f"{self.called(self.rank)} was asked for something else than rank 0: every process must make the same "
                "calls with the same arguments"
            )
            self.post(error)
            raise error

    def gather_json(self, value: object) -> list[Any]:
        """Every rank's JSON value, however long some take to come here while all live.

        Raises
        ------
        RankError
            A process has ended meanwhile, or does not answer.
        """
        try:
            silent = self._watch.meet(_EXCHANGE * self.timeout)
        except RuntimeError as error:
            raise self.failure() from error
        if silent is not None:
            raise self.failure()
        data = _bytes_tensor(json.dumps(value).encode())
        sizes = self.gather(torch.tensor([len(data)], device="cpu"))[:, 0].tolist()
        padded = torch.zeros(max(sizes), dtype=torch.uint8, device="cpu")
        padded[: len(data)] = data
        return [json.loads(row[:size].numpy().tobytes()) for row, size in zip(self.gather(padded), sizes)]

    # Faults

    def failure(self) -> RankError:
        """The error of an exchange that failed, with the name of the culprit."""
        rank, text = self._watch.culprit()
        return RankError(f"{self.called(rank)} {text}")

    def stopped(self) -> str:
        """Why the launcher may have stopped this process: whose end it was, if it was another one's."""
        rank, text = self._watch.culprit()
        return "stopped by the launcher" if text == SLOW else f"{self.called(rank)} {text}"

    def post(self, error: BaseException | str) -> None:
        """Tell the others why this process ends."""
        text = (
            error if isinstance(error, str) else f"has failed: {(str(error) or type(error).__name__).splitlines()[0]}"
        )
        self._watch.post(text)

    # Beginning and end

    def use_devices(self, device: torch.device) -> None:
        """Exchange tensors on the members' devices where each rank has a CUDA device of its own; else over the CPU."""
        self.device = device
        usable = device.type == "cuda" and dist.is_nccl_available()
        mine = f"{socket.gethostname()} {torch.cuda.get_device_properties(device).uuid}" if usable else ""
        devices = self.gather_json(mine)
        if all(devices) and len(set(devices)) == self.size:
            torch.cuda.set_device(device)
            self._device_group = dist.new_group(backend="nccl", timeout=seconds(self.timeout))

    @property
    def is_open(self) -> bool:
        """Whether it has not been closed."""
        return self in _OPEN

    def close(self) -> None:
        """Let go of the other processes. Call it before the process ends, or let that be done at its exit."""
        if self not in _OPEN:
            return
        _OPEN.remove(self)
        self._ends.set()
        self._watch.stop()
        if dist.is_initialized():
            for group in (self._steps, self._headers, self._device_group):
                if group is not None:
                    dist.destroy_process_group(group)


def _destroy() -> None:
    """Let go of what torch keeps, once, before the process ends: it cannot be had again on the same addresses."""
    for group in list(_OPEN):
        group.close()
    if dist.is_initialized():
        dist.destroy_process_group()


def open_group() -> RankGroup | None:
    """The group that was made last and is open."""
    return _OPEN[-1] if _OPEN else None


def digest_of(text: str) -> int:
    """A number that tells texts apart, as int64."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little", signed=True)


def _bytes_tensor(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())


def _interfaces() -> str:
    """The names of this host's network interfaces."""
    try:
        return "one of " + ", ".join(name for _, name in socket.if_nameindex())
    except OSError:
        return "by name"


def _check_host_name() -> None:
    """Complain where several hosts could not meet because this one's name stands for itself alone."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ["WORLD_SIZE"])
    if local == int(os.environ["WORLD_SIZE"]) or os.environ.get("GLOO_SOCKET_IFNAME"):
        return
    name = socket.gethostname()
    try:
        found = socket.gethostbyname(name)
    except OSError:
        found = ""
    if not found or found.startswith("127."):
        raise RankError(
            f"this host's name {name} stands for {found or 'no address'}, where other hosts cannot reach it: set "
            f"GLOO_SOCKET_IFNAME to the network interface that reaches them, {_interfaces()}"
        )
