"""Checks of `recorder doctor` on things that nodes share: broker, workers, dead letters, receivers; and on limits and time."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aio_pika
import asyncpg
import pytest

from bus import broker_connection, dead_letter_level, dead_letters
from bus import topology as topologies
from cli import doctor_checks as doctor
from cli import doctor_probes
from events import codec
from store import inspection
from tests import buses, decider_harness, engines, waiting
from tests.integration import doctor_world
from tests.integration.doctor_world import POSTGRESQL, World


@pytest.fixture
async def world(tmp_path: Path, database: engines.Database, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    async with doctor_world.prepared(tmp_path, database, monkeypatch) as made:
        # Its own database, and not a copy of it.
        made.environ |= {"DATABASE_URL": database.url, "SECRET_KEYS": engines.SECRET_KEYS}
        yield made


@POSTGRESQL
async def test_broker(world: World) -> None:
    """RabbitMQ: without queues before the first start, then with all, without one, without consumers, away."""
    topology = topologies.Topology(world.environ["AMQP_PREFIX"])
    assert "the first start declares" in (await world.examine())["broker"].found
    async with await aio_pika.connect(world.environ["AMQP_URL"]) as connection:
        await broker_connection.BrokerSession(connection, topology).open()
        assert await world.broken() == [("broker", "warn")]
        assert topology.machines.name in (await world.examine())["broker"].found
        channel = await connection.channel()
        for queue in (topology.requests, topology.machines, *topology.work):
            await (await channel.get_queue(queue.name)).consume(_ignore)
        assert await world.broken() == []
        await channel.queue_delete(topology.requests.name)
        assert await world.broken() == [("broker", "warn")]
        assert (await world.examine())["broker"].found == f"no queue {topology.requests.name}"
    world.environ["AMQP_URL"] = "amqp://PLANTED:PLANTED@127.0.0.1:9/"
    assert await world.broken() == [("broker", "warn")]
    assert "PLANTED" not in repr(await world.examine())


async def _ignore(_: Any) -> None:
    """Take a message, and leave it unacknowledged."""


@POSTGRESQL
async def test_workers(world: World) -> None:
    """PostgreSQL: no worker sent a heartbeat lately, or none ever did; a node without a spool is no worker."""
    assert (await world.examine())["workers"].found == "1 of 1 living nodes: w1"
    beats, world.heartbeats = world.heartbeats, None
    assert beats is not None
    connection = await asyncpg.connect(world.environ["DATABASE_URL"].replace("+asyncpg", ""))
    await connection.execute("UPDATE nodes SET seen_ms = seen_ms - 600000")
    assert await world.broken() == [("workers", "warn")]
    assert "the last heartbeat was 6" in (await world.examine())["workers"].found
    await connection.execute("DELETE FROM nodes")
    await connection.close()
    await beats.heartbeat("api1")
    assert await world.broken() == [("workers", "warn")]


async def test_dead_letters(world: World) -> None:
    """A message that is parked in the database is a warning with its number and the command."""
    outbox = world.service.store.outbox
    await outbox.send("event", codec.make("start", id="a", time_ms=engines.START_MS, data=decider_harness.START))
    (message,) = await outbox.unsent()
    await outbox.mark_sent(message.seq, parked="invalid")
    found = await world.examine()
    assert found["dead-letters"].status == "warn"
    assert found["dead-letters"].found.startswith("1 message is parked (database)")
    assert found["dead-letters"].type.startswith("recorder parked list")


@POSTGRESQL
async def test_dead_letters_of_the_broker(world: World) -> None:
    """RabbitMQ: doctor warns of parked messages with their number. It names a queue that is nearly full, that is full, or that
    has no limit. Without the broker it knows nothing of them."""
    world.patches.setattr(topologies, "PARKED_MESSAGES", 3)
    world.patches.setattr(dead_letter_level, "WARN_FROM", 2)
    topology = topologies.Topology(world.environ["AMQP_PREFIX"])
    async with await aio_pika.connect(world.environ["AMQP_URL"]) as connection, connection.channel() as channel:
        await topologies.declare_parked(channel, topology)
        assert (await world.examine())["dead-letters"].found == "none"
        one = await _with_parked(world, topology, 1)
        assert (one.status, one.found) == ("warn", "1 message is parked (broker).")
        assert one.type.startswith("recorder parked list")
        nearly = await _with_parked(world, topology, 2)
        assert (nearly.status, nearly.found) == ("warn", "2 messages are parked (broker).")
        assert nearly.type.startswith(f"{topology.parked} holds 2 messages, 3 are allowed.")
        full = await _with_parked(world, topology, 3)
        assert (full.status, full.found) == ("warn", "3 messages are parked (broker).")
        assert full.type.startswith(f"{topology.parked} is full")
        await channel.queue_delete(topology.parked)
        await topologies.declare_parked(channel, topology, limited=False)
        assert f"{topology.parked} has no limit of its own" in (await world.examine())["dead-letters"].type
    world.environ["AMQP_URL"] = "amqp://PLANTED:PLANTED@127.0.0.1:9/"
    assert (await world.examine())["dead-letters"].found == "not known: see broker"


async def _with_parked(world: World, topology: topologies.Topology, count: int) -> doctor.Finding:
    """Park one more message at the broker; returns the finding once doctor counts so many."""
    await buses.say(topology.parked, "x", b"{}", message_id=str(count))
    url, prefix = world.environ["AMQP_URL"], topology.prefix

    async def counted() -> bool:
        return (await dead_letters.level(url, prefix)).count == count

    await waiting.until(counted, timeout_s=20, what=f"{count} messages")
    return (await world.examine())["dead-letters"]


async def test_receivers(world: World, database: engines.Database) -> None:
    """A receiver whose results fail five times in a row is named by its host alone, with the number of results that wait."""
    before = (await world.examine())["receivers"]
    for room, tries in ((1, 5), (2, 6), (3, 4)):
        task_id = await world.service.open_session(RoomId=room, Callback=f"https://r{room % 2}.example.com/PLANTED")
        await world.service.say("stop", TaskId=task_id)
        await _fail_deliveries(database, task_id, tries)
    found = (await world.examine())["receivers"]
    assert (before.status, before.found, found.status) == ("ok", "none fails", "warn")
    assert found.found == "https://r0.example.com (1 waiting), https://r1.example.com (1 waiting)"


async def _fail_deliveries(database: engines.Database, task_id: str, tries: int) -> None:
    """Have the deliveries of a session failed so often."""
    statement = f"UPDATE callbacks SET tries = {tries} WHERE task_id = '{task_id}'"
    if database.engine == "postgresql":
        connection = await asyncpg.connect(database.url.replace("+asyncpg", ""))
        await connection.execute(statement)
        await connection.close()
    else:
        with engines.sqlite3.connect(database.path) as connection:
            connection.execute(statement)


async def test_processes(world: World) -> None:
    """Too few processes for the service and its ffmpegs."""
    world.patches.setattr(doctor_probes, "most_tasks", lambda: 200)
    assert await world.broken() == [("processes", "warn")]
    world.environ |= {"CAPTURE": "ffmpeg", "MAX_CAPTURES": "1000"}
    assert "1000" not in (await world.examine())["processes"].found
    world.patches.setattr(doctor_probes, "most_tasks", lambda: sys.maxsize)
    assert (await world.examine())["processes"].found == "no limit"


def test_the_limit_of_a_container_or_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest limit of a group above the process counts, and for other users than root that of the user."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "pids.max").write_text("70\n")
    (tmp_path / "a" / "b" / "pids.max").write_text("max\n")
    own = tmp_path / "own"
    own.write_text("0::/a/b\n")
    monkeypatch.setattr(doctor_probes.os, "geteuid", lambda: 0)
    assert doctor_probes.most_tasks(tmp_path, own) == 70
    monkeypatch.setattr(doctor_probes.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(doctor_probes.resource, "getrlimit", lambda _: (60, 90))
    assert doctor_probes.most_tasks(tmp_path, own) == 60
    monkeypatch.setattr(doctor_probes.resource, "getrlimit", lambda _: (doctor_probes.resource.RLIM_INFINITY, 90))
    assert doctor_probes.most_tasks(tmp_path / "none", tmp_path / "none") == sys.maxsize


def test_what_hangs_holds_up_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that does not end is a finding after the limit, and so are those that wait for its answer; the others are whole.
    The database, without which nothing works, fails. It is a file here, as no engine is asked."""
    end = threading.Event()
    monkeypatch.setattr(doctor_world.surroundings, "schema", lambda _: (end.wait(), inspection.schema_state("sqlite:///none"))[1])
    environ = {"HOME": str(tmp_path), "SPOOL_DIR": str(tmp_path), "PATH": "/usr/bin:/bin", "PULL_ADDRESS": "http://127.0.0.1:9"}
    began_s = time.monotonic()
    try:
        found = {each.check: each for each in doctor.examine(environ | {"COS_ENDPOINT": "http://127.0.0.1:9"}, limit_s=1.0)}
        assert not end.is_set()
        assert time.monotonic() - began_s < waiting.limit_s(20)
    finally:
        end.set()
    assert (found["database"].status, found["database"].found) == ("fail", "no answer within 1 s")
    assert "--within" in found["database"].type
    assert found["settings"].status == "ok"
    assert list(found) == list(doctor.CHECKS)
