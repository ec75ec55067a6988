"""Events decided per second, compared with bare transactions on the same database in the same run.

    .venv/bin/python -m bench.decisions
    .venv/bin/python -m bench.decisions --engine distributed

Rule: both take turns, so other load of the machine hits both. Every write is synced to disk, because the measurement is about the
price of a commit.

A bare transaction has four statements between BEGIN and COMMIT: claim an id, read a row, update it, append a line. On SQLite it
uses Python's sqlite3, in WAL with synchronous=FULL; on PostgreSQL it uses asyncpg, over AT_ONCE connections. The real Decider on
the real Store decides an event: claim, load, decide, guarded update, journal, outbox. With many nodes the event takes the whole
path: it is published to RabbitMQ with a confirmation, consumed, decided and acknowledged, and the relay publishes the effects.

The events are those of whole recordings, from `start` to `upload-finished`. Leases that workers take in between count as time,
not as events. Publishers and the one node share a process, which shares its cores with the servers.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import logging
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Protocol

import aio_pika
import asyncpg
import sqlalchemy
import structlog
from ulid import ULID

from bench import noise
from bus import rabbit as rabbit_bus
from events import codec
from handlers import dispatch, unit_of_work
from machine import encryption, job_key, model
from store import connections
from store import store as stores
from tests import postgres, rabbit

APP = 1400000001
AT_ONCE = 8
# Over the whole path: enough events in parallel that the waits (for a commit, for a confirmation) overlap.
ON_THE_WAY = 32
ROWS = 100
POLICY = model.Policy()
OUTPUT = {"DurationMs": 5_000, "SizeBytes": 9, "Crc64": "1", "StartMs": 1, "EndMs": 2, "Gaps": []}
COS = {"Region": "ap-shanghai", "Bucket": "bench-1250000000", "Path": "p", "SecretId": "id", "SecretKey": "key"}


def now_ms() -> int:
    """Unix time in ms."""
    return time.time_ns() // 1_000_000


class Bare(Protocol):
    """A loop of bare transactions."""

    async def run(self, seconds: float) -> tuple[int, float]:
        """(transactions, seconds)."""
        ...

    async def close(self) -> None:
        """Close the database."""
        ...


class BareFile:
    """Bare transactions on SQLite: one after the other, because there is one writer."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        for pragma in ("journal_mode=WAL", "synchronous=FULL"):
            self._connection.execute(f"PRAGMA {pragma}")
        self._connection.execute("CREATE TABLE inbox (id TEXT PRIMARY KEY, at_ms INTEGER)")
        self._connection.execute("CREATE TABLE recordings (id INTEGER PRIMARY KEY, state TEXT, version INTEGER)")
        self._connection.execute("CREATE TABLE journal (seq INTEGER PRIMARY KEY, body TEXT)")
        self._connection.executemany("INSERT INTO recordings VALUES (?, 'Joining', 1)", [(n,) for n in range(ROWS)])
        self._numbers = itertools.count()

    async def run(self, seconds: float) -> tuple[int, float]:
        """(transactions, seconds)."""
        execute = self._connection.execute
        begun, done = time.perf_counter(), 0
        while time.perf_counter() - begun < seconds:
            n = next(self._numbers)
            execute("BEGIN IMMEDIATE")
            execute("INSERT INTO inbox VALUES (?, ?)", (f"event-{n}", n))
            (version,) = execute("SELECT version FROM recordings WHERE id = ?", (n % ROWS,)).fetchone()
            execute("UPDATE recordings SET version = ? WHERE id = ? AND version = ?", (version + 1, n % ROWS, version))
            execute("INSERT INTO journal (body) VALUES (?)", ("x" * 120,))
            execute("COMMIT")
            done += 1
        return done, time.perf_counter() - begun

    async def close(self) -> None:
        """Close the database."""
        self._connection.close()


