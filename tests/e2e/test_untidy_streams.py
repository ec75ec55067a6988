"""Untidy streams through the whole service with the native capture: start request, pull, transcode, object in the bucket. The
service is one process, on the embedded engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cli import align
from simulator import callbacks
from tests import untidy_content, untidy_streams, waiting
from tests.e2e import scenes
from tests.e2e.conftest import World

pytestmark = pytest.mark.parametrize("engine", ["embedded"])

NEAR_S = 0.15
# In mode 01 and 00 some of them, because each mode has code of its own.
ROOMS = {
    "02": None,
    "00": ("plain", "tracks-50s-apart", "once-900ms-back", "holes-of-300ms", "aac-then-g711", "sizes-of-tags-are-0"),
    "01": ("plain", "tags-jitter", "once-3s-ahead", "a-picture-a-second", "avc-then-hevc", "hevc-portrait"),
}


@pytest.fixture
async def server() -> AsyncIterator[untidy_streams.Server]:
    made = untidy_streams.Server()
    await made.start()
    yield made
    await made.stop()


def faults(entry: dict[str, Any], seen: untidy_content.Seen, cast: untidy_streams.Broadcast, mode: str) -> list[str]:
    """What is wrong with a file."""
    stream = cast.stream
    pictures, sound = stream.pictures if mode != "00" else None, stream.sound if mode != "01" else None
    wanted = {name for name, seconds in (("video", pictures), ("audio", sound)) if seconds is not None}
    beeps, flashes = {n: at for at, n in seen.beeps}, {n: at for at, n in seen.flashes}
    found = []
    if seen.tracks != wanted:
        found.append(f"it has {sorted(seen.tracks)}")
    if pictures is not None and seen.sizes != {stream.size}:
        found.append(f"its pictures have {sorted(seen.sizes)}")
    if pictures is not None and not pictures <= seen.numbers:
        found.append(f"pictures of {sorted(pictures - seen.numbers)} are missing")
    if pictures is not None and stream.flashes and [n for _, n in seen.flashes] != sorted(pictures):
        found.append(f"it flashes {seen.flashes}")
    if sound is not None and [n for _, n in seen.beeps] != sorted(sound):
        found.append(f"it beeps {seen.beeps}")
    if abs(seen.lacking_s) > 0.1:
        found.append(f"its sound lacks {seen.lacking_s:.2f} s")
    if not seen.in_order:
        found.append("two packets of one track have one time")
    if abs(entry["Duration"] - seen.duration_s) > 0.2:
        found.append(f"it lasts {seen.duration_s}")
    if gaps := scenes.gaps(entry):
        found.append(f"gaps {gaps}")
    if (stream.detail if sound is None else "") not in entry["Detail"]:
        found.append(f"Detail is {entry['Detail']!r}")
    near_s = (stream.apart_s + NEAR_S) * waiting.patience()
    for name, marks in (("flash", flashes), ("beep", beeps)):
        live = {n: align.live_s(entry, at) - cast.seconds_s[n] for n, at in marks.items() if n in cast.seconds_s}
        if late := {n: round(off, 2) for n, off in live.items() if abs(off) > near_s + entry["ErrorMs"] / 1000}:
            found.append(f"{name} {late} from when it was sent")
    if stream.flashes:
        apart = {n: round(flashes[n] - beeps[n], 2) for n in flashes.keys() & beeps.keys()}
        if far := {n: off for n, off in apart.items() if abs(off) > stream.apart_s * waiting.patience()}:
            found.append(f"picture and sound are {far} apart")
    return found


async def record(world: World, server: untidy_streams.Server, mode: str, names: list[str]) -> dict[str, list[str]]:
    """Record a room in which each stream is a speaker; returns the faults of each file."""
    scene = scenes.Scene(world, f"untidy-{mode}")
    await scene.start(mode)
    speakers = [f"{name}-{mode}" for name in names]
    for speaker in speakers:
        scene.room.announce(callbacks.VIDEO_ON if mode == "01" else callbacks.AUDIO_ON, speaker)
    casts = [server.broadcasts[speaker] for speaker in speakers]
    await waiting.until(lambda: all(cast.ended for cast in casts), 60, f"the streams of mode {mode}")
    await waiting.passed(0.5)
    scene.room.announce(callbacks.DISMISSED)
    result = await scene.result("RoomDestroyed")
    entries = {entry["UserId"]: entry for entry in result["Files"]}
    assert sorted(entries) == sorted(speakers), result
    found = {}
    for speaker, cast in zip(speakers, casts, strict=True):
        entry = entries[speaker]
        if entry["Status"] != 1:
            found[speaker] = [str(entry)]
            continue
        seen = await asyncio.to_thread(untidy_content.look, world.object_path(entry["RecordFile"]))
        found[speaker] = faults(entry, seen, cast, mode)
    return found


async def test_every_kind_of_untidy_stream_gives_a_right_file(world: World, server: untidy_streams.Server) -> None:
    """One room of each mode with a speaker for each kind: every file has all pictures and all sound that came, when they were
    live, in step and playable; what no one can read is named."""
    streams = await asyncio.to_thread(untidy_streams.streams)
    rooms = {mode: list(names or streams) for mode, names in ROOMS.items()}
    for mode, names in rooms.items():
        for name in names:
            server.broadcasts[f"{name}-{mode}"] = untidy_streams.Broadcast(stream=streams[name])
    await world.serve(CAPTURE="native", PULL_ADDRESS=server.template, **scenes.SHORT)
    judged: dict[str, list[str]] = {}
    for mode, names in rooms.items():
        judged |= await record(world, server, mode, names)
    assert {speaker: found for speaker, found in judged.items() if found} == {}
