"""One definition of *needs attention*: the log, the API, `recorder sessions --stuck`, `recorder doctor` and `/readyz` name the
same causes, and none of them names one in a healthy system.

The embedded engine sees its own spool and clock, the distributed one those of the heartbeats.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import structlog
from sqlalchemy import text

from cli import client, doctor_attention, doctor_checks, exits
from machine import attention, job_key, model
from tests import cli_runner, engines, examples, waiting
from tests.integration import api_service, test_stuck
from web import attention_watch, stuck

NEEDED = 5 << 30
TOKEN = "a-token-that-is-long-enough"
# The API's clock is behind the rows: what waits here does not count as late, however slow the machine is.
CALM_MS = -10 * model.MINUTE
RULES = {rule.name for rule in (*stuck.SESSION_RULES, *stuck.RECORDING_RULES, *stuck.DELIVERY_RULES)}
ONLY_DISTRIBUTED = ("postgresql",)


class World:
    """A healthy service: as one node alone on SQLite, as a cluster with two workers on PostgreSQL."""

    service: api_service.Service

    def __init__(self) -> None:
        self.view: dict[str, Any] = {}
        self.in_broker: list[attention.Attention] = []
        self.looks = 0

    async def own_node(self) -> attention.NodeView:
        """The one node, as it sees itself."""
        return attention.NodeView(node="", seen_ms=api_service.now_ms(), needed_bytes=NEEDED, **self.view)

    def findings(self) -> list[attention.Attention]:
        """The findings of the bus, which each look asks for."""
        self.looks += 1
        return self.in_broker

    async def worker(self, *, free_bytes: int | None = 2 * NEEDED, skew_ms: int = 0) -> None:
        """The worker `node`, as it shows itself: its free space and its clock."""
        self.view = {"free_bytes": free_bytes, "skew_ms": skew_ms}
        spare = model.SpareCapacity(free_bytes=free_bytes, needed_bytes=NEEDED)
        await self.service.store.nodes.heartbeat("node", "", spare, skew_ms=skew_ms)

    async def change(self, statement: str) -> None:
        """Change rows past the store."""
        async with self.service.store.connections.write() as connection:
            await connection.execute(text(statement))


@pytest.fixture
async def world(database: engines.Database, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(attention_watch, "EVERY_S", 0.0)
    monkeypatch.setattr(attention_watch, "ROWS_EVERY_S", 0.05)
    monkeypatch.setattr(doctor_checks, "CHECKS", {"attention": doctor_attention.check_attention})
    made, distributed = World(), database.engine == "postgresql"
    options: dict[str, Any] = {"distributed": True} if distributed else {"own_node": made.own_node}
    # Heartbeats count for two leases, and nobody repeats them here.
    options |= {"findings": made.findings, "policy": model.Policy(lease_ms=model.HOUR)}
    async with api_service.running(database, (TOKEN,), **options) as service:
        made.service, service.clock_ahead_ms = service, CALM_MS
        await made.worker()
        await service.store.nodes.heartbeat(
            "other", "", model.SpareCapacity(free_bytes=2 * NEEDED, needed_bytes=NEEDED), skew_ms=0
        )
        await service.store.nodes.heartbeat("api", skew_ms=0)
        yield made


# --- how each cause comes about -------------------------------------------------------------------------------------------
async def _no_worker(world: World) -> None:
    await world.change("UPDATE nodes SET seen_ms = 1 WHERE node <> 'api'")


async def _spool_unreadable(world: World) -> None:
    await world.worker(free_bytes=None)


async def _disk_low(world: World) -> None:
    await world.worker(free_bytes=NEEDED - 1)


async def _clock_off(world: World) -> None:
    await world.worker(skew_ms=-90_000)


async def _parked(world: World) -> None:
    await world.service.store.outbox.send("event", examples.event())
    await world.change("UPDATE outbox SET parked = 'It failed.', sent_ms = 1")


async def _parked_in_broker(world: World) -> None:
    world.in_broker += attention.of_parked(attention.IN_BROKER, 3)


async def _row_unreadable(world: World) -> None:
    await test_stuck.started(world.service)
    await world.change("UPDATE sessions SET live = 5")


async def _node_warning(world: World) -> None:
    world.service.warnings.append("A queue is full.")


async def _closing_long(world: World) -> None:
    task_id = await test_stuck.uploading(world.service, 1, failures=0)
    await world.service.store.leases.take(job_key.RecordingKey(task_id, "alice", 1), 3, "node", model.HOUR)
    world.service.clock_ahead_ms = 16 * model.MINUTE


async def _failed_kept(world: World) -> None:
    await world.service.failed_recording(await test_stuck.started(world.service))


async def _failed_live(world: World) -> None:
    await _capture_ends(world, await test_stuck.speaking(world.service, 1), 1, "refused-for-good")


async def _no_media(world: World) -> None:
    task_id = await test_stuck.speaking(world.service, 1)
    for epoch in range(1, 1 + stuck.MANY_FAILURES):
        await _capture_ends(world, task_id, epoch, "no-media")
        if epoch < stuck.MANY_FAILURES:
            await _retry(world, job_key.RecordingKey(task_id, "alice", 1))


async def _files_away(world: World) -> None:
    task_id = await test_stuck.speaking(world.service, 1)
    named, owner = {"TaskId": task_id, "Speaker": "alice", "N": 1}, job_key.RecordingKey(task_id, "alice", 1)
    await world.service.store.leases.take(owner, 1, "node", model.HOUR)
    await world.service.say("capture-started", **named, Epoch=1)
    await world.service.say("stop", TaskId=task_id)
    await world.service.say("ffmpeg-exit", **named, Epoch=1, Job="capture", Reason="stopped", MediaMs=5000, SizeBytes=4)
    await world.service.store.leases.take(owner, 2, "node", model.HOUR)
    detail = "Segments are on gone-1, which does not answer."
    await world.service.say("ffmpeg-exit", **named, Epoch=2, Job="transcode", Reason="node-away", Detail=detail, Retry=True)


async def _node_gone(world: World) -> None:
    await test_stuck.uploading(world.service, 1, failures=0)
    await world.change("UPDATE jobs SET node = 'node' WHERE kind = 'upload'")
    await world.change("UPDATE nodes SET seen_ms = 1 WHERE node = 'node'")


async def _tried_often(world: World) -> None:
    await test_stuck.uploading(world.service, 1, failures=stuck.MANY_FAILURES)


async def _not_taken(world: World) -> None:
    await test_stuck.speaking(world.service, 1)
    world.service.clock_ahead_ms = stuck.QUEUED_TOO_LONG_MS + model.SECOND


async def _lease_over(world: World) -> None:
    task_id = await test_stuck.speaking(world.service, 1)
    await world.service.store.leases.take(job_key.RecordingKey(task_id, "alice", 1), 1, "node", 1)
    world.service.clock_ahead_ms = stuck.LEASE_GRACE_MS + model.SECOND


async def _not_delivered(world: World) -> None:
    await _post_fails(world, await _with_result(world), 1, reason="gone", again=False)


async def _refused_often(world: World) -> None:
    task_id = await _with_result(world)
    for epoch in range(1, 1 + stuck.MANY_FAILURES):
        await _post_fails(world, task_id, epoch, reason="status", again=True)
        await _retry(world, job_key.DeliveryKey(task_id, 1))


async def _no_manifest(world: World) -> None:
    await _post_fails(
        world, await _with_result(world, Manifest=True), 1, reason="gone", again=False, number=model.MANIFESTS_FROM + 1
    )


async def _with_result(world: World, **start: Any) -> str:
    """A session whose result is to be delivered."""
    task_id = await test_stuck.started(world.service, **(start or {"Callback": "https://example.com/x"}))
    await world.service.ask("POST", f"/sessions/{task_id}/stop", json={})
    return task_id


async def _post_fails(world: World, task_id: str, epoch: int, *, reason: str, again: bool, number: int = 1) -> None:
    assert await world.service.store.leases.take(job_key.DeliveryKey(task_id, number), epoch, "node", model.HOUR)
    failed = {"Reason": reason, "Detail": "The receiver refused it.", "Retry": again}
    await world.service.say("callback-failed", TaskId=task_id, Revision=number, Epoch=epoch, **failed)


async def _capture_ends(world: World, task_id: str, epoch: int, reason: str) -> None:
    owner = job_key.RecordingKey(task_id, "alice", 1)
    assert await world.service.store.leases.take(owner, epoch, "node", model.HOUR)
    ended = {"Job": "capture", "Reason": reason, "Detail": "404.", "MediaMs": 0, "SizeBytes": 0}
    await world.service.say("ffmpeg-exit", TaskId=task_id, Speaker="alice", N=1, Epoch=epoch, **ended)


async def _retry(world: World, owner: Any) -> None:
    serial = await test_stuck.waiting_retry(world.service, owner)
    await world.service.say("deadline-passed", Owner=str(owner), Kind="retry", Serial=serial)


class Case(NamedTuple):
    """One way in which a cause comes about, and the engines on which it can."""

    cause: str
    make: Callable[[World], Awaitable[None]]
    on: tuple[str, ...] = engines.NAMES


CASES = (
    Case(attention.NO_WORKER, _no_worker, ONLY_DISTRIBUTED),
    Case(attention.SPOOL_UNREADABLE, _spool_unreadable),
    Case(attention.DISK_LOW, _disk_low),
    Case(attention.CLOCK_OFF, _clock_off),
    Case(attention.PARKED, _parked),
    Case(attention.PARKED, _parked_in_broker, ONLY_DISTRIBUTED),
    Case(attention.ROW_UNREADABLE, _row_unreadable),
    Case(attention.NODE_WARNING, _node_warning),
    Case("closing-long", _closing_long),
    Case("failed-kept", _failed_kept),
    Case("failed-live", _failed_live),
    Case("no-media", _no_media),
    Case("node-away", _files_away),
    Case("node-away", _node_gone, ONLY_DISTRIBUTED),
    Case("tried-often", _tried_often),
    Case("not-taken", _not_taken),
    Case("lease-over", _lease_over),
    Case("no-manifest", _no_manifest),
    Case("not-delivered", _not_delivered),
    Case("refused-often", _refused_often),
)


# --- the five places ------------------------------------------------------------------------------------------------------
@dataclass(slots=True)
class Told:
    """The causes that each place tells. `codes` are the exit codes of the two commands."""

    log: list[str]
    api: list[str]
    command: list[str]
    doctor: list[str]
    probe: list[str]
    codes: tuple[int, int]


def environment(service: api_service.Service) -> dict[str, str]:
    """The environment of a command."""
    return {"RECORDER_URL": service.url, "RECORDER_TOKEN": TOKEN, "DATA_DIR": "/nowhere"}


async def told(world: World, lines: Sequence[Any]) -> Told:
    """Ask every place. `lines` are those of the log."""
    service = world.service
    _, answer = await service.ask("GET", "/sessions?stuck=true")
    found = [reason for session in answer["Sessions"] for reason in session["Stuck"]]
    listed = await cli_runner.inside(environment(service), "sessions", "--stuck")
    rules = {_without_ages(f"{reason['Of']}\t{reason['Why']}\t{reason['Next']}"): reason["Rule"] for reason in found}
    rows = [rules[_without_ages(line.partition("\t")[2])] for line in listed.out.splitlines()[1:]]
    causes = [line.partition(":")[0].partition(" ")[0] for line in listed.err.splitlines() if line != "Nothing is stuck."]
    examined = await cli_runner.inside(environment(service), "doctor", "--within=60", "--json")
    (check,) = examined.json["Checks"]
    assert examined.json["Status"] == check["Status"] == ("warn" if listed.out or causes else "ok")
    async with service.http.get(f"{service.url}/readyz") as ready:
        assert ready.status == 200
        warned = [line.partition(":")[0] for line in ready.headers.getall("Recorder-Warning", [])]
    return Told(
        log=[line["cause"] for line in lines if line["event"] == "attention.needed" and line["log_level"] == "warning"],
        api=[*(each["Cause"] for each in answer["Attention"]), *(reason["Rule"] for reason in found)],
        command=[*causes, *rows],
        doctor=[each.partition(" ")[0] for each in check["Found"].split(", ") if check["Status"] != "ok"],
        probe=[attention.NODE_WARNING if each in service.warnings else each for each in warned],
        codes=(listed.code, examined.code),
    )


def _without_ages(text: str) -> str:
    """The text without the ages in it: seconds pass between two answers."""
    return re.sub(r"\b\d+ (?=s\b|min\b|h\b)", "", text)


@pytest.mark.parametrize(
    ("database", "case"),
    [pytest.param(on, case, id=f"{on}-{case.make.__name__[1:]}") for case in CASES for on in case.on],
    indirect=["database"],
)
async def test_each_cause_reaches_every_place(world: World, case: Case) -> None:
    """The log tells it although nobody asks; then list, command, doctor and probe tell it, and nothing else. The commands
    end with 0: a cause is a warning."""
    with structlog.testing.capture_logs() as lines:
        await case.make(world)
        await world.service.watch.start()
        await waiting.until(lambda: [line for line in lines if line["event"] == "attention.needed"], 20, "a line of the log")
        found = await told(world, lines)
    assert found == Told(*[[case.cause]] * 5, codes=(0, 0))


async def test_a_healthy_system_tells_nothing(world: World) -> None:
    """Live sessions, running captures, queued jobs and a delivered result need nobody."""
    with structlog.testing.capture_logs() as lines:
        await test_stuck.speaking(world.service, 1)
        await test_stuck.uploading(world.service, 2, failures=0)
        await world.service.watch.start()
        await waiting.until(lambda: world.looks > 3, 20, "a few looks")
        found = await told(world, lines)
    assert found == Told([], [], [], [], [], codes=(0, 0))


async def test_doctor_reads_every_page(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It names a rule of the last page, and the number of sessions for each rule. Where doctor stops or fails, it says so."""
    monkeypatch.setattr(doctor_attention, "PAGE", 1)
    await _failed_kept(world)
    oldest, _ = [await test_stuck.uploading(world.service, room, failures=stuck.MANY_FAILURES) for room in (2, 3)]

    async def found() -> str:
        examined = await cli_runner.inside(environment(world.service), "doctor", "--within=60", "--json")
        (check,) = examined.json["Checks"]
        assert (examined.code, check["Status"], check["Type"]) == (0, "warn", "recorder sessions --stuck")
        return str(check["Found"])

    assert await found() == "failed-kept (1), tried-often (2)"
    monkeypatch.setattr(doctor_attention, "PAGES", 2)
    assert await found() == f"tried-often (2), and more: 2 stuck sessions were read, and none before {oldest}"
    ask = client.ServiceClient.sessions

    def once(service: client.ServiceClient, **filters: str) -> client.Json:
        if filters.get("before"):
            raise client.ClientError("It did not answer in time.", exits.UNREACHABLE)
        return ask(service, **filters)

    monkeypatch.setattr(client.ServiceClient, "sessions", once)
    assert await found() == "tried-often (1), the rest is not known: It did not answer in time."


def test_every_cause_has_a_case() -> None:
    """A cause or a rule without a row in CASES is not shown to reach every place."""
    places = {attention.IN_DATABASE, attention.IN_BROKER}
    named = {value for name, value in vars(attention).items() if name.isupper() and isinstance(value, str)}
    assert {case.cause for case in CASES} == {*attention.CAUSES, *RULES} == {*named - places, *RULES}
