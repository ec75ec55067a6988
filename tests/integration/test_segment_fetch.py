"""Segment fetch: a segment of another node is fetched completely or not at all, and a fault of the own disk is no absence of that
node.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from machine import errors, segments
from media import segment_fetch
from tests import ports

TOKEN = "of-the-cluster"
OWNER = "01HZY0000000000000000000AA/alice/1"
WRITTEN_MS = 1_700_000_000_123
SEGMENT = bytes(range(256)) * 10_000
ARRIVALS = b"RARR" + bytes(range(100))


def names(folder: Path) -> list[str]:
    """The files of a folder."""
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
async def node() -> AsyncIterator[str]:
    """Another node: it has epoch 1, and epoch 4 with its arrival index, breaks off in epoch 2, fails at the index of epoch 5, and
    has no other."""

    async def serve(request: web.Request) -> web.StreamResponse:
        assert request.headers["Authorization"] == f"Bearer {TOKEN}"
        assert request.query["recording"] == OWNER
        match request.query["epoch"]:
            case "1" | "4" | "5":
                return web.Response(body=SEGMENT, headers={segments.WRITTEN_HEADER: str(WRITTEN_MS)})
            case "2":
                answer = web.StreamResponse(headers={"Content-Length": str(len(SEGMENT))})
                await answer.prepare(request)
                await answer.write(SEGMENT[:1000])
                assert request.transport is not None
                request.transport.close()
                return answer
            case _:
                raise web.HTTPNotFound

    async def serve_arrivals(request: web.Request) -> web.StreamResponse:
        if request.query["epoch"] == "5":
            raise web.HTTPServiceUnavailable
        if request.query["epoch"] != "4":
            raise web.HTTPNotFound
        return web.Response(body=ARRIVALS)

    application = web.Application()
    application.router.add_get("/internal/segments", serve)
    application.router.add_get("/internal/arrivals", serve_arrivals)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def test_a_segment_is_fetched_completely(node: str, tmp_path: Path) -> None:
    """A fetched segment has the other node's name and modification time, and is not fetched twice."""
    path = tmp_path / "00000001.flv"
    assert await segment_fetch.fetch(node, TOKEN, OWNER, 1, path)
    assert path.read_bytes() == SEGMENT
    assert path.stat().st_mtime_ns == WRITTEN_MS * 1_000_000
    assert await segment_fetch.fetch("http://127.0.0.1:9", TOKEN, OWNER, 1, path)
    assert names(tmp_path) == ["00000001.flv"]


async def test_the_arrival_index_comes_with_its_segment(node: str, tmp_path: Path) -> None:
    """A segment with an arrival index is fetched with it. A node that cannot give the index now gives neither, so no transcode
    lacks an index that exists."""
    assert await segment_fetch.fetch(node, TOKEN, OWNER, 4, tmp_path / "00000004.flv")
    assert (tmp_path / "00000004.flv.arrivals").read_bytes() == ARRIVALS
    assert not await segment_fetch.fetch(node, TOKEN, OWNER, 5, tmp_path / "00000005.flv")
    assert names(tmp_path) == ["00000004.flv", "00000004.flv.arrivals"]


async def test_two_parallel_fetches_make_one_copy(node: str, tmp_path: Path) -> None:
    """Parallel fetches of a superseded transcode and its successor write neither into a file that the other reads nor over its
    result."""
    path = tmp_path / "00000001.flv"
    assert await asyncio.gather(*(segment_fetch.fetch(node, TOKEN, OWNER, 1, path) for _ in range(5))) == [True] * 5
    assert path.read_bytes() == SEGMENT
    assert names(tmp_path) == ["00000001.flv"]


@pytest.mark.parametrize("epoch", [2, 3], ids=["breaks-off", "has-it-not"])
async def test_a_failed_fetch_leaves_nothing(node: str, tmp_path: Path, epoch: int) -> None:
    """A fetch from a node that breaks off or lacks the segment fails and leaves no partial file."""
    assert not await segment_fetch.fetch(node, TOKEN, OWNER, epoch, tmp_path / "x.flv")
    assert not names(tmp_path)


async def test_an_absent_node_is_no_fault(tmp_path: Path) -> None:
    """A fetch from an unreachable node fails without an error of the spool."""
    assert not await segment_fetch.fetch(f"http://127.0.0.1:{ports.free()}", TOKEN, OWNER, 1, tmp_path / "x.flv")


async def test_a_full_disk_is_a_local_fault(node: str, tmp_path: Path) -> None:
    """A full disk during the copy is reported as such, because the segment exists, and leaves no partial file."""
    (tmp_path / "x.flv.fetched").symlink_to("/dev/full")
    (tmp_path / "y.flv.arrivals.fetched").symlink_to("/dev/full")
    with pytest.raises(errors.TranscodeFailed) as raised:
        await segment_fetch.fetch(node, TOKEN, OWNER, 1, tmp_path / "x.flv")
    assert (raised.value.reason, raised.value.retry) == ("disk-full", True)
    with pytest.raises(errors.TranscodeFailed) as raised:
        await segment_fetch.fetch(node, TOKEN, OWNER, 4, tmp_path / "y.flv")
    assert (raised.value.reason, raised.value.retry) == ("disk-full", True)
    assert not names(tmp_path)


async def test_an_unwritable_spool_is_a_local_fault(node: str, tmp_path: Path) -> None:
    """A missing folder is a lost spool and no fault of the node."""
    with pytest.raises(errors.TranscodeFailed) as raised:
        await segment_fetch.fetch(node, TOKEN, OWNER, 1, tmp_path / "gone" / "x.flv")
    assert raised.value.reason == "spool-lost"