class BareServer:
    """Bare transactions on PostgreSQL: over AT_ONCE connections, each with rows of its own."""

    def __init__(self, pool: asyncpg.Pool[Any]) -> None:
        self._pool = pool
        self._numbers = itertools.count()

    @classmethod
    async def open(cls, url: str) -> BareServer:
        """Connect and create the tables."""
        pool = await asyncpg.create_pool(url.replace("+asyncpg", ""), min_size=AT_ONCE, max_size=AT_ONCE)
        await pool.execute("CREATE TABLE inbox (id TEXT PRIMARY KEY, at_ms BIGINT)")
        await pool.execute("CREATE TABLE recordings (id INT PRIMARY KEY, state TEXT, version INT)")
        await pool.execute("CREATE TABLE journal (seq BIGSERIAL PRIMARY KEY, body TEXT)")
        await pool.executemany("INSERT INTO recordings VALUES ($1, 'Joining', 1)", [(n,) for n in range(ROWS)])
        return cls(pool)

    async def run(self, seconds: float) -> tuple[int, float]:
        """(transactions, seconds)."""
        begun, done = time.perf_counter(), 0

        async def lane(row: int) -> None:
            nonlocal done
            async with self._pool.acquire() as connection:
                while time.perf_counter() - begun < seconds:
                    n = next(self._numbers)
                    async with connection.transaction():
                        await connection.execute("INSERT INTO inbox VALUES ($1, $2)", f"event-{n}", n)
                        version = await connection.fetchval("SELECT version FROM recordings WHERE id = $1 FOR UPDATE", row)
                        await connection.execute(
                            "UPDATE recordings SET version = $1 WHERE id = $2 AND version = $3", version + 1, row, version
                        )
                        await connection.execute("INSERT INTO journal (body) VALUES ($1)", "x" * 120)
                    done += 1

        await asyncio.gather(*(lane(row) for row in range(AT_ONCE)))
        return done, time.perf_counter() - begun

    async def close(self) -> None:
        """Close the database."""
        await self._pool.close()


class Decisions:
    """The real Decider on the real Store, fed with the events of whole recordings."""

    lanes = AT_ONCE

    def __init__(self, url: str) -> None:
        self._store = stores.Store(
            connections.open_database(url),
            clock=now_ms,
            new_id=lambda: str(ULID()),
            keyring=encryption.Keyring([encryption.new_key()]),
        )
        self._decider = dispatch.Decider(self._store, unit_of_work.Context(policy=POLICY, new_id=lambda: str(ULID())))
        self.engine = self._store.connections.engine
        self._rooms = itertools.count(1)
        self.decided = 0

    async def start(self) -> None:
        """Create the tables."""
        await self._store.start()

    async def stop(self) -> None:
        """Close the database."""
        await self._store.stop()

    async def run(self, seconds: float) -> tuple[int, float]:
        """(events, seconds): record as many rooms in parallel as there are lanes, until the time is over."""
        begun, before = time.perf_counter(), self.decided

        async def lane() -> None:
            while time.perf_counter() - begun < seconds:
                await self.recording()

        await asyncio.gather(*(lane() for _ in range(self.lanes)))
        return self.decided - before, time.perf_counter() - begun

    async def recording(self) -> None:
        """One room with one speaker, from start to end: eight events, three leases."""
        room = next(self._rooms)
        start = {"SdkAppId": APP, "RoomId": room, "UserId": "rec", "UserSig": "sig", "CosConfig": COS, "Mode": "02"}
        task_id = (await self._say("start", start))["TaskId"]
        of = {"TaskId": task_id, "Speaker": "alice", "N": 1}
        there = {"SdkAppId": APP, "RoomId": room, "UserId": "alice", "EventMs": now_ms(), "Kind": "audio"}
        await self._say("user-publishing", there)
        await self._lease(task_id, 1)
        await self._store.segments.register(job_key.RecordingKey(task_id, "alice", 1), 1, "n1")
        await self._say("capture-started", of | {"Epoch": 1, "FirstPacketMs": now_ms()})
        await self._say("user-publishing", there | {"Kind": "video"})
        await self._say("room-destroyed", {"SdkAppId": APP, "RoomId": room, "UserId": "", "EventMs": now_ms() + 1})
        await self._say("ffmpeg-exit", of | {"Job": "capture", "Epoch": 1, "Reason": "stopped", "MediaMs": 5_000, "SizeBytes": 9})
        await self._lease(task_id, 2)
        await self._say("ffmpeg-exit", of | {"Job": "transcode", "Epoch": 2, "Reason": "ok", "Output": OUTPUT})
        await self._lease(task_id, 3)
        await self._say("upload-finished", of | {"Epoch": 3, "SizeBytes": 9, "Crc64": "1", "Url": "https://bench/1"})

    async def _say(self, type_: str, data: dict[str, Any]) -> dict[str, Any]:
        self.decided += 1
        return await self._decide(codec.make(type_, id=str(ULID()), time_ms=now_ms(), data=data))

    async def _decide(self, event: codec.Event) -> dict[str, Any]:
        return await self._decider.decide(event)

    async def _lease(self, task_id: str, epoch: int) -> None:
        if not await self._store.leases.take(job_key.RecordingKey(task_id, "alice", 1), epoch, "n1", POLICY.lease_ms):
            raise RuntimeError(f"the lease of epoch {epoch} was refused: the events are not those of a whole recording")


