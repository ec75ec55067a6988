"""Stuck sessions over a real store: API and command list exactly these, with the reason and the next command."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import sqlalchemy

from machine import job_key
from tests import engines, transactions
from tests.integration import api_service
from tests.integration.api_service import SDK_APP_ID, Service, now_ms, start_body
from tests.integration.test_commands import run

MINUTE_MS = 60_000


@pytest.fixture
async def service(database: engines.Database) -> AsyncIterator[Service]:
    async with api_service.running(database, ("right-token",)) as running:
        yield running


async def started(service: Service, **more: Any) -> str:
    _, answer = await service.ask("POST", "/sessions", json=start_body(**more))
    return str(answer["TaskId"])


async def speaking(service: Service, room: int) -> str:
    """A session with a recording whose first capture is queued."""
    task_id = await started(service, RoomId=room)
    await service.say("user-publishing", SdkAppId=SDK_APP_ID, RoomId=room, UserId="alice", EventMs=now_ms(), Kind="audio")
    return task_id


async def uploading(service: Service, room: int, failures: int) -> str:
    """A session whose upload has failed this many times and is retried."""
    task_id = await speaking(service, room)
    named, owner = {"TaskId": task_id, "Speaker": "alice", "N": 1}, job_key.RecordingKey(task_id, "alice", 1)
    await service.store.leases.take(owner, 1, "node", 30_000)
    await service.say("capture-started", **named, Epoch=1)
    await service.say("stop", TaskId=task_id)
    await service.say("ffmpeg-exit", **named, Epoch=1, Job="capture", Reason="stopped", MediaMs=5000, SizeBytes=4)
    output = {"DurationMs": 5000, "SizeBytes": 3, "Crc64": "", "StartMs": 1, "EndMs": 2, "Gaps": []}
    await service.store.leases.take(owner, 2, "node", 30_000)
    await service.say("ffmpeg-exit", **named, Epoch=2, Job="transcode", Reason="ok", Output=output)
    for epoch in range(3, 3 + failures):
        assert await service.store.leases.take(owner, epoch, "node", 30_000)
        failed = {"Reason": "network", "Detail": "No route to the bucket.", "Retry": True}
        await service.say("upload-failed", **named, Epoch=epoch, **failed)
        due = await waiting_retry(service, owner)
        await service.say("deadline-passed", Owner=str(owner), Kind="retry", Serial=due)
    return task_id


async def waiting_retry(service: Service, owner: job_key.RecordingKey) -> str:
    """The serial of the armed retry."""
    async with transactions.opened(service.store) as tx:
        tx.arm(owner, "retry", 0)
    (due,) = [d for d in await service.store.deadlines.due() if d.owner == owner and d.kind == "retry"]
    return due.serial


async def stuck(service: Service, query: str = "") -> dict[str, list[str]]:
    """TaskId → the names of the rules that match."""
    _, answer = await service.ask("GET", f"/sessions?stuck=true{query}")
    return {s["TaskId"]: [f["Rule"] for f in s["Stuck"]] for s in answer["Sessions"]}


async def test_nothing_is_stuck_at_first(service: Service) -> None:
    """Live sessions with queued work are not stuck, and the command reports none with exit code 0."""
    await speaking(service, 1)
    assert await stuck(service) == {}
    result = await run(service, "sessions", "--stuck")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "Nothing is stuck.\n")


async def test_each_cause_is_found_and_reported(service: Service) -> None:
    """A failure with files, an upload that keeps failing, a job without a worker, an expired lease and a session that does not
    finish are each listed under their rule, and healthy sessions are not."""
    failed = await started(service)
    await service.failed_recording(failed)
    fails = await uploading(service, 2, failures=3)
    lost = await speaking(service, 3)
    await service.store.leases.take(job_key.RecordingKey(lost, "alice", 1), 1, "gone", 1)
    queued = await speaking(service, 4)
    assert await stuck(service) == {failed: ["failed-kept"], fails: ["tried-often"]}
    service.clock_ahead_ms = MINUTE_MS + 1_000
    assert await stuck(service) == {
        queued: ["not-taken"],
        lost: ["lease-over"],
        fails: ["tried-often", "not-taken"],
        failed: ["failed-kept"],
    }
    service.clock_ahead_ms = 16 * MINUTE_MS
    assert (await stuck(service))[fails] == ["closing-long", "tried-often", "not-taken"]


async def test_an_undelivered_result_is_stuck(service: Service) -> None:
    """A delivery that is overdue and one that was refused permanently are stuck."""
    task_id = await started(service, Callback="https://example.com/x")
    await service.ask("POST", f"/sessions/{task_id}/stop", json={})
    assert await stuck(service) == {}
    service.clock_ahead_ms = 2 * MINUTE_MS
    assert await stuck(service) == {task_id: ["not-taken"]}
    service.clock_ahead_ms = 0
    await service.store.leases.take(job_key.DeliveryKey(task_id, 1), 1, "node", 30_000)
    refused = {"Reason": "gone", "Detail": "The receiver answered 410.", "Retry": False}
    await service.say("callback-failed", TaskId=task_id, Revision=1, Epoch=1, **refused)
    assert await stuck(service) == {task_id: ["not-delivered"]}


async def test_the_stuck_are_filtered_and_paged(service: Service) -> None:
    """Filters apply, a page has the requested size, and `Next` leads through all pages."""
    ids = []
    for room in range(1, 6):
        ids.append(await uploading(service, room, failures=3))
        await speaking(service, 100 + room)
    assert list(await stuck(service, "&room=3")) == [ids[2]]
    assert list(await stuck(service, "&state=Open")) == []
    seen: list[str] = []
    before = ""
    while True:
        _, answer = await service.ask("GET", f"/sessions?stuck=true&limit=2&before={before}")
        seen += [s["TaskId"] for s in answer["Sessions"]]
        before = answer["Next"]
        if not before:
            break
    assert seen == ids[::-1]


async def test_the_command_prints_the_reason_and_the_next_step(service: Service) -> None:
    """The command prints a row per reason, `show` prints the same, and the command in it, typed unchanged, moves the recording
    on."""
    task_id = await started(service)
    await service.failed_recording(task_id)
    result = await run(service, "sessions", "--stuck")
    headings, line = (text.split("\t") for text in result.stdout.splitlines())
    assert headings == ["TaskId", "Of", "Why", "Next"]
    assert line[:3] == [task_id, "alice/1", "FailedCosWrite: The bucket refused the key (403)."]
    shown = await run(service, "show", task_id)
    assert "Stuck" in shown.stdout
    words = line[3].split("`recorder ")[1].split("`")[0].split()
    assert (await run(service, *words)).exit_code == 0
    assert json.loads((await run(service, "sessions", "--stuck", "--json")).stdout)["Sessions"] == []


async def test_the_list_costs_the_same_at_any_length(service: Service) -> None:
    """The number of queries does not grow with the sessions on the page, stuck or not."""
    queries: list[str] = []
    listened = service.store.connections.engine.sync_engine
    sqlalchemy.event.listen(listened, "before_cursor_execute", lambda *args: queries.append(args[2]))
    costs = []
    for room in range(1, 4):
        await uploading(service, room, failures=3)
        for query in ("", "?stuck=true"):
            queries.clear()
            _, answer = await service.ask("GET", f"/sessions{query}")
            assert len(answer["Sessions"]) == room
            costs.append(len([q for q in queries if q.lstrip().upper().startswith("SELECT")]))
    assert costs == costs[:2] * 3
    assert max(costs) <= 6


async def test_the_list_counts_each_session_by_itself(service: Service) -> None:
    """A page has the counts of each of its sessions."""
    ids = [await speaking(service, room) for room in range(1, 4)]
    failed = await started(service)
    await service.failed_recording(failed)
    _, answer = await service.ask("GET", "/sessions")
    counts = {s["TaskId"]: s["Recordings"] for s in answer["Sessions"]}
    assert counts == {failed: {"Failed": 1}} | {key: {"Joining": 1} for key in ids}
