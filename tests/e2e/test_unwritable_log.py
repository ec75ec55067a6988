"""The log cannot be written (embedded engine; the log knows none): the service records, answers and ends as it always does."""

from __future__ import annotations

import aiohttp
import pytest

from tests import backends, service_process
from tests.e2e import scenes
from tests.e2e.conftest import World
from tests.e2e.scenes import Scene

pytestmark = pytest.mark.parametrize("engine", [backends.EMBEDDED])

# Standard error of the service: a disk without space, and pipes whose reader is gone or does not read.
REDIRECT = {
    "a full disk": "os.dup2(os.open('/dev/full', os.O_WRONLY), 2)",
    "a reader that is gone": "r, w = os.pipe(); os.dup2(w, 2); os.close(r)",
    "a reader that does not read": "r, w = os.pipe(); os.dup2(w, 2); os.set_inheritable(r, True); os.write(2, bytes(60_000))",
}


@pytest.mark.timeout(90)
@pytest.mark.parametrize("how", REDIRECT)
async def test_a_room_is_recorded_without_a_log(world: World, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start, TRTC callbacks and capture succeed, the file has no gap, /readyz tells the lost lines, and the exit code is 0."""
    program = f"import os; {REDIRECT[how]}; import service; service.main()"
    monkeypatch.setattr(service_process.ServiceProcess, "program", program)
    service = await world.serve(LINGER="1s", LOG_LEVEL="debug")
    scene = Scene(world, "unwritable")
    await scene.start("00")
    await scene.join("alice")
    await scene.recordings("Recording")
    async with aiohttp.ClientSession() as http, http.get(f"{service.url}/readyz") as ready:
        (warning,) = [text for text in ready.headers.getall("Recorder-Warning") if "log lines were lost" in text]
        assert ready.status == 200, warning
    await scene.room.dismiss()
    await service.finished(scene.task_id)
    files = await scene.files("RoomDestroyed")
    assert [(entry["Code"], scenes.gaps(entry)) for entries in files.values() for entry in entries] == [("Success", [])]
    assert await service.stop() == 0
