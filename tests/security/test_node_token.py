"""Node token: CLUSTER_TOKEN, complete, is the only credential that opens a node's segments.

Rule: each request names an existing segment, so a refusal is about the token and not about the file.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from machine import errors
from tests import engines
from tests.integration import api_service
from tests.integration.api_service import Service

# The settings page allows any text.
TOKEN, MASTER = "the nodes' own tökén", "an operator's token"
RECORDING, SEGMENT = "01JBX5Q9V7T3M8K2C4D6F8H0ZW/alice/1", b"FLV\x01 media"


@pytest.fixture
def spool(tmp_path: Path) -> dict[str, Any]:
    """A spool with one segment, as the API receives it."""
    path = tmp_path / "1.flv"
    path.write_bytes(SEGMENT)

    async def segment_file(recording: str, epoch: int, suffix: str) -> tuple[Path, int] | None:
        return (path, 1) if (recording, epoch) == (RECORDING, 1) else None

    @asynccontextmanager
    async def live_segment(recording: str, epoch: int, mode: str) -> AsyncIterator[AsyncIterator[bytes]]:
        if (recording, epoch) != (RECORDING, 1):
            raise errors.NotFound("This node has no such segment.")

        async def growing() -> AsyncIterator[bytes]:
            yield SEGMENT

        yield growing()

    return {"segment_file": segment_file, "live_segment": live_segment}


@pytest.fixture(params=["segments", "live"])
def route(request: pytest.FixtureRequest) -> str:
    """A route between nodes."""
    return str(request.param)


@pytest.fixture
async def node(database: engines.Database, spool: dict[str, Any]) -> AsyncIterator[Service]:
    async with api_service.running(database, (MASTER,), cluster_token=TOKEN, **spool) as running:
        yield running


async def fetch(node: Service, route: str, *authorization: str, epoch: int = 1) -> tuple[int, bytes]:
    """The response of the route, with this header or without any."""
    headers = {"Authorization": authorization[0]} if authorization else {}
    query = {"recording": RECORDING, "epoch": str(epoch), "mode": "02"}
    async with node.http.get(f"{node.url}/internal/{route}", params=query, headers=headers) as answer:
        return answer.status, await answer.read()


async def test_only_the_nodes_token_opens_a_segment(node: Service, route: str) -> None:
    """The right token gets the bytes; a wrong, similar, missing or partial one, a token of API_TOKENS and a key with every scope
    get 401 without data, for existing and missing segments alike."""
    _, key = await node.key("read", "start", "operate")
    assert await fetch(node, route, f"Bearer {TOKEN}") == (200, SEGMENT)
    assert (await fetch(node, route, f"Bearer {TOKEN}", epoch=2))[0] == 404
    wrong = ("Bearer another", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN.upper()}", "Bearer ", "Bearer", "")
    for header in (*wrong, TOKEN, f"Basic {TOKEN}", f"bearer {TOKEN}", f"Bearer {MASTER}", f"Bearer {key}"):
        for epoch in (1, 2):
            status, body = await fetch(node, route, header, epoch=epoch)
            assert (status, SEGMENT in body) == (401, False), header
    assert (await fetch(node, route))[0] == 401


async def test_without_a_nodes_token_nothing_opens_a_segment(
    database: engines.Database, spool: dict[str, Any], route: str
) -> None:
    """A service without CLUSTER_TOKEN accepts no header, not even an empty token that would compare equal, and neither does a
    service without API authentication."""
    for tokens in ((MASTER,), ()):
        async with api_service.running(database, tokens, **spool) as alone:
            for header in ("Bearer ", "Bearer", "", "Bearer None", f"Bearer {MASTER}"):
                assert (await fetch(alone, route, header))[0] == 401, header
            assert (await fetch(alone, route))[0] == 401
            # A proxy in front may pass on the trailing space that our server strips from a header.
            for raw in (b"Bearer ", b"Bearer", b""):
                assert await status_of(alone.application, route, raw) == 401


async def status_of(application: Any, route: str, authorization: bytes) -> int:
    """The application's status for a header that is passed on unchanged."""
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        statuses.append(message.get("status", 0))

    query = f"recording={RECORDING}&epoch=1&mode=02".encode()
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "root_path": "",
    }
    scope |= {"path": f"/internal/{route}", "raw_path": f"/internal/{route}".encode(), "query_string": query}
    scope |= {"headers": [(b"host", b"127.0.0.1"), (b"authorization", authorization)], "client": None, "server": None}
    await application(scope, receive, send)
    return statuses[0]
