"""The real service on a real RTMP server, nginx-rtmp in TRTC's place: streams end, stall and change.

The simulator is the room (its clock, pictures, callbacks). Its speakers' streams are pushed to nginx and pulled from there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from simulator import speakers
from tests import content, waiting
from tests.e2e import scenes
from tests.e2e.conftest import FFMPEG, World, by_captures, live_for
from tests.e2e.test_rooms_and_modes import check_audit
from tests.nginx_rtmp import Edge


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[Edge]:
    made = Edge(tmp_path / "edge")
    await made.start()
    yield made
    await made.stop()


class Scene(scenes.Scene):
    """A room that is recorded from the edge."""

    def __init__(self, world: World, edge: Edge, name: int | str) -> None:
        super().__init__(world, name)
        self.edge = edge
        self.left_s: dict[str, list[float]] = {}

    async def enter(self, user_id: str, *, video: bool = True, by_ffmpeg: bool = False) -> speakers.Speaker:
        """Let a speaker enter, push and publish; returns when they are pulled."""
        before = len(self.plays(user_id))
        speaker = await self.join(user_id, audio=False, video=False)
        if by_ffmpeg:
            await speaker.unmute_video()
            await self.edge.publish_by_ffmpeg(speaker, self.world.simulator.pull_template)
        else:
            await self.edge.publish(speaker)
        await speaker.unmute_audio()
        if video:
            await speaker.unmute_video()
        await waiting.until(lambda: len(self.plays(user_id)) > before, 15, f"a pull of {user_id}")
        return speaker

    async def leave(self, speaker: speakers.Speaker) -> None:
        """Let the speaker leave, and end their stream."""
        self.left_s.setdefault(speaker.user_id, []).append(time.monotonic())
        await speaker.leave()

    def plays(self, user_id: str) -> list[float]:
        """The times at which a speaker was pulled."""
        return [play.at_s for play in self.edge.plays if (play.room, play.speaker) == (self.name, user_id)]


async def away_and_back(scene: Scene) -> None:
    """A speaker who is back within LINGER has one file with one gap, one who is back later a second file, and the other speaker
    is not affected."""
    await scene.start()
    bob = await scene.enter("bob", by_ffmpeg=isinstance(scene.name, int))
    alice = await scene.enter("alice")
    await live_for(4)
    await scene.leave(alice)
    await live_for(1)
    alice = await scene.enter("alice")
    await live_for(4)
    await scene.leave(alice)
    await scene.recordings("Recording", "Done")
    alice = await scene.enter("alice")
    # Of the beeps, those in the first second do not count, and two must be left.
    await live_for(4)
    first, second, third = scene.plays("alice")[:2] + scene.plays("alice")[-1:]
    away, gone = scene.left_s["alice"]
    ended = time.monotonic()
    await scene.room.dismiss()
    files = await scene.files("RoomDestroyed")
    assert not bob.here
    both, again = files["alice"]
    (gap,) = scenes.gaps(both)
    assert both["Duration"] == scenes.about(away - first + gone - second)
    assert gap["At"] == scenes.about(away - first)
    assert gap["Duration"] == scenes.about(second - away)
    assert again["Duration"] == scenes.about(ended - third)
    assert scenes.gaps(again) == []
    (whole,) = files["bob"]
    assert scenes.gaps(whole) == []
    for entry in (both, again, whole):
        found = await scene.inspect(entry)
        assert found.speakers == {scenes.number(entry["UserId"])}
        scenes.check_together(found, entry)


async def dropped(scene: Scene) -> None:
    """A pull that the server drops is repeated with a gap in the same file, and removing the recording user ends the file."""
    await scene.start("00")
    await scene.enter("alice")
    await scene.recordings("Recording")
    await live_for(3)
    assert await scene.edge.drop(scene.name, "alice") == 1
    await waiting.until(lambda: len(scene.plays("alice")) == 2, 5, "the next pull")
    await live_for(6)
    ended = time.monotonic()
    assert await scene.edge.drop(scene.name, "alice") == 1
    # The edge holds the pull, so the simulator knows of no such user in its room.
    scene.room.viewer_left("recorder", speakers.REMOVED)
    (entry,) = (await scene.files("UserRemoved"))["alice"]
    first, second = scene.plays("alice")[:2]
    (gap,) = scenes.gaps(entry)
    assert gap["Duration"] == scenes.about(second - first - gap["At"])
    assert entry["Duration"] == scenes.about(ended - first - gap["Duration"])
    content.check_spacing(scenes.after(await scene.inspect(entry), gap["At"]).beeps_s)


async def turned(scene: Scene) -> None:
    """When the picture changes its size inside a segment, every frame of the file has one size and decodes, and the sound goes
    on."""
    await scene.start()
    alice = await scene.enter("alice")
    await live_for(4)
    await alice.resize("240x320")
    await live_for(3)
    await alice.resize("640x360")
    await live_for(3)
    await scene.room.dismiss()
    (entry,) = (await scene.files("RoomDestroyed"))["alice"]
    found = await scene.inspect(entry)
    assert scenes.gaps(entry) == []
    assert found.sizes == ((640, 360),)
    content.check_spacing(found.beeps_s)


async def camera_on_later(scene: Scene, capture: str) -> None:
    """The file of a camera that is switched on after 8 s contains its picture and the sound of the first 8 s. An ffmpeg ends for
    it; the native capture goes on and misses nothing."""
    await scene.start()
    alice = await scene.enter("alice", video=False)
    await live_for(8)
    (began,) = scene.plays("alice")
    on_s = time.monotonic() - began
    await alice.unmute_video()
    pulls = 2 if capture == FFMPEG else 1
    await waiting.until(lambda: len(scene.plays("alice")) == pulls, 5, "the pull that includes the camera")
    await live_for(5)
    assert len(scene.plays("alice")) == pulls
    await scene.room.dismiss()
    (entry,) = (await scene.files("RoomDestroyed"))["alice"]
    found = await scene.inspect(entry)
    assert found.speakers == {alice.number}
    assert len([t for t in found.beeps_s if t < on_s]) >= 7
    assert on_s - 1 <= found.flashes_s[0] <= on_s + 3 * waiting.patience()
    assert len(found.flashes_s) >= 2
    assert min(abs(found.flashes_s[-1] - beep) for beep in found.beeps_s) <= 0.3
    assert sum(gap["Duration"] for gap in scenes.gaps(entry)) <= (2 * waiting.patience() if capture == FFMPEG else 0)


@by_captures
async def test_rooms_on_a_real_edge(world: World, edge: Edge, capture: str) -> None:
    """Returning speakers, a dropped recording user, other sizes, a late camera and a closed room each give the right files."""
    await scenes.encode(world, "240x320", "640x360")
    await world.serve(CAPTURE=capture, PULL_ADDRESS=edge.pull_template, **scenes.SHORT)
    played = [
        away_and_back(Scene(world, edge, 7001)),
        away_and_back(Scene(world, edge, "room 7001")),
        dropped(Scene(world, edge, 7002)),
        turned(Scene(world, edge, "7003")),
        camera_on_later(Scene(world, edge, 7004), capture),
    ]
    await asyncio.gather(*played)
    check_audit(world)


async def test_a_frozen_edge(world: World, edge: Edge) -> None:
    """A silent server is noticed within 12 s, and after it continues the recording is one file with the silence as a gap."""
    await scenes.encode(world)
    await world.serve(PULL_ADDRESS=edge.pull_template, **scenes.SHORT)
    scene = Scene(world, edge, 7100)
    await scene.start()
    await scene.enter("alice")
    await scene.recordings("Recording")
    await live_for(2)
    edge.freeze()
    frozen = time.monotonic()

    await scene.noted("Nothing arrived", 12)
    edge.thaw()
    silent_s = time.monotonic() - frozen
    await waiting.until(lambda: len(scene.plays("alice")) == 2, 10, "the next pull")
    await live_for(4)
    await scene.room.dismiss()
    (entry,) = (await scene.files("RoomDestroyed"))["alice"]
    (gap,) = scenes.gaps(entry)
    assert silent_s - 1 <= gap["Duration"] <= silent_s + 3 * waiting.patience()
    found = await scene.inspect(entry)
    assert len(scenes.after(found, gap["At"]).beeps_s) >= 3
    scenes.check_together(found, entry)
