"""A network file system that hangs under the spool (embedded engine): the node stays alive and keeps its leases."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import aiohttp
import pytest

from simulator import rooms
from tests import service_process, waiting
from tests.e2e.conftest import APP, World, live_for

pytestmark = pytest.mark.parametrize("engine", ["embedded"])
LEASE_S = 2.0


class HungService(service_process.ServiceProcess):
    """A service whose spool hangs on request."""

    program = "from tests import hung_files; hung_files.main()"

    def flag(self, name: str) -> Path:
        """A file that steers the spool."""
        return self.folder / f"spool.{name}"

    def lease_end_ms(self) -> int:
        """When the capture's lease ends, in the database."""
        connection = sqlite3.connect(self.folder / "data" / "recorder.db")
        try:
            (found,) = connection.execute(
                "SELECT lease_until_ms FROM jobs WHERE kind = 'capture' AND state = 'leased'"
            ).fetchone()
        finally:
            connection.close()
        return int(found)


async def recording(world: World) -> tuple[str, rooms.Room]:
    """Start to record a room with one speaker; returns the TaskId and the room when media arrives."""
    started = await world.service.post("/sessions", world.request(1, Mode="00"))
    task_id: str = started["TaskId"]
    room = world.simulator.create_room(APP, 1)
    await room.join("alice")

    async def begun() -> bool:
        return await world.service.states(task_id) == ["Recording"]

    await waiting.until(begun, 15, "the recording", every_s=0.1)
    return task_id, room


@pytest.mark.parametrize("capture", ["native", "ffmpeg"])
async def test_a_spool_that_hangs_blocks_nothing_else(world: World, monkeypatch: pytest.MonkeyPatch, capture: str) -> None:
    """While no file operation of the spool returns, the node answers its probes and requests and renews the lease. Afterwards the
    same capture goes on, and the recording ends in Done. Nothing ever touched the spool on the event loop."""
    monkeypatch.setattr(service_process, "ServiceProcess", HungService)
    await world.serve(CAPTURE=capture, LEASE=f"{LEASE_S:g}s")
    service = world.service
    assert isinstance(service, HungService)
    service.flag("watch").touch()
    task_id, room = await recording(world)
    service.flag("hang").touch()
    try:
        before_ms = service.lease_end_ms()
        ends = time.monotonic() + 2 * LEASE_S
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=waiting.limit_s(2))) as http:
            while time.monotonic() < ends:
                async with http.get(service.url + "/readyz") as answer:
                    assert answer.status == 200
                await live_for(0.2)
            async with http.post(service.url + "/sessions", json=world.request(2)) as answer:
                assert answer.status == 503
        await waiting.until(lambda: service.lease_end_ms() > before_ms + 1000 * LEASE_S, what="renewals")
    finally:
        service.flag("hang").unlink()
    await live_for(2.0)
    await room.dismiss()
    finished = await service.finished(task_id)
    (file,) = finished["Recordings"]
    assert (file["State"], len(file["Segments"])) == ("Done", 1)
    assert not service.flag("on-loop").exists(), service.flag("on-loop").read_text()
