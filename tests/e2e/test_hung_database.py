"""A disk that hangs under SQLite's file (embedded engine): captures go on, the process ends when asked, all work continues."""

from __future__ import annotations

import aiohttp
import pytest

from tests import database_faults, service_process, waiting
from tests.e2e.conftest import World, live_for
from tests.e2e.test_hung_spool import recording

pytestmark = pytest.mark.parametrize("engine", ["embedded"])
SILENT = "The database file has not answered for"
ALL = tuple(database_faults.OPERATIONS)


class FaultyService(service_process.ServiceProcess):
    """A service whose database can hang. It counts as hung after a shorter time."""

    program = (
        "from store import group_commit; from tests import database_faults, waiting;"
        " group_commit.SILENT_S = 2 * waiting.pace(); database_faults.main()"
    )

    @property
    def faults(self) -> database_faults.DatabaseFaults:
        """The faults of its database."""
        return database_faults.DatabaseFaults(self.folder / "data" / "recorder.db")

    def size_bytes(self) -> int:
        """The size of the only segment."""
        (found,) = (self.folder / "spool").rglob("*.flv")
        return found.stat().st_size


async def served(world: World, monkeypatch: pytest.MonkeyPatch, capture: str) -> FaultyService:
    """Run the service with such a database."""
    monkeypatch.setattr(service_process, "ServiceProcess", FaultyService)
    await world.serve(CAPTURE=capture)
    assert isinstance(world.service, FaultyService)
    return world.service


async def refused(service: FaultyService, world: World) -> None:
    """The service is not ready and takes no start, and says why."""

    async def told() -> bool:
        async with http.get(service.url + "/readyz") as answer:
            return answer.status == 503 and str((await answer.json())["Message"]).startswith(SILENT)

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=waiting.limit_s(20))) as http:
        async with http.post(service.url + "/sessions", json=world.request(2)) as answer:
            assert (answer.status, "Retry-After" in answer.headers) == (503, True)
            assert (await answer.json())["Message"].startswith(SILENT)
        await waiting.until(told, 20, "/readyz to name the database")


@pytest.mark.parametrize("capture", ["native", "ffmpeg"])
async def test_captures_go_on(world: World, monkeypatch: pytest.MonkeyPatch, capture: str) -> None:
    """While no call on the database returns, starts get 503 and the capture writes on. Afterwards the same capture continues, a
    refused start is accepted, and the recording ends in Done without a gap."""
    service = await served(world, monkeypatch, capture)
    task_id, room = await recording(world)
    with service.faults.during(database_faults.HANG, *ALL):
        await refused(service, world)
        before = service.size_bytes()
        await waiting.until(lambda: service.size_bytes() > before, what="the segment to grow")
        await live_for(1.0)
    await service.ready()
    assert (await service.post("/sessions", world.request(2)))["TaskId"] != task_id
    (live,) = (await service.session(task_id))["Recordings"]  # its segments are deleted soon after it is Done
    await room.dismiss()
    (file,) = (await service.finished(task_id))["Recordings"]
    # ffmpeg may begin late.
    assert (file["State"], len(live["Segments"]), [gap for gap in file["Gaps"] if gap["At"]]) == ("Done", 1, [])


async def test_a_hung_database_does_not_keep_the_process(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM ends the process while no call on its database returns. The next process continues the recording."""
    service = await served(world, monkeypatch, "native")
    task_id, room = await recording(world)
    with service.faults.during(database_faults.HANG, *ALL):
        await refused(service, world)
        assert await service.stop() == 0, service.log.read_text()[-3000:]
    await service.start()
    await live_for(1.0)
    await room.dismiss()
    (file,) = (await service.finished(task_id))["Recordings"]
    assert file["State"] == "Done"
