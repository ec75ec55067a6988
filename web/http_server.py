"""The HTTP server: uvicorn on one address, drained within seconds when it stops.

Rule: it installs no signal handlers. Those would end the event loop before the other parts of the service have stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

import uvicorn
from starlette import types

from machine import errors
from web import connection_limits

DRAIN_S = 3
BACKLOG = 2048


class HttpServer:
    """uvicorn on one address. `task` ends with the server; before `stop` that is a failure."""

    def __init__(self, application: types.ASGIApp, *, host: str, port: int) -> None:
        self.host, self.port = host, port
        self.task: asyncio.Task[None] | None = None
        config = uvicorn.Config(
            application,
            http=connection_limits.LimitedProtocol,
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=DRAIN_S,
            backlog=connection_limits.ACCEPTED_AT_ONCE,
            server_header=False,
        )
        self._server = _UvicornServer(config)

    async def start(self) -> None:
        """Listen; `port` is then the real port. Raises errors.Unavailable if the address cannot be used."""
        if self.task is not None:
            return
        listening = await self._listen()
        self.port = listening.getsockname()[1]
        self.task = asyncio.create_task(self._server.serve(sockets=[listening]), name="http")
        listens = asyncio.create_task(self._server.listens.wait())
        await asyncio.wait([self.task, listens], return_when=asyncio.FIRST_COMPLETED)
        listens.cancel()

    async def stop(self) -> None:
        """Finish the requests in progress, then end. Safe to call twice."""
        self._server.should_exit = True
        if self.task is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await self.task

    async def _listen(self) -> socket.socket:
        """Bind here: uvicorn exits the process if it cannot bind."""
        try:
            loop = asyncio.get_running_loop()
            family, *_, address = (await loop.getaddrinfo(self.host.strip("[]"), self.port, type=socket.SOCK_STREAM))[0]
            listening = socket.create_server(address[:2], family=family, backlog=BACKLOG)
        except OSError as error:
            message = (
                f"Port {self.port} on {self.host} cannot be used ({error.strerror}); set PORT to a free one, or correct HOST."
            )
            raise errors.Unavailable(message) from error
        # Connections inherit it. asyncio sets it only where the socket names its protocol, and this one does not. Without it the
        # body of an answer waits up to 40 ms until the client has acknowledged the head.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening


class _UvicornServer(uvicorn.Server):
    """uvicorn without signal handlers; `listens` is set when it has started."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listens = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's."""
        await super().startup(sockets)
        # For asyncio, the backlog is also the number of connections that it accepts in one turn. The kernel may keep more.
        for listening in sockets or ():
            listening.listen(BACKLOG)
        self.listens.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        """Capture none."""
        yield
