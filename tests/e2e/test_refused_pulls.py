"""Pulls that the server refuses for a part of a speaker's time: what the result says is missing, and why."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.e2e import scenes
from tests.e2e.conftest import World, live_for

BUSY = 503
# Far more than max(2 s, 2 %) of the published time.
REFUSED_S = 8.0
# What happens between the refusals and the media around them.
SLACK_S = 2.0


async def _refused_at_first(world: World) -> tuple[Any, Any]:
    """The pulls of the first seconds are refused; returns the file's entry, and the gap that they left."""
    scene = scenes.Scene(world, "refused-at-first")
    await scene.start()
    alice = await scene.join("alice", audio=False, video=False)
    alice.refuse(BUSY, "busy")
    await alice.unmute_audio()
    await alice.unmute_video()
    await scene.noted(str(BUSY))
    await live_for(REFUSED_S)
    alice.accept()
    await scene.recordings("Recording")
    await live_for(3)
    await scene.room.dismiss()
    (entry,) = (await scene.files("RoomDestroyed"))["alice"]
    return entry, next((gap for gap in entry["Gaps"] if gap["At"] == 0), None)


async def _refused_at_last(world: World) -> tuple[Any, Any]:
    """The pulls of the last seconds are refused."""
    scene = scenes.Scene(world, "refused-at-last")
    await scene.start()
    alice = await scene.join("alice")
    await scene.recordings("Recording")
    await live_for(3)
    alice.refuse(BUSY, "busy")
    alice.close_viewers()
    await live_for(REFUSED_S)
    await scene.room.dismiss()
    (entry,) = (await scene.files("RoomDestroyed"))["alice"]
    return entry, next((gap for gap in entry["Gaps"] if gap["At"] == entry["Duration"]), None)


async def test_refused_pulls_make_partial_files(world: World) -> None:
    """The files have what the server gave. They are `Partial`, with the missing time as a gap at their edge, and the cause."""
    await world.serve()
    for entry, gap in await asyncio.gather(_refused_at_first(world), _refused_at_last(world)):
        assert (entry["Code"], entry["Status"]) == ("Partial", 1), entry
        assert gap is not None, entry
        assert gap["Duration"] >= REFUSED_S - SLACK_S, entry
        assert entry["Missing"] >= gap["Duration"], entry
        assert entry["Detail"].startswith("The server refused the pulls from "), entry
