"""Files that a disk damages: a finished file while COS is away, a segment while its room is live."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

from simulator.cos import faults
from tests import content, waiting
from tests.e2e import scenes
from tests.e2e.conftest import World, live_for
from tests.e2e.test_failures import heal, record, result, segments

PAGE = 4096
AWAY = faults.Fault(action=faults.STATUS, operation="initiate")


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _zero_page(path: Path) -> None:
    """Overwrite the page in the middle of the file with zeros."""
    at = path.stat().st_size // 2 // PAGE * PAGE
    with path.open("r+b") as file:
        file.seek(at)
        file.write(bytes(PAGE))


async def _damaged_while_cos_is_away(world: World, room: int, mode: str, damage: Any) -> None:
    task_id = await record(world, room, AWAY, mode=mode)

    async def uploading() -> bool:
        return await world.service.states(task_id) == ["Uploading"]

    await waiting.until(uploading, 40, f"{room} to be uploaded", every_s=0.1)
    folder = world.service.folder / "spool" / task_id
    finished = {".mp3", ".mp4"}
    (path,) = (Path(at, name) for at, _, names in os.walk(folder) for name in names if Path(name).suffix in finished)
    whole = await asyncio.to_thread(content.look, path)
    size_bytes = path.stat().st_size
    await asyncio.to_thread(damage, path)
    heal(world, task_id)
    entry = await result(world, room, 1, 60)
    assert entry["Code"] == "Success", entry
    assert entry["Size"] == size_bytes
    found = await asyncio.to_thread(content.look, world.object_path(entry["RecordFile"]))
    assert (found.duration_s, found.beeps_s) == (whole.duration_s, whole.beeps_s)
    assert bytes(PAGE) not in await asyncio.to_thread(world.object_path(entry["RecordFile"]).read_bytes)
    lines = [json.loads(line) for line in world.service.log.read_text().splitlines() if '"upload.failed"' in line]
    assert "file-damaged" in [line["reason"] for line in lines if line["owner"].startswith(task_id)]


async def test_finished_files_damaged_while_cos_is_away(world: World) -> None:
    """While COS answers 503 one finished file is cut in half, and a page of another becomes zeros. Both are made again from the
    segments, and the bucket gets all of the media."""
    await world.serve()
    await asyncio.gather(
        _damaged_while_cos_is_away(world, 6101, "00", _truncate), _damaged_while_cos_is_away(world, 6102, "02", _zero_page)
    )


async def test_a_zeroed_page_of_a_segment(world: World) -> None:
    """A page of the growing segment becomes zeros while the room is live: the file has the media on both sides, the result is
    `Partial` with the cause, and the segment stays."""
    await world.serve()
    scene = scenes.Scene(world, "page")
    await scene.start()
    await scene.join("alice", size="640x360")
    await scene.recordings("Recording")
    await live_for(3)
    # A busy machine may have ended one before.
    segment = segments(world, scene.task_id)[-1]
    await asyncio.to_thread(_zero_page, segment)
    await live_for(3)
    await scene.room.dismiss()
    await world.service.finished(scene.task_id)
    (found,) = await waiting.until(scene.results, 20, "the result")
    (entry,) = found["Files"]
    assert (entry["Code"], entry["Status"]) == ("Partial", 1), entry
    assert "damaged" in entry["Detail"]
    assert entry["Duration"] > 4
    assert segment in segments(world, scene.task_id)
