"""Whole path of the real service: rooms of each mode are recorded, and the object in the bucket equals the live stream."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests import content, waiting
from tests.e2e import scenes, session_audit
from tests.e2e.conftest import APP, World, by_captures, live_for

LIVE_S = 6.0
ROOMS: tuple[tuple[str, int | str], ...] = (
    ("00", 4001),
    ("00", "语文 课.%2F..|~"),
    ("01", 4002),
    ("01", "string-01"),
    ("02", 4003),
    ("02", "4003"),
)


def posted(world: World) -> dict[str, list[tuple[str, bytes]]]:
    """The delivered results, by TaskId."""
    found: dict[str, list[tuple[str, bytes]]] = {}
    for requests in world.simulator.receiver.received.values():
        for request in requests:
            webhook_id = {k.lower(): v for k, v in request.headers.items()}["webhook-id"]
            found.setdefault(webhook_id.rsplit(".", 1)[0], []).append((webhook_id, request.body))
    return found


def check_audit(world: World, *, failed: str = "") -> None:
    """Assert that nothing is lost or doubled, and nothing failed except in the session `failed`."""
    assert world.backend is not None
    report = session_audit.audit(world.backend.database, world.simulator.folder / "cos", posted(world))
    assert [fault for fault in report.faults if not (failed and fault in report.not_done and fault.startswith(failed))] == []


async def record(world: World, mode: str, name: int | str) -> tuple[dict[str, Any], float]:
    """Record one room with one speaker for LIVE_S seconds; returns the session and how long the speaker was live (s)."""
    started = await world.service.post("/sessions", world.request(name, Mode=mode))
    room = world.simulator.create_room(APP, name)
    speaker = await room.join("alice/老师")
    task_id = started["TaskId"]

    async def recording() -> bool:
        return await world.service.states(task_id) == ["Recording"]

    await waiting.until(recording, 15, f"{name!r} to be recorded", every_s=0.2)
    await live_for(LIVE_S)
    await room.dismiss()
    return await world.service.finished(task_id), speaker.stream.last_ms / 1000


@by_captures
async def test_all_modes_and_rooms(world: World, capture: str) -> None:
    """In each mode, in integer and string rooms, with either capture, the file contains the live stream: beeps and flashes a
    second apart and together."""
    await world.serve(CAPTURE=capture)
    finished = await asyncio.gather(*(record(world, mode, name) for mode, name in ROOMS))
    await waiting.until(lambda: all(world.results(name) for _, name in ROOMS), 10, "the callbacks")
    for (mode, name), (session, sent_s) in zip(ROOMS, finished, strict=True):
        (result,) = world.results(name)
        (entry,) = result["Files"]
        # On a busy machine the pull begins seconds late, which is reported as Partial.
        assert (entry["Status"], entry["Message"], entry["Code"] in scenes.DONE) == (1, "录制成功", True), session
        assert entry["UserId"] == "alice/老师"
        assert result["EndReason"] == "RoomDestroyed"
        assert (result["RoomId"], result["StrRoomId"]) == ((str(name), "") if isinstance(name, int) else ("", name))
        path = world.object_path(entry["RecordFile"])
        assert path.suffix == (".mp3" if mode == "00" else ".mp4")
        assert path.stat().st_size == entry["Size"]
        found = await asyncio.to_thread(content.look, path)
        assert (found.has_audio, found.has_video) == (mode != "01", mode != "00")
        assert found.duration_s == pytest.approx(entry["Duration"], abs=0.5)
        assert LIVE_S - 0.5 <= found.duration_s <= sent_s + 0.5
        if found.has_audio:
            content.check_spacing(found.beeps_s)
        if found.has_video:
            content.check_spacing(found.flashes_s)
            assert found.sizes == ((320, 240),)
        if mode == "02":
            content.check_together(found)
    check_audit(world)


@pytest.mark.alone
async def test_the_duration_equals_the_live_time(world: World) -> None:
    """The file is as long as the speaker was live, within half a second."""
    await world.serve()
    started = await world.service.post("/sessions", world.request(4100, Mode="02"))
    room = world.simulator.create_room(APP, 4100)
    speaker = await room.join("alice")
    await waiting.until(lambda: speaker.viewers, 10, "the pull")
    before_ms = speaker.stream.last_ms
    await live_for(5)
    await room.dismiss()
    live_s = (speaker.stream.last_ms - before_ms) / 1000
    await world.service.finished(started["TaskId"])
    await waiting.until(lambda: world.results(4100), 10, "the callback")
    (entry,) = world.results(4100)[0]["Files"]
    # The simulator hands a new viewer at most one second from its GOP cache, as an edge does.
    assert live_s - 0.5 <= entry["Duration"] <= live_s + 1.5
    check_audit(world)


async def test_nobody_published(world: World) -> None:
    """A room in which nobody spoke ends with an empty result and no failure."""
    await world.serve(JOIN_TIMEOUT="1s")
    started = await world.service.post("/sessions", world.request("empty"))
    finished = await world.service.finished(started["TaskId"])
    assert finished["EndReason"] == "NobodyPublished"
    await waiting.until(lambda: world.results("empty"), 10, "the callback")
    assert world.results("empty")[0]["Files"] == []
