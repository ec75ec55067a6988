"""Failures: each failure message has a real cause, the files stay, and a replay repairs it as Revision 2.

Rule: a repaired file is in the bucket. It may be Partial, because on a busy machine a pull begins seconds late.
"""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import json
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import pytest

from simulator.cos import faults
from tests import content, waiting
from tests.e2e import scenes
from tests.e2e.conftest import APP, BUCKET, World, live_for
from tests.e2e.test_rooms_and_modes import check_audit

SPOOL_KIB = 4096
REFUSED = faults.Fault(action=faults.STATUS, operation="initiate", status=403, code="AccessDenied")


def failing_transcoder(folder: Path) -> str:
    """An ffmpeg that captures as usual and fails each transcode while the file `broken` exists."""
    script = folder / "failing-ffmpeg"
    script.write_text(
        "#!/bin/sh\n"
        f'case "$*" in *libmp3lame*) [ -e {folder}/broken ] && {{ echo "$(cat {folder}/broken)" >&2; exit 1; }} ;; esac\n'
        f'exec {imageio_ffmpeg.get_ffmpeg_exe()} "$@"\n'
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return str(script)


async def record(world: World, name: int | str, *strikes: faults.Fault, mode: str = "00", **more: Any) -> str:
    """Record one room with one speaker for some seconds, with faults of its own in COS; returns the TaskId."""
    started = await world.service.post("/sessions", world.request(name, Mode=mode, **more))
    task_id: str = started["TaskId"]
    if mine := [dataclasses.replace(strike, key=f"*{task_id}*", times=0) for strike in strikes]:
        world.simulator.cos.faults.set(*world.simulator.cos.faults.rules, *mine)
    room = world.simulator.create_room(APP, name)
    await room.join("alice")

    async def recording() -> bool:
        return await world.service.states(task_id) == ["Recording"]

    await waiting.until(recording, 15, f"{name!r} to be recorded", every_s=0.1)
    await live_for(3)
    await room.dismiss()
    return task_id


def heal(world: World, task_id: str) -> None:
    """Remove this session's faults in COS, and no other's."""
    rules = world.simulator.cos.faults.rules
    world.simulator.cos.faults.set(*(rule for rule in rules if task_id not in rule.key))


async def result(world: World, name: int | str, revision: int, timeout_s: float = 40) -> Any:
    """Wait for one revision of the room's result; returns its only file."""

    def came() -> Any:
        return next((r for r in world.results(name) if r["Revision"] == revision), None)

    body = await waiting.until(came, timeout_s, f"revision {revision} of {name!r}; see {world.service.log}")
    (entry,) = body["Files"]
    return entry


async def check_manifest(world: World, task_id: str, entry: Any, revision: int) -> None:
    """Wait until the manifest has this revision, whose only file is `entry`."""
    path = world.simulator.folder / "cos" / BUCKET / "lessons" / task_id / "manifest.json"

    def written() -> Any:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return found if found.get("Revision") == revision else None

    found = await waiting.until(written, 15, f"the manifest of revision {revision}")
    assert found["Files"] == [entry]
    (recording,) = found["Recordings"]
    assert recording["RecordFile"] == entry["RecordFile"]
    assert len(recording["Segments"]) >= 1


def segments(world: World, task_id: str) -> list[Path]:
    """The session's segments on the spool."""
    # Not rglob, which fails when the folder is removed meanwhile.
    found = [Path(folder, name) for folder, _, names in os.walk(world.service.folder / "spool" / task_id) for name in names]
    return sorted(path for path in found if path.suffix == ".flv")


async def failed_transcode(world: World, folder: Path) -> str:
    """转码失败 keeps the segments, a replay that fails again is Revision 2 with its own detail, and a good one is Success."""
    (folder / "broken").write_text("first cause")
    task_id = await record(world, 6001)
    entry = await result(world, 6001, 1)
    assert (entry["Status"], entry["Message"], entry["Code"], entry["RecordFile"]) == (0, "转码失败", "FailedTranscode", "")
    assert "first cause" in entry["Detail"]
    assert segments(world, task_id)
    (folder / "broken").write_text("second cause")
    await world.service.post(f"/sessions/{task_id}/replay")
    entry = await result(world, 6001, 2)
    assert entry["Code"] == "FailedTranscode"
    assert "second cause" in entry["Detail"]
    (folder / "broken").unlink()
    plan = await world.service.post(f"/sessions/{task_id}/replay", {"DryRun": True})
    assert [(r["State"], r["To"]) for r in plan["Recordings"]] == [("Failed", "Transcoding")]
    await world.service.post(f"/sessions/{task_id}/replay")
    entry = await result(world, 6001, 3)
    assert (entry["Code"] in scenes.DONE, entry["Message"]) == (True, "录制成功")
    assert content.look(world.object_path(entry["RecordFile"])).has_audio
    await waiting.until(lambda: not segments(world, task_id), 15, "the spool to be cleaned after Done")
    return task_id


async def failed_cos_write(world: World) -> str:
    """写cos失败 follows a permanent refusal; a replay with fresh credentials uploads the same file as Revision 2."""
    task_id = await record(world, 6002, REFUSED, mode="02")
    entry = await result(world, 6002, 1)
    assert (entry["Status"], entry["Message"], entry["Code"]) == (0, "写cos失败", "FailedCosWrite")
    assert "AccessDenied" in entry["Detail"]
    heal(world, task_id)
    fresh = {"CosConfig": {"SecretId": "AKIDexample", "SecretKey": "secret-key-example"}}
    answer = await world.service.post(f"/sessions/{task_id}/replay", fresh)
    assert [r["To"] for r in answer["Recordings"]] == ["Uploading"]
    entry = await result(world, 6002, 2)
    assert (entry["Code"] in scenes.DONE, entry["Status"]) == (True, 1)
    return task_id


async def wrong_credentials(world: World) -> str:
    """A replay with wrong credentials fails again, in a Revision of its own with the new reason."""
    task_id = await record(world, 6003, REFUSED, mode="02")
    assert (await result(world, 6003, 1))["Code"] == "FailedCosWrite"
    heal(world, task_id)
    wrong = {"CosConfig": {"SecretId": "AKIDexample", "SecretKey": "not-the-secret"}}
    await world.service.post(f"/sessions/{task_id}/replay", wrong)
    entry = await result(world, 6003, 2)
    assert entry["Code"] == "FailedCosWrite"
    assert "SignatureDoesNotMatch" in entry["Detail"]
    return task_id


async def upload_pending(world: World) -> str:
    """While COS is unavailable the result goes out as UploadPending after RESULT_WAIT; the end of the upload is Revision 2. The
    manifest has each of them in turn, with the segments."""
    broken = faults.Fault(action=faults.STATUS, operation="initiate")
    task_id = await record(world, 6004, broken, mode="02", Manifest=True)
    entry = await result(world, 6004, 1)
    assert (entry["Status"], entry["Message"], entry["Code"]) == (0, "写cos失败", "UploadPending")
    await check_manifest(world, task_id, entry, 1)
    heal(world, task_id)
    entry = await result(world, 6004, 2)
    assert entry["Code"] in scenes.DONE
    await check_manifest(world, task_id, entry, 2)
    return task_id


async def test_failures_and_their_replays(world: World, tmp_path: Path) -> None:
    """Failed transcodes and refused or delayed uploads, in four rooms of one service, are each reported by cause, keep their
    files, and are repaired by a replay or retry."""
    await world.serve(FFMPEG_BINARY=failing_transcoder(tmp_path), RESULT_WAIT="12s")
    _, _, failed, _ = await asyncio.gather(
        failed_transcode(world, tmp_path), failed_cos_write(world), wrong_credentials(world), upload_pending(world)
    )
    check_audit(world, failed=failed)


async def test_deliveries_survive_restarts_and_newer_ones_replace_older(world: World) -> None:
    """A restarted service retries an undelivered result, and a newer revision cancels an older one."""
    await world.serve()
    names = ("int-6005", "int-6006")
    for name in names:
        world.simulator.receiver.answer_with(name, 500)
    world.simulator.cos.faults.set(
        faults.Fault(action=faults.STATUS, operation="initiate", status=403, code="AccessDenied", key="*/alice_1.mp3")
    )
    replaced = await record(world, 6006)
    await waiting.until(lambda: world.results(6006), 20, "the first try")
    retried = await record(world, 6005)
    await waiting.until(lambda: world.results(6005), 20, "the first try")
    await world.service.post(f"/sessions/{replaced}/replay")
    await waiting.until(lambda: any(r["Revision"] == 2 for r in world.results(6006)), 20, "revision 2")
    await world.service.kill()
    for name in names:
        world.simulator.receiver.answer_with(name, 200)
    tries = {name: len(world.simulator.receiver.received[name]) for name in names}
    await world.service.start()
    await waiting.until(lambda: all(len(world.simulator.receiver.received[n]) > tries[n] for n in names), 20, "the retries")
    assert [r["Revision"] for r in world.results(6006)][tries["int-6006"] :] == [2]

    async def delivered() -> bool:
        found = [await world.service.session(task) for task in (retried, replaced)]
        return [[c["State"] for c in s["Callbacks"]] for s in found] == [["delivered"], ["cancelled", "delivered"]]

    await waiting.until(delivered, 10, "both to be delivered")
    ids = {
        dict(r.headers).get("webhook-id") or dict(r.headers)["Webhook-Id"] for r in world.simulator.receiver.received["int-6005"]
    }
    assert len(ids) == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few MiB; skipped on a machine that does not allow mounting one."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SPOOL_KIB}k", "tmpfs", str(folder)]
    made = subprocess.run(command, check=False, capture_output=True, text=True)
    if made.returncode != 0:
        pytest.skip(f"this machine lets us mount no tmpfs: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path, leave_kib: int) -> Path:
    """Fill the file system up to this many free bytes."""
    filler = folder / "filler"
    free = subprocess.run(["df", "--output=avail", "-k", folder], capture_output=True, text=True, check=True)
    try:
        filler.write_bytes(b"\0" * 1024 * max(0, int(free.stdout.split()[-1]) - leave_kib))
    except OSError as error:
        # The service took the rest meanwhile.
        if error.errno != errno.ENOSPC:
            raise
    return filler


async def test_disk_full_in_capture(world: World, small_disk: Path) -> None:
    """A full disk ends no recording: after space is freed it goes on by itself, and the file has both parts and the gap."""
    await world.serve(SPOOL_DIR=str(small_disk / "spool"), MIN_FREE="1")
    filler = fill(small_disk, leave_kib=48)
    started = await world.service.post("/sessions", world.request(6007, Mode="02"))
    room = world.simulator.create_room(APP, 6007)
    await room.join("alice", size="640x360")

    log = world.service.log
    await waiting.until(lambda: "disk-full" in log.read_text(), 40, "the disk to be full", every_s=0.1)
    assert await world.service.states(started["TaskId"]) == ["Recording"]
    await asyncio.to_thread(filler.unlink)
    before = log.read_text().count('"capture.running"')
    await waiting.until(lambda: log.read_text().count('"capture.running"') > before, 30, "the next capture", every_s=0.1)
    await live_for(3)
    await room.dismiss()
    entry = await result(world, 6007, 1)
    assert entry["Gaps"]
    assert content.look(world.object_path(entry["RecordFile"])).duration_s > 2


async def test_disk_full_in_transcode(world: World, small_disk: Path, tmp_path: Path) -> None:
    """A finished file that does not fit waits for space, and is delivered after some is freed."""
    await world.serve(SPOOL_DIR=str(small_disk / "spool"), MIN_FREE="1")
    started = await world.service.post("/sessions", world.request(6008))
    room = world.simulator.create_room(APP, 6008)
    await room.join("alice")
    await live_for(4)
    filler = fill(small_disk, leave_kib=12)
    await room.dismiss()
    await waiting.until(
        lambda: world.service.log.read_text().count('"transcode.failed"') > 3, 60, "more tries than a transcode has", every_s=0.1
    )
    assert await world.service.states(started["TaskId"]) == ["Transcoding"]
    await asyncio.to_thread(filler.unlink)
    assert (await result(world, 6008, 1, 60))["Code"] in scenes.DONE


async def test_admission_by_free_space(world: World) -> None:
    """A start below MIN_FREE is refused with 507 and a clear error, and leaves nothing behind."""
    await world.serve(MIN_FREE="1000000GiB")
    with pytest.raises(AssertionError, match="InsufficientSpace"):
        await world.service.post("/sessions", world.request(6009))
    assert (await world.service.get("/sessions"))["Sessions"] == []
