"""A machine's clock that is wrong, and is set while a room is live: nothing is lost, no lease ends, and the log reports it."""

from __future__ import annotations

import json
import time
from datetime import datetime

import aiohttp
import pytest

from machine import model
from tests import service_process, waiting
from tests.e2e import scenes
from tests.e2e.conftest import APP, World, live_for
from tests.e2e.test_streams import SIG_KEY

LEASE_S = 4.0 * waiting.pace()
TOLD_WITHIN_S = 10.0
PROGRAM = (
    "import os, pathlib; from tests.chaos import node; import service;"
    " ahead_ms = pathlib.Path(os.environ['HOME'], 'ahead-ms');"
    " node.set_clock(lambda: float(ahead_ms.read_text())); service.main()"
)


class WrongClock:
    """The clock of the service's machine, which a test sets."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._file = world.folder / "service" / "ahead-ms"
        self._file.parent.mkdir(parents=True, exist_ok=True)

    def set(self, ahead_ms: int) -> None:
        """Set it this far ahead of the true time."""
        new = self._file.with_suffix(".new")
        new.write_text(str(ahead_ms))
        new.replace(self._file)

    async def told(self, ahead_ms: int) -> None:
        """Wait until the log and /readyz report that it is so far ahead."""
        way = "ahead of" if ahead_ms > 0 else "behind"

        async def told() -> bool:
            async with aiohttp.ClientSession() as http, http.get(f"{self._world.service.url}/readyz") as answer:
                warned = any(way in each for each in answer.headers.getall("Recorder-Warning", []))
            return warned and abs(self._logged()[-1] - ahead_ms) < model.SECOND

        await waiting.until(told, TOLD_WITHIN_S, f"the report that the clock is {ahead_ms} ms ahead", every_s=0.2)

    def _logged(self) -> list[int]:
        lines = [json.loads(line) for line in self._world.service.log.read_text().splitlines() if line.startswith("{")]
        return [0, *(line["skew_ms"] for line in lines if line["event"] == "node.clock_off")]


async def test_a_clock_that_is_set_while_a_room_is_live(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It begins two days behind, is set an hour ahead, then ten minutes behind. Log and /readyz report each within ten seconds.
    The pull has a valid UserSig, the capture goes on under its lease, and the file has true times and no gap."""
    monkeypatch.setattr(service_process.ServiceProcess, "program", PROGRAM)
    clock = WrongClock(world)
    clock.set(-48 * model.HOUR)
    await world.serve(LEASE=f"{LEASE_S:.1f}s", TRTC_KEYS=json.dumps({str(APP): SIG_KEY}))
    world.simulator.configure_app(APP, user_sig_key=SIG_KEY)
    began_s = time.time()
    scene = scenes.Scene(world, "clock")
    await scene.start(UserSig="")
    await scene.join("alice")
    await scene.recordings("Recording")
    await clock.told(-48 * model.HOUR)
    for ahead_ms in (model.HOUR, -10 * model.MINUTE):
        clock.set(ahead_ms)
        await clock.told(ahead_ms)
        await live_for(1.2 * LEASE_S)
        await scene.recordings("Recording")
    await scene.room.dismiss()
    (entry,) = (await scene.files("RoomDestroyed"))["alice"]
    assert not [note for note in await scene.notes() if "worker-lost" in note]
    assert scenes.gaps(entry) == []
    start_s, end_s = (datetime.fromisoformat(entry[name]).timestamp() for name in ("StartTime", "EndTime"))
    assert began_s - 1 < start_s < end_s < time.time() + 1
    assert end_s - start_s == scenes.about(entry["Duration"])
