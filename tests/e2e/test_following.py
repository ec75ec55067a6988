"""Recordings that are followed: the whole service writes and sends their files while they run, through kills, restarts, mutes,
late tracks and a replay. The service is one process, on the embedded engine, and follows within seconds.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from simulator.cos import faults, uploads
from tests import quick_following, service_process, waiting
from tests.e2e import scenes, session_audit
from tests.e2e.conftest import World, live_for
from tests.e2e.scenes import Scene
from tests.e2e.test_failures import heal
from tests.e2e.test_rooms_and_modes import check_audit

pytestmark = pytest.mark.parametrize("engine", ["embedded"])
OUTPUTS = {"recordings": "SELECT id, state, output FROM recordings"}


@pytest.fixture
async def rooms(world: World, monkeypatch: pytest.MonkeyPatch) -> dict[str, Scene]:
    """A service that follows within seconds, and a session for each kind of recording."""
    monkeypatch.setattr(service_process.ServiceProcess, "program", quick_following.PROGRAM)
    monkeypatch.setattr(uploads, "MIN_PART_BYTES", quick_following.PART_BYTES)
    await scenes.encode(world)
    await world.serve(FOLLOW="true", LEASE=f"{6 * waiting.pace():.1f}s")
    found = {name: Scene(world, name) for name in ("steady", "muted", "late", "sound", "refused")}
    for name, scene in found.items():
        await scene.start(mode="00" if name == "sound" else "02")
    broken = faults.Fault(action=faults.STATUS, operation="complete", status=403, code="AccessDenied", times=0)
    world.simulator.cos.faults.set(*(_of(broken, found["refused"]),))
    return found


def _of(fault: faults.Fault, scene: Scene) -> faults.Fault:
    return faults.Fault(**{name: getattr(fault, name) for name in fault.__slots__} | {"key": f"*{scene.task_id}*"})


async def recording(rooms: dict[str, Scene]) -> None:
    """Wait until all are recorded, and until COS has got another part of each one that can be followed."""
    before = {name: parts(scene) for name, scene in rooms.items() if name != "late"}
    await asyncio.gather(*(scene.recordings("Recording") for scene in rooms.values()))
    await waiting.until(lambda: all(parts(rooms[name]) > sent for name, sent in before.items()), 40, "parts of growing files")


def parts(scene: Scene) -> int:
    """How many parts of a session's files COS has got, again and again where a file begins again."""
    served = scene.world.simulator.cos.served
    return sum(each.operation == "upload-part" and scene.task_id in each.key for each in served)


def logged(world: World, event: str) -> list[Any]:
    """The lines of the service's log with this event."""
    lines = [json.loads(line) for line in world.service.log.read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == event]


def writing(pid: int) -> list[int]:
    """The ffmpegs of a service's followers."""
    return [ffmpeg for follower in service_process.children(pid) for ffmpeg in service_process.children(follower)]


def output(world: World, scene: Scene) -> dict[str, Any]:
    """What the transcode of a session's only recording reported."""
    assert world.backend is not None
    rows = session_audit.read(world.backend.database, OUTPUTS)["recordings"]
    (found,) = [json.loads(row["output"]) for row in rows if row["id"].startswith(scene.task_id)]
    assert isinstance(found, dict)
    return found


async def test_followed_recordings_survive_kills_and_restarts(world: World, rooms: dict[str, Scene]) -> None:
    """After kill -9 and SIGTERM in the middle, followers finish the files of one and two tracks, also one with a late picture,
    which they encode. All are delivered once, and nothing is left: no process, no unfinished file, no upload. A replay of the
    transcode makes the same bytes."""
    speakers = {name: await scene.join("alice", video=name != "late") for name, scene in rooms.items()}
    await recording(rooms)
    followers = service_process.children(world.service.pid)
    await world.service.kill()
    await waiting.until(lambda: not [p for p in followers if Path(f"/proc/{p}").exists()], 5, "followers to die with the service")
    await live_for(1)  # a pause of 0.3 s is no gap yet
    await world.service.start()
    await recording(rooms)
    await speakers["muted"].mute_audio()
    await speakers["late"].unmute_video()
    await live_for(2)
    await world.service.stop()
    await live_for(1)  # a pause of 0.3 s is no gap yet
    await world.service.start()
    await speakers["muted"].unmute_audio()
    await recording(rooms)
    for scene in rooms.values():
        await scene.room.dismiss()
    done = {name: await scene.world.service.finished(scene.task_id) for name, scene in rooms.items()}
    assert [r["State"] for name in done for r in done[name]["Recordings"]] == ["Done"] * 4 + ["Failed"]
    for scene in rooms.values():
        (entry,) = (await waiting.until(scene.results, 10, "the callback"))[0]["Files"]
        if entry["RecordFile"]:
            assert len(entry["Gaps"]) >= 2, entry
            await scene.inspect(entry)
    followed = {line["recording"]: (line["done"], line["why"]) for line in logged(world, "transcode.followed")}
    assert followed == {f"{scene.task_id}/alice/1": (True, "") for scene in rooms.values()}
    assert logged(world, "follower.gave_up") == []
    await replayed(world, rooms["refused"])
    await waiting.until(lambda: not writing(world.service.pid), 10, "the ffmpegs of followers to end")
    left = [*world.folder.glob("service/spool/**/*.part"), *world.simulator.folder.glob("cos-uploads/*/upload.json")]
    assert left == []
    check_audit(world)


async def replayed(world: World, scene: Scene) -> None:
    """The transcode from the segments gives the bytes that the follower gave."""
    followed = output(world, scene)
    heal(world, scene.task_id)
    await world.service.post(f"/sessions/{scene.task_id}/replay", {"From": "transcoding"})
    await scene.recordings("Done")
    again = output(world, scene)
    assert (again["Crc64"], again["SizeBytes"]) == (followed["Crc64"], followed["SizeBytes"])
    assert again["Epoch"] > followed["Epoch"]
