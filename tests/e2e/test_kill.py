"""kill -9 in all working states, then a new start: every recording ends Done, and no result is doubled."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import imageio_ffmpeg

from simulator import speakers
from simulator.cos import faults
from tests import content, service_process, waiting
from tests.e2e import scenes
from tests.e2e.conftest import World, by_captures, live_for
from tests.e2e.scenes import Scene
from tests.e2e.test_rooms_and_modes import check_audit

STATES = ("Joining", "Recording", "Transcoding", "Uploading")
SPEAKERS = ("alice", "bob")
WORKING = {"native": 4, "ffmpeg": 6}
"""The work that is seen with all four states reached: two captures that receive media, two transcodes, and two ffmpegs that wait
for media. A native capture has no file before the first packet."""


def holding_transcoder(folder: Path) -> str:
    """An ffmpeg that captures as usual and starts no transcode of a session while `hold-<TaskId>` exists."""
    script = folder / "holding-ffmpeg"
    script.write_text(
        "#!/bin/sh\n"
        f'case "$*" in *max_muxing_queue_size*) for hold in {folder}/hold-*; do\n'
        '  case "$*" in *"${hold##*/hold-}"*) while [ -e "$hold" ]; do sleep 0.1; done ;; esac\n'
        "done ;; esac\n"
        f'exec {imageio_ffmpeg.get_ffmpeg_exe()} "$@"\n'
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return str(script)


async def enter(scene: Scene, *, stalled: bool = False) -> list[speakers.Speaker]:
    """Let both speakers enter and publish; a stalled one sends nothing."""
    found = [await scene.join(name, audio=False, video=False) for name in SPEAKERS]
    for speaker in found:
        if stalled:
            speaker.stall()
        await speaker.unmute_audio()
        await speaker.unmute_video()
    return found


async def reach_all(by_state: dict[str, Scene], folder: Path) -> list[speakers.Speaker]:
    """Bring each session to its state, so that all states occur at the same time; returns the speakers of the first."""
    rooms = [by_state[state] for state in STATES[1:]]
    for scene in rooms:
        await enter(scene)
    await asyncio.gather(*(scene.recordings("Recording", "Recording") for scene in rooms))
    await live_for(3)
    uploading, transcoding = by_state["Uploading"], by_state["Transcoding"]
    slow = faults.Fault(action=faults.DELAY, operation="upload-part", key=f"*{uploading.task_id}*", delay_s=10, times=2)
    uploading.world.simulator.cos.faults.set(slow)
    await uploading.room.dismiss()
    await uploading.recordings("Uploading", "Uploading")
    # Last, because held transcodes occupy all slots.
    (folder / f"hold-{transcoding.task_id}").touch()
    await transcoding.room.dismiss()
    waiting_speakers = await enter(by_state["Joining"], stalled=True)
    await asyncio.gather(*(scene.recordings(state, state) for state, scene in by_state.items()))
    return waiting_speakers


async def check(scene: Scene, *, gap: bool) -> None:
    """Assert that both recordings are complete and were reported once."""
    finished = await scene.world.service.finished(scene.task_id)
    assert [r["State"] for r in finished["Recordings"]] == ["Done", "Done"], finished
    await waiting.until(scene.results, 10, "the callback")
    (result,) = scene.results()
    assert result["Revision"] == 1
    for entry in result["Files"]:
        found: content.Content = await scene.inspect(entry)
        assert bool(scenes.gaps(entry)) == gap, entry
        content.check_together(found)


@by_captures
async def test_kill(world: World, tmp_path: Path, capture: str) -> None:
    """After a kill in all working states and a restart, every recording ends Done with one delivered result, and no ffmpeg is
    left over."""
    await scenes.encode(world)
    await world.serve(CAPTURE=capture, FFMPEG_BINARY=holding_transcoder(tmp_path), LEASE=f"{6 * waiting.pace():.1f}s")
    by_state: dict[str, Scene] = {state: Scene(world, 5000 + n) for n, state in enumerate(STATES)}
    for scene in by_state.values():
        await scene.start()
    stalled = await reach_all(by_state, tmp_path)
    await waiting.until(lambda: all(speaker.viewers for speaker in stalled), 10, "the pulls that get no media")
    pid = world.service.pid
    await waiting.until(lambda: len(service_process.work(pid)) >= WORKING[capture], 10, "all the work")
    orphans = service_process.children(pid)
    await world.service.kill()
    await waiting.until(lambda: not [p for p in orphans if Path(f"/proc/{p}").exists()], 5, "ffmpeg to die with the service")
    (tmp_path / f"hold-{by_state['Transcoding'].task_id}").unlink()
    world.simulator.cos.faults.set()
    for speaker in stalled:
        speaker.resume()
    await live_for(1)  # a pause of 0.3 s is no gap yet
    await world.service.start()
    live = [by_state[state] for state in ("Joining", "Recording")]
    await asyncio.gather(*(scene.recordings("Recording", "Recording") for scene in live))
    await live_for(3)
    for scene in live:
        await scene.room.dismiss()
    await asyncio.gather(*(check(scene, gap=state == "Recording") for state, scene in by_state.items()))
    check_audit(world)
