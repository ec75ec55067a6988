"""The HTTP server around the application: listens, answers, ends within seconds. Imports `machine`, and this room.

Rule: it has no signal handlers of its own, which would end the loop before the service's other parts are stopped.
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
    """uvicorn on one address. `task` ends when the server does, which is unexpected before `stop`."""

    def __init__(self, application: types.ASGIApp, *, host: str, port: int) -> None:
        self.host, self.port = host, port
        self.task: asyncio.Task[None] | None = None
        config = uvicorn.Config(
            application,
            http=connection_limits.Limited,
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=DRAIN_S,
            server_header=False,
        )
        self._server = _Quiet(config)

    async def start(self) -> None:
        """Return when the socket listens; `port` is then the one it got. Raises errors.Unavailable if it cannot."""
        if self.task is not None:
            return
        listening = await self._listen()
        self.port = listening.getsockname()[1]
        self.task = asyncio.create_task(self._server.serve(sockets=[listening]), name="http")
        listens = asyncio.create_task(self._server.listens.wait())
        await asyncio.wait([self.task, listens], return_when=asyncio.FIRST_COMPLETED)
        listens.cancel()

    async def stop(self) -> None:
        """Answer what is being asked, and end; harmless to repeat."""
        self._server.should_exit = True
        if self.task is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await self.task

    async def _listen(self) -> socket.socket:
        """Bound here, because uvicorn leaves the process where it cannot bind."""
        try:
            loop = asyncio.get_running_loop()
            family, *_, address = (await loop.getaddrinfo(self.host.strip("[]"), self.port, type=socket.SOCK_STREAM))[0]
            return socket.create_server(address[:2], family=family, backlog=BACKLOG)
        except OSError as error:
            message = f"Port {self.port} on {self.host} cannot be used ({error.strerror}); set PORT to a free one, or mend HOST."
            raise errors.Unavailable(message) from error


class _Quiet(uvicorn.Server):
    """uvicorn without signal handlers, that says when it has begun."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listens = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's."""
        await super().startup(sockets)
        self.listens.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        """None."""
        yield
