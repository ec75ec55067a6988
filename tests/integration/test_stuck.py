"""Stuck sessions over a real store: API and command list exactly these, with the reason and the next command."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import sqlalchemy

from machine import attention, job_key, model
from tests import engines, transactions, waiting
from tests.integration import api_service
from tests.integration.api_service import SDK_APP_ID, Service, now_ms, start_body
from tests.integration.test_commands import run
from web import attention_watch, stuck_sessions

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


async def test_the_list_costs_the_same_at_any_length(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of queries does not grow with the sessions on the page, stuck or not. What needs attention beyond sessions is
    asked once in a while, however many requests tell it."""
    monkeypatch.setattr(attention_watch, "EVERY_S", 3_600.0)
    assert (await service.ask("GET", "/readyz"))[0] == 200
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
    assert max(costs) <= 7


async def test_rules_of_stuck_sessions_are_warnings_too(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """/readyz names each rule that holds for some session, once, with the number, and stops when none holds any more."""
    monkeypatch.setattr(attention_watch, "EVERY_S", 0.0)
    monkeypatch.setattr(attention_watch, "ROWS_EVERY_S", 0.0)
    for room in (2, 3):
        await uploading(service, room, failures=3)
    failed = await started(service)
    await service.failed_recording(failed)
    why = "cannot continue without you. `recorder sessions --stuck` has the reasons."
    assert (await told(service))[2] == [f"failed-kept: 1 session {why}", f"tried-often: 2 sessions {why}"]
    async with service.store.connections.write() as connection:
        await connection.execute(sqlalchemy.text("UPDATE recordings SET files_removed = :yes"), {"yes": True})
    assert (await told(service))[2] == [f"tried-often: 2 sessions {why}"]


async def test_many_sessions_are_read_in_several_looks(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stuck session behind healthy ones is found, although one look reads only two sessions."""
    monkeypatch.setattr(attention_watch, "EVERY_S", 0.0)
    monkeypatch.setattr(attention_watch, "ROUNDS", 1)
    monkeypatch.setattr(stuck_sessions, "CANDIDATES", 2)
    failed = await started(service)
    await service.failed_recording(failed)
    for room in range(2, 7):
        await speaking(service, room)
    seen = [(await told(service))[2] for _ in range(5)]
    assert seen[0] == []
    assert seen[-1] == ["failed-kept: 1 session cannot continue without you. `recorder sessions --stuck` has the reasons."]


async def test_the_list_counts_each_session_by_itself(service: Service) -> None:
    """A page has the counts of each of its sessions."""
    ids = [await speaking(service, room) for room in range(1, 4)]
    failed = await started(service)
    await service.failed_recording(failed)
    _, answer = await service.ask("GET", "/sessions")
    counts = {s["TaskId"]: s["Recordings"] for s in answer["Sessions"]}
    assert counts == {failed: {"Failed": 1}} | {key: {"Joining": 1} for key in ids}


async def told(service: Service) -> tuple[list[tuple[str, str]], str, list[str]]:
    """What needs attention: causes and subjects in the list, what the command shows, the warnings of /readyz."""
    _, answer = await service.ask("GET", "/sessions?stuck=true")
    shown = (await run(service, "sessions", "--stuck")).stderr
    async with service.http.get(f"{service.url}/readyz") as ready:
        warned = ready.headers.getall("Recorder-Warning", [])
    return [(each["Cause"], each["Subject"]) for each in answer["Attention"]], shown, warned


async def agree(service: Service, *expected: tuple[str, str]) -> bool:
    """Whether list, command and /readyz tell exactly these. /readyz names no subject, because anyone may call it."""
    causes, shown, warned = await told(service)
    lines = [" ".join(each).strip() for each in expected]
    begins = [line.split(":")[0] for line in shown.splitlines()] == (lines or ["Nothing is stuck."])
    return begins and causes == list(expected) and [text.split(":")[0] for text in warned] == [cause for cause, _ in expected]


async def test_one_node_alone(database: engines.Database) -> None:
    """It has no other worker to look for. Its own spool and clock count as those of a worker in a cluster do."""
    view = {"node": "", "seen_ms": now_ms() + MINUTE_MS, "free_bytes": 9, "needed_bytes": 5, "skew_ms": 0}

    async def own_node() -> attention.NodeView:
        return attention.NodeView(**view)

    async with api_service.running(database, ("right-token",), own_node=own_node) as service:
        assert await agree(service)
        view["free_bytes"] = 4
        await waiting.until(lambda: agree(service, ("disk-low", "")), 20, "the full disk")
        view |= {"free_bytes": None, "skew_ms": -90_000}
        await waiting.until(lambda: agree(service, ("spool-unreadable", ""), ("clock-off", "")), 20, "spool and clock")
        view |= {"free_bytes": 9, "skew_ms": 0}
        await waiting.until(lambda: agree(service), 20, "their end")


async def test_nodes_that_need_attention(database: engines.Database) -> None:
    """A cluster without a living worker, and one whose nodes have wrong clocks. Each cause ends by itself."""
    async with api_service.running(database, ("right-token",), distributed=True) as service:
        beat = service.store.nodes.heartbeat
        await beat("api-1", skew_ms=0)
        assert await agree(service, ("no-worker", ""))
        spare = model.SpareCapacity(free_bytes=10, needed_bytes=5, busy="")
        await beat("worker-1", "", spare, skew_ms=-3_000)
        await waiting.until(lambda: agree(service, ("clock-off", "worker-1")), 20, "the worker")
        await beat("worker-1", "", spare, skew_ms=20)
        await waiting.until(lambda: agree(service), 20, "the end")


@pytest.mark.parametrize("distributed", [True, False])
async def test_dead_letters_and_damaged_rows(database: engines.Database, distributed: bool) -> None:
    """A parked message and a row that cannot be read are listed until somebody handles them."""
    async with api_service.running(database, ("right-token",), distributed=distributed) as service:
        spare = model.SpareCapacity(free_bytes=10, needed_bytes=5, busy="")
        await service.store.nodes.heartbeat("worker-1", "", spare)
        task_id = await speaking(service, 7)
        await changed(service, "UPDATE outbox SET parked = 'It failed.', sent_ms = 1 WHERE type = 'start-capture'")
        assert await agree(service, ("parked", "database"))
        await changed(service, "UPDATE outbox SET parked = ''")
        await waiting.until(lambda: agree(service), 20, "the end of the dead letter")
        await changed(service, f"UPDATE sessions SET live = 5 WHERE task_id = '{task_id}'")
        await waiting.until(lambda: agree(service, ("row-unreadable", task_id)), 30, "the damaged row")
        await changed(service, f"UPDATE sessions SET live = 1 WHERE task_id = '{task_id}'")
        await waiting.until(lambda: agree(service), 20, "the repair")


async def changed(service: Service, statement: str) -> None:
    """Change rows as somebody with access to the database does."""
    async with service.store.connections.write() as connection:
        await connection.execute(sqlalchemy.text(statement))