class WholeWay(Decisions):
    """The same over RabbitMQ: one node of the role machine, with publishers in the same process."""

    lanes = ON_THE_WAY

    def __init__(self, url: str, broker: str) -> None:
        super().__init__(url)
        self._broker = broker
        self._waiting: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._bus = rabbit_bus.RabbitBus(
            self._store,
            url=broker,
            node="n1",
            roles=["machine"],
            clock=now_ms,
            on_event=self._on_event,
            on_command=self._on_command,
            keyring=encryption.Keyring([encryption.new_key()]),
        )

    async def start(self) -> None:
        """Create the tables, the queues and the connections."""
        await super().start()
        await self._bus.start()
        await self._bus.connection.session()
        self._connection = await aio_pika.connect(self._broker)
        self._exchange = await (await self._connection.channel()).get_exchange(self._bus.topology.exchange, ensure=False)

    async def stop(self) -> None:
        """Close everything."""
        await self._connection.close()
        await self._bus.stop()
        await super().stop()

    async def _decide(self, event: codec.Event) -> dict[str, Any]:
        decided = self._waiting[event.id] = asyncio.get_running_loop().create_future()
        message = aio_pika.Message(codec.encode(event), message_id=event.id, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await self._exchange.publish(message, f"event.{event.type}", mandatory=True)
        return await decided

    async def _on_event(self, event: codec.Event) -> None:
        answer = await self._decider.decide(event)
        self._waiting.pop(event.id).set_result(answer)

    async def _on_command(self, command: codec.Event) -> None:
        raise RuntimeError(f"a node of the role machine was handed {command.type}")


async def statements_per_event(made: Decisions) -> float:
    """The average number of statements per event, with BEGIN, COMMIT and the leases in between."""
    counted = 0

    def count(*_: object) -> None:
        nonlocal counted
        counted += 1

    sqlalchemy.event.listen(made.engine.sync_engine, "before_cursor_execute", count)
    before = made.decided
    await made.recording()
    sqlalchemy.event.remove(made.engine.sync_engine, "before_cursor_execute", count)
    return counted / (made.decided - before)


@contextlib.asynccontextmanager
async def embedded(folder: Path) -> AsyncIterator[tuple[Bare, list[tuple[str, Decisions]]]]:
    """Bare transactions and decisions on SQLite."""
    with tempfile.TemporaryDirectory(prefix="bench-", dir=folder) as made:
        bare = BareFile(Path(made) / "bare.db")
        yield bare, [("events decided", Decisions(f"sqlite+aiosqlite:///{made}/recorder.db"))]
        await bare.close()


@contextlib.asynccontextmanager
async def distributed(_: Path) -> AsyncIterator[tuple[Bare, list[tuple[str, Decisions]]]]:
    """Bare transactions, decisions, and decisions over RabbitMQ on PostgreSQL. It starts its own servers, which sync to disk."""
    server, broker = postgres.Server(durable=True), rabbit.Broker()
    try:
        server.start()
        broker.start()
        bare = await BareServer.open(server.create())
        decided = Decisions(server.create())
        yield bare, [("events decided", decided), ("by way of RabbitMQ", WholeWay(server.create(), broker.url))]
        await bare.close()
    finally:
        broker.remove()
        server.remove()


ENGINES = {"embedded": embedded, "distributed": distributed}


async def measure(engine: str, folder: Path, rounds: int, seconds: float, say: Callable[[str], None]) -> None:
    """Run all rounds and print the table."""
    async with ENGINES[engine](folder) as (bare, ways):
        for _, made in ways:
            await made.start()
        statements = await statements_per_event(ways[0][1])
        quiet = noise.Noise()
        transactions: list[float] = []
        events: dict[str, list[float]] = {name: [] for name, _ in ways}
        for _ in range(rounds):
            done, took_s = await bare.run(seconds)
            transactions.append(done / took_s)
            for name, made in ways:
                done, took_s = await made.run(seconds)
                events[name].append(done / took_s)
        for _, made in ways:
            await made.stop()
    lines = [["bare transactions, 4 statements", noise.spread(transactions)]]
    for name, found in events.items():
        ratios = [each / bare_one for each, bare_one in zip(found, transactions, strict=True)]
        lines += [[f"{name}, {statements:.0f} statements", noise.spread(found)], ["  ratio", noise.spread(ratios, ".3f")]]
    say(noise.table([f"{engine}, {rounds} rounds of {seconds:g} s each", "per second: median (least … most)"], lines))
    say(str(quiet))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engine", choices=sorted(ENGINES), default="embedded")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of each part of a round")
    parser.add_argument("--folder", type=Path, default=Path("var"), help="on the disk that is measured; SQLite's alone")
    given = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    given.folder.mkdir(parents=True, exist_ok=True)
    asyncio.run(measure(given.engine, given.folder, given.rounds, given.seconds, print))


if __name__ == "__main__":
    main()
