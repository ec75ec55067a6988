"""Recordings on a bounded spool, whose released bytes only COS has: the whole service through kill -9 and SIGTERM. The service is
one process, on the embedded engine, and follows within seconds.
"""

from __future__ import annotations

import asyncio
import itertools
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from simulator.cos import uploads
from tests import quick_following, service_process, waiting
from tests.chaos import judgement
from tests.e2e import scenes
from tests.e2e.conftest import World, live_for
from tests.e2e.scenes import Scene
from tests.e2e.test_rooms_and_modes import check_audit

pytestmark = pytest.mark.parametrize("engine", ["embedded"])


@pytest.fixture
async def rooms(world: World, monkeypatch: pytest.MonkeyPatch) -> dict[str, Scene]:
    """A service with a bounded spool that follows within seconds, and a session of pictures and one of sound."""
    monkeypatch.setattr(service_process.ServiceProcess, "program", quick_following.PROGRAM)
    monkeypatch.setattr(uploads, "MIN_PART_BYTES", quick_following.PART_BYTES)
    await world.simulator.content.picture("320x240", 0)
    await world.serve(SPOOL_POLICY="bounded", LEASE=f"{6 * waiting.pace():.1f}s")
    found = {mode: Scene(world, f"mode-{mode}") for mode in ("00", "02")}
    for mode, scene in found.items():
        await scene.start(mode=mode)
    return found


def sent(scene: Scene, number: int) -> int:
    """How many parts of a speaker's n-th file COS has got."""
    name = "/alice_1." if number == 1 else f"/alice_1-{number}."
    served = scene.world.simulator.cos.served
    return sum(each.operation == "upload-part" and scene.task_id in each.key and name in each.key for each in served)


async def followed(rooms: dict[str, Scene], number: int) -> None:
    """Wait until all are recorded, and COS has got parts of the n-th file of each."""
    await asyncio.gather(*(scene.recordings("Recording") for scene in rooms.values()))
    await waiting.until(lambda: all(sent(each, number) >= 2 for each in rooms.values()), 60, f"parts of growing file {number}")


async def test_kills_and_restarts_leave_files_that_follow_each_other(world: World, rooms: dict[str, Scene]) -> None:
    """After kill -9 and SIGTERM in the middle, the file of before is completed and the next one goes on: objects that play, each
    with an entry. What is in none of them is reported as a gap, and nothing is left on the spool or as parts in COS."""
    for scene in rooms.values():
        await scene.join("alice", number=0)
    await followed(rooms, 1)
    await world.service.kill()
    await live_for(1)  # a pause of 0.3 s is no gap yet
    await world.service.start()
    await followed(rooms, 2)
    await world.service.stop()
    await live_for(1)
    await world.service.start()
    await followed(rooms, 3)
    for scene in rooms.values():
        await scene.room.dismiss()
        assert [r["State"] for r in (await world.service.finished(scene.task_id))["Recordings"]] == ["Done"]
        entries = (await waiting.until(scene.results, 10, "the callback"))[0]["Files"]
        await check_files(scene, entries)
    spool = world.folder / "service" / "spool"
    await waiting.until(lambda: not [*spool.glob("*/*/*")], 20, "an empty spool")
    assert [*world.simulator.folder.glob("cos-uploads/*/upload.json")] == []
    check_audit(world)


async def check_files(scene: Scene, entries: list[Any]) -> None:
    """The files play, follow each other, and tell what is missing."""
    extension = ".mp3" if scene.name == "mode-00" else ".mp4"
    names = [Path(each["RecordFile"]).name for each in entries]
    # A busy machine may also move packets that are in a file already, which ends it.
    assert len(names) >= 3
    assert names == [f"alice_1{f'-{number}' if number > 1 else ''}{extension}" for number in range(1, len(names) + 1)]
    for entry in entries:
        assert (entry["Status"], entry["Message"]) == (1, "录制成功"), entry
        assert judgement.broken(scene.world.object_path(entry["RecordFile"])) == []
        await scene.inspect(entry)
    for one, other in itertools.pairwise(entries):
        assert at_s(other["StartTime"]) == scenes.about(at_s(one["EndTime"])), entries
    gaps = [gap for entry in entries for gap in entry["Gaps"] if 0 < gap["At"] < entry["Duration"]]
    assert len(gaps) >= 2, entries
    spanned_s = at_s(entries[-1]["EndTime"]) - at_s(entries[0]["StartTime"])
    told_s = sum(gap["Duration"] for gap in gaps) + sum(entry["Duration"] for entry in entries)
    assert told_s == scenes.about(spanned_s), entries


def at_s(time: str) -> float:
    """A time of a result, in s."""
    return datetime.fromisoformat(time).timestamp()
