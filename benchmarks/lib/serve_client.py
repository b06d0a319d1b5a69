"""A server in a process of its own, and a client light enough to ask it much: for bench_serve.py and soak_serve.py."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import urlopen


@dataclass
class Server:
    """A server that runs."""

    process: subprocess.Popen[str]
    port: int
    log: Path

    @property
    def memory(self) -> float:
        """Its resident memory, MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        return int(found[1]) / 1000 if found else float("nan")

    def metrics(self) -> dict[str, float]:
        """Its metrics by name and labels; only without a key."""
        lines = urlopen(f"http://127.0.0.1:{self.port}/metrics").read().decode().splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


@contextmanager
def serving(arguments: Sequence[str], log: Path, *, key: str | None = None) -> Iterator[Server]:
    """Run `unite serve` with these arguments until the block ends."""
    environment = os.environ | ({} if key is None else {"UNITE_API_KEY": key})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "unite_ext", "serve", "--port", str(port), *arguments]
    with log.open("a") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, text=True, env=environment)
    try:
        wait_until_ready(port, process, log)
        yield Server(process, port, log)
    finally:
        process.terminate()
        try:
            process.wait(60)
        finally:
            process.kill()


def wait_until_ready(port: int, process: subprocess.Popen[str], log: Path, seconds: float = 300) -> None:
    """Wait until /health answers."""
    end = time.monotonic() + seconds
    while True:
        try:
            urlopen(f"http://127.0.0.1:{port}/health").read()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"the server did not start; see {log}") from None
            time.sleep(0.05)


@dataclass
class Answer:
    """What came of one request."""

    status: int = 0
    texts: dict[int, str] = field(default_factory=dict)
    """By their index."""
    finished: set[int] = field(default_factory=set)
    error: dict[str, Any] | None = None
    started_at: float = 0.0
    times: list[float] = field(default_factory=list)
    """When each piece of text came."""
    done: bool = False
    """Whether everything came that was to come."""


async def post(
    port: int,
    path: str,
    body: bytes | dict[str, Any],
    *,
    key: str | None = None,
    leave_after: float | None = None,
    read_delay: float = 0.0,
    receive_buffer: int | None = None,
) -> Answer:
    """Send one request on a connection of its own and read its answer, a stream's events as they come.

    Parameters
    ----------
    leave_after : float, optional
        Seconds after which the connection is closed, whatever has come.
    read_delay : float
        Seconds between reads of a few hundred bytes.
    receive_buffer : int, optional
        Bytes that the kernel may hold for a client that does not read.
    """
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection = socket.socket()
    connection.setblocking(False)
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    answer = Answer(started_at=time.perf_counter())
    await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=connection, limit=1 << 16)
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(data)}\r\n" + (f"Authorization: Bearer {key}\r\n" if key else "")
    try:
        writer.write(head.encode() + b"\r\n" + data)
        await asyncio.wait_for(_read(reader, answer, read_delay), leave_after)
    except (asyncio.TimeoutError, ConnectionError):
        pass
    finally:
        writer.close()
    return answer


async def _read(reader: asyncio.StreamReader, answer: Answer, delay: float) -> None:
    answer.status = int((await reader.readline()).split()[1])
    streams = False
    while (line := await reader.readline()).strip():
        streams |= line.lower().startswith(b"content-type: text/event-stream")
    if not streams:
        _take(json.loads(await reader.read()), answer)
        answer.done = True
        return
    rest = b""
    while True:
        if delay:
            await asyncio.sleep(delay)
        data = await reader.read(300 if delay else 1 << 16)
        if not data:
            return
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data: [DONE]"):
                answer.done = True
            elif line.startswith(b"data: "):
                _take(json.loads(line[6:]), answer)


def _take(message: dict[str, Any], answer: Answer) -> None:
    """Take an event's or a whole answer's content."""
    answer.error = message.get("error")
    for choice in message.get("choices", ()):
        index = choice["index"]
        parts = choice.get("delta") or choice.get("message") or choice
        piece = parts.get("content", parts.get("text")) or ""
        answer.texts[index] = answer.texts.get(index, "") + piece
        if piece:
            answer.times.append(time.perf_counter())
        if choice["finish_reason"]:
            answer.finished.add(index)
