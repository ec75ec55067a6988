"""Progress of a live session: media so far, segments, gaps, and `show --watch` until it is Finished."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator

import pytest

from machine import job_key
from tests import engines, transactions, waiting
from tests.integration import api_service
from tests.integration.api_service import SDK_APP_ID, Service, now_ms, start_body
from tests.integration.test_commands import run
from tests.service_process import ROOT

T0 = 1_800_000_000_000


@pytest.fixture
async def service(database: engines.Database) -> AsyncIterator[Service]:
    async with api_service.running(database) as running:
        yield running


async def second_run(service: Service) -> str:
    """A session with a recording whose first run gave 5 s and whose second runs, after a gap of 3 s. Returns the TaskId."""
    _, answer = await service.ask("POST", "/sessions", json=start_body())
    task_id = str(answer["TaskId"])
    named, owner = {"TaskId": task_id, "Speaker": "alice", "N": 1}, job_key.RecordingKey(task_id, "alice", 1)
    await service.say("user-publishing", SdkAppId=SDK_APP_ID, RoomId=8489, UserId="alice", EventMs=now_ms(), Kind="audio")
    await service.store.leases.take(owner, 1, "node-1", 60_000)
    await service.store.segments.register(owner, 1, "node-1")
    await service.say("capture-started", **named, Epoch=1)
    ended = {"Reason": "eof", "MediaMs": 5000, "SizeBytes": 400, "FirstPacketMs": T0, "LastPacketMs": T0 + 5000}
    await service.say("ffmpeg-exit", **named, Epoch=1, Job="capture", **ended)
    epoch = (await service.store.assignments.recording(owner)).recording.epoch  # type: ignore[union-attr]
    async with transactions.opened(service.store) as tx:
        tx.arm(owner, "retry", 0)
    (due,) = [d for d in await service.store.deadlines.due() if d.owner == owner]
    await service.say("deadline-passed", Owner=str(owner), Kind="retry", Serial=due.serial)
    assert await service.store.leases.take(owner, epoch, "node-1", 60_000)
    await service.store.segments.register(owner, epoch, "node-1")
    await service.store.segments.update(
        owner, epoch, {"first_packet_ms": T0 + 8000, "last_packet_ms": T0 + 9000, "media_ms": 1000}
    )
    return task_id


async def test_media_so_far(service: Service) -> None:
    """Progress has the stored media, more if the capture runs in this process, and the gap between the two runs."""
    task_id = await second_run(service)
    _, body = await service.ask("GET", f"/sessions/{task_id}")
    (recording,) = body["Recordings"]
    assert (recording["MediaSeconds"], recording["Gaps"]) == (6.0, [{"At": 5.0, "Duration": 3.0}])
    assert [(s["MediaSeconds"], s["EndedBy"], s["Live"]) for s in recording["Segments"]] == [(5.0, "eof", False), (1.0, "", True)]
    service.progress[job_key.RecordingKey(task_id, "alice", 1)] = 4_200
    _, body = await service.ask("GET", f"/sessions/{task_id}")
    assert body["Recordings"][0]["MediaSeconds"] == 9.2


async def test_show_prints_segments_and_gaps(service: Service) -> None:
    """`show` prints each segment and gap with its recording."""
    task_id = await second_run(service)
    lines = (await run(service, "show", task_id)).stdout.splitlines()
    assert "alice/1\t5\t3" in lines
    (segment,) = [line.split("\t") for line in lines if line.startswith("alice/1\t1\t")]
    assert segment[2:7] == ["2027-01-15 08:00:00.000+00:00", "2027-01-15 08:00:05.000+00:00", "5.0", "400", "eof"]
    assert any(line.startswith("alice/1\t") and "(live)" in line for line in lines)


@pytest.mark.parametrize("as_json", [True, False])
async def test_watch_runs_until_the_session_is_finished(service: Service, as_json: bool) -> None:
    """`--watch` prints a line for each change and ends with 0 when the session is finished."""
    task_id = await second_run(service)
    words = ["show", task_id, "--watch", "--every", "0.1", *(["--json"] if as_json else [])]
    program = (sys.executable, "-c", "from cli import app; app.app(prog_name='recorder')", *words)
    environ = {"RECORDER_URL": service.url, "PYTHONPATH": str(ROOT)}
    process = await asyncio.create_subprocess_exec(*program, stdout=asyncio.subprocess.PIPE, env=environ)
    assert process.stdout is not None
    lines: list[str] = []

    async def read(what: str) -> None:
        async def check() -> bool:
            assert process.stdout is not None
            lines.append((await process.stdout.readline()).decode())
            return what in lines[-1]

        await waiting.until(check, 15, what)

    await read("6.0")
    service.progress[job_key.RecordingKey(task_id, "alice", 1)] = 2_500
    await read("7.5")
    named = {"TaskId": task_id, "Speaker": "alice", "N": 1}
    await service.say("stop", TaskId=task_id)
    _, body = await service.ask("GET", f"/sessions/{task_id}")
    epoch = body["Recordings"][0]["Segments"][1]["Epoch"]
    await service.say("ffmpeg-exit", **named, Epoch=epoch, Job="capture", Reason="stopped", MediaMs=2500, SizeBytes=4)
    await service.store.leases.take(job_key.RecordingKey(task_id, "alice", 1), epoch + 1, "node-1", 60_000)
    failed = {"Reason": "no-media", "Detail": "Nothing to join.", "Retry": False}
    await service.say("ffmpeg-exit", **named, Epoch=epoch + 1, Job="transcode", **failed)
    await read("Finished")
    assert await asyncio.wait_for(process.wait(), waiting.limit_s(15)) == 0
    if as_json:
        assert all(json.loads(line)["TaskId"] == task_id for line in lines)
    else:
        assert all(line.startswith(task_id + "\t") for line in lines)
