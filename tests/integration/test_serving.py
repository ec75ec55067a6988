"""The HTTP server: listens on a free port, ends when told to, and says what is wrong with an address."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import aiohttp
import fastapi
import pytest

from machine import errors
from web import serving


def application() -> fastapi.FastAPI:
    made = fastapi.FastAPI()

    @made.get("/")
    async def hello() -> dict[str, Any]:
        return {"Hello": True}

    return made


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_it_answers_and_ends(host: str) -> None:
    """The port is known after the start; start and stop may be repeated; nothing listens after the stop."""
    server = serving.HttpServer(application(), host=host, port=0)
    await server.start()
    await server.start()
    async with aiohttp.ClientSession() as http, http.get(f"http://{host}:{server.port}/") as answer:
        assert answer.status == 200
    await server.stop()
    await server.stop()
    assert server.task is not None
    assert server.task.done()
    with pytest.raises(OSError, match=r"refused|Connect call failed"):
        await asyncio.open_connection(host, server.port)


@pytest.mark.parametrize("host", ["127.0.0.1", "192.0.2.1", "no-such-host.invalid"])
async def test_an_address_that_cannot_be_used(host: str) -> None:
    """A port in use, an address of another machine, a name that is none: an error that says what to set, and no exit."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = serving.HttpServer(application(), host=host, port=taken.getsockname()[1])
        with pytest.raises(errors.Unavailable, match="set PORT to a free one, or mend HOST"):
            await server.start()
        await server.stop()
