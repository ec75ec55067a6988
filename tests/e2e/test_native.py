"""The native capture in the whole service: what its files hold, and when that was live."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from cli import align
from tests import waiting
from tests.chaos import media
from tests.e2e import scenes
from tests.e2e.conftest import World, live_for


async def _errors_s(world: World, entry: dict[str, Any], speaker: media.Live) -> list[float]:
    """How far each picture of a file is from the time at which it was live, by the anchors."""
    shown = await asyncio.to_thread(media.pictures, world.object_path(entry["RecordFile"]))
    unix_s = time.time() - time.monotonic()
    return [
        align.live_s(entry, picture.at_s) - unix_s - speaker.began_s - picture.frame / media.RATE
        for picture in media.sent(shown, speaker)
    ]


async def test_two_files_are_on_one_timeline_after_a_kill(world: World) -> None:
    """Two speakers, one of whom comes later, and a kill -9 in the middle: by its anchors each picture of both files was live when
    it was sent, the loss is a gap, and all published time is in the file or told."""
    await world.serve(CAPTURE="native", LEASE=f"{6 * waiting.pace():.1f}s")
    scene = scenes.Scene(world, "native")
    await scene.start()
    lives = {}
    for name in ("alice", "bob"):
        speaker = await scene.join(name)
        lives[name] = media.Live(began_s=speaker.stream.started_s, first_frame=round(speaker.stream.started_s) % 64 * media.RATE)
        lives[name].watch(speaker.stream)
        await live_for(1.5)
    await scene.recordings("Recording", "Recording")
    await live_for(2)
    await world.service.kill()
    await live_for(1)  # a pause of 0.3 s is no gap yet
    await world.service.start()
    world.point_callbacks()
    await waiting.until(lambda: all(live.pulls[-1][1] > time.monotonic() for live in lives.values()), 30, "new pulls")
    await live_for(3)
    await scene.room.dismiss()
    session = await world.service.finished(scene.task_id)
    await waiting.until(lambda: world.results("native"), 10, "the result")
    entries = {entry["UserId"]: entry for entry in world.results("native")[-1]["Files"]}
    assert {name: entry["Status"] for name, entry in entries.items()} == {"alice": 1, "bob": 1}, session
    for name, entry in entries.items():
        assert entry["Gaps"]
        errors = sorted(map(abs, await _errors_s(world, entry, lives[name])))
        assert len(errors) > 5 * media.RATE
        assert errors[len(errors) * 99 // 100] <= (entry["ErrorMs"] / 1000) + 0.1 * waiting.patience(), (errors[-10:], entry)
