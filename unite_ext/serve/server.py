"""Running the application: signals, and an end that lets running requests finish."""

from __future__ import annotations

import asyncio
import socket
from types import FrameType

import uvicorn

from ..decoding.ensemble import UniteEnsemble
from .app import Service, create_app
from .options import ServeOptions

_CLOSING_SECONDS = 5  # for sending the errors of what did not finish


class Server(uvicorn.Server):
    """Uvicorn's server, which ends so: nothing new is taken; what runs has `grace` seconds, or until a second signal.

    Parameters
    ----------
    config : uvicorn.Config
    service : Service
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        service.engine.when_lost = self._end

    @property
    def lost(self) -> Exception | None:
        """See `EngineThread.lost`."""
        return self._service.engine.lost

    def _end(self) -> None:
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal: the first ends gently, another one at once."""
        if self.should_exit:
            self._service.engine.abort()
        self._service.engine.close()
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End: wait for what runs, then fail it."""
        self._service.engine.close()
        timer = asyncio.get_running_loop().call_later(self._service.options.grace, self._service.engine.abort)
        await super().shutdown(sockets)
        timer.cancel()


def make_server(ensemble: UniteEnsemble, options: ServeOptions, *, host: str, port: int) -> Server:
    """Make a server that is ready to run, in any thread.

    Raises
    ------
    TypeError, ValueError
        An option does not fit the ensemble.
    """
    app = create_app(ensemble, options)
    config = uvicorn.Config(
        app, host=host, port=port, access_log=False, log_config=None, server_header=False,
        timeout_graceful_shutdown=int(options.grace) + _CLOSING_SECONDS,
    )  # fmt: skip
    return Server(config, app.state.service)


def serve(ensemble: UniteEnsemble, options: ServeOptions, listener: socket.socket) -> None:
    """Serve until a signal comes.

    Parameters
    ----------
    ensemble : UniteEnsemble
    options : ServeOptions
    listener : socket.socket
        Bound, so that a port in use is found out before models are loaded.

    Raises
    ------
    RankError
        Another process that holds members has ended.
    """
    host, port = listener.getsockname()[:2]
    server = make_server(ensemble, options, host=host, port=port)
    server.run(sockets=[listener])
    if server.lost is not None:
        raise server.lost
