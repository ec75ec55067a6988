"""A network file system that hangs or is slow under the spool (embedded engine): the node stays alive and keeps its leases."""

from __future__ import annotations

import sqlite3
import time
from typing import Any

import aiohttp
import pytest

from simulator import rooms
from tests import service_process, spool_faults, waiting
from tests.e2e.conftest import APP, World, live_for

pytestmark = pytest.mark.parametrize("engine", ["embedded"])
LEASE_S = 2.0


class HungService(service_process.ServiceProcess):
    """A service whose spool hangs on request."""

    program = "from tests import spool_faults; spool_faults.main()"

    @property
    def faults(self) -> spool_faults.SpoolFaults:
        """The faults of its spool."""
        return spool_faults.SpoolFaults(self.folder / "spool")

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


async def served(world: World, monkeypatch: pytest.MonkeyPatch, capture: str) -> HungService:
    """Run the service with such a spool, and watch its event loop."""
    monkeypatch.setattr(service_process, "ServiceProcess", HungService)
    await world.serve(LEASE=f"{LEASE_S:g}s", CAPTURE=capture)
    assert isinstance(world.service, HungService)
    world.service.faults.watch()
    return world.service


async def finished(service: HungService, task_id: str, room: rooms.Room) -> dict[str, Any]:
    """End the room, and return its only recording, with the segments that it had before: they are deleted soon after it is Done.
    Nothing has touched the spool on the event loop."""
    await live_for(2.0)
    (live,) = (await service.session(task_id))["Recordings"]
    await room.dismiss()
    (file,) = (await service.finished(task_id))["Recordings"]
    assert service.faults.on_loop() == ""
    return {**file, "Segments": live["Segments"]}


@pytest.mark.parametrize("capture", ["native", "ffmpeg"])
async def test_a_spool_that_hangs_blocks_nothing_else(world: World, monkeypatch: pytest.MonkeyPatch, capture: str) -> None:
    """While no file operation of the spool returns, the node answers its probes and requests and renews the lease. Afterwards the
    same capture goes on, and the recording ends in Done. Nothing ever touched the spool on the event loop."""
    service = await served(world, monkeypatch, capture)
    task_id, room = await recording(world)
    service.faults.fail(spool_faults.HANG, *spool_faults.OPERATIONS)
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
                assert "does not answer" in (await answer.json())["Message"]
        await waiting.until(lambda: service.lease_end_ms() > before_ms + 1000 * LEASE_S, what="renewals")
    finally:
        service.faults.heal()
    file = await finished(service, task_id, room)
    assert (file["State"], len(file["Segments"])) == ("Done", 1)
    if capture == "native":
        assert file["Gaps"] == []


@pytest.mark.parametrize("capture", ["native", "ffmpeg"])
async def test_a_slow_spool_is_only_slow(world: World, monkeypatch: pytest.MonkeyPatch, capture: str) -> None:
    """If each file operation takes 100 ms, from the capture to the upload, one segment holds all media since the pull began."""
    service = await served(world, monkeypatch, capture)
    service.faults.fail(spool_faults.SLOW, *spool_faults.OPERATIONS, ms=100)
    task_id, room = await recording(world)
    file = await finished(service, task_id, room)
    assert (file["State"], len(file["Segments"])) == ("Done", 1)
    assert [gap for gap in file["Gaps"] if gap["At"]] == []


@pytest.mark.parametrize("capture", ["native", "ffmpeg"])
async def test_a_spool_that_hangs_does_not_keep_the_process(world: World, monkeypatch: pytest.MonkeyPatch, capture: str) -> None:
    """SIGTERM ends the process while no file operation returns. The next process records on, and the file reports its gap."""
    service = await served(world, monkeypatch, capture)
    task_id, room = await recording(world)
    service.faults.fail(spool_faults.HANG, *spool_faults.OPERATIONS)
    await live_for(1.0)
    assert await service.stop() == 0, service.log.read_text()[-3000:]
    service.faults.heal()
    await service.start()

    async def again() -> bool:
        return len((await service.session(task_id))["Recordings"][0]["Segments"]) > 1

    await waiting.until(again, 30, "the next segment", every_s=0.2)
    await live_for(2.0)
    await room.dismiss()
    (file,) = (await service.finished(task_id))["Recordings"]
    assert (file["State"], bool(file["Gaps"])) == ("Done", True)
