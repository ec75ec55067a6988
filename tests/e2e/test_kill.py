"""kill -9 in each working state, then a new start: every recording ends Done, and no result is doubled."""

from __future__ import annotations

import stat
from pathlib import Path

import imageio_ffmpeg
import pytest

from simulator.cos import faults
from tests import content, service_process, waiting
from tests.e2e.conftest import APP, World, live_for
from tests.e2e.test_road import check_audit


def slow_transcoder(folder: Path) -> str:
    """An ffmpeg that captures as always and takes its time over a transcode, so that one can be killed in the middle."""
    script = folder / "slow-ffmpeg"
    script.write_text(
        "#!/bin/sh\n"
        f'case "$*" in *faststart*) [ -e {folder}/fast ] || sleep 3 ;; esac\n'
        f'exec {imageio_ffmpeg.get_ffmpeg_exe()} "$@"\n'
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return str(script)


async def reach(world: World, task_id: str, state: str) -> None:
    """Wait until both recordings are in `state`."""

    async def there() -> bool:
        return await world.service.states(task_id) == [state, state]

    await waiting.until(there, 20, f"both recordings to be {state}")


@pytest.mark.parametrize("state", ["Joining", "Recording", "Transcoding", "Uploading"])
async def test_kill(world: World, tmp_path: Path, state: str) -> None:
    """Killed in this state and started again: both recordings end Done, one result, delivered, and no ffmpeg is left behind."""
    await world.serve(FFMPEG_BINARY=slow_transcoder(tmp_path), LEASE="6s")
    started = await world.service.post("/sessions", world.request(5000, Mode="02"))
    task_id = started["TaskId"]
    room = world.simulator.create_room(APP, 5000)
    speakers = [await room.join(name, audio=False, video=False) for name in ("alice", "bob")]
    for speaker in speakers:
        if state == "Joining":
            speaker.stall()
        await speaker.unmute_audio()
        await speaker.unmute_video()
    if state != "Joining":
        await reach(world, task_id, "Recording")
        await live_for(3)
    if state == "Uploading":
        (tmp_path / "fast").touch()
        world.simulator.cos.faults.set(faults.Fault(action=faults.DELAY, operation="upload-part", delay_s=3, times=2))
    if state in ("Transcoding", "Uploading"):
        await room.dismiss()
    await reach(world, task_id, state)
    await waiting.until(lambda: service_process.children(world.service.pid) or state == "Uploading", 10, "the work to run")
    orphans = service_process.children(world.service.pid)
    await world.service.kill()
    await waiting.until(lambda: not [p for p in orphans if Path(f"/proc/{p}").exists()], 5, "ffmpeg to die with the service")
    (tmp_path / "fast").touch()
    for speaker in speakers:
        speaker.resume()
    await world.service.start()
    if state in ("Joining", "Recording"):
        await reach(world, task_id, "Recording")
        await live_for(3)
        await room.dismiss()
    finished = await world.service.finished(task_id)
    assert [r["State"] for r in finished["Recordings"]] == ["Done", "Done"], finished
    await waiting.until(lambda: world.results(5000), 10, "the callback")
    assert [r["Revision"] for r in world.results(5000)] == [1]
    for entry in world.results(5000)[0]["Files"]:
        found = content.look(world.object_path(entry["RecordFile"]))
        assert found.duration_s == pytest.approx(entry["Duration"], abs=0.5)
        assert bool(entry["Gaps"]) == (state == "Recording")
        content.check_together(found)
    check_audit(world)
