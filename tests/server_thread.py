"""Uvicorn's servers in a thread, on a port of their own."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn


@contextmanager
def listening() -> Iterator[tuple[socket.socket, int]]:
    """A socket of this machine, and its port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        yield listener, listener.getsockname()[1]


@contextmanager
def running_in_thread(server: uvicorn.Server, listener: socket.socket, *, at_once: bool = False) -> Iterator[None]:
    """Run a server until the block ends; it ends `at_once`, or when all have their answers."""
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    end = time.monotonic() + 30
    while not server.started:
        assert thread.is_alive()
        assert time.monotonic() < end
        time.sleep(0.005)
    try:
        yield
    finally:
        server.should_exit = True
        server.force_exit = at_once
        thread.join(30)
        assert not thread.is_alive()
