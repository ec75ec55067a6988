"""Events decided per second by the embedded engine, beside bare transactions on the same disk in the same run.

    .venv/bin/python -m bench.decisions

May import every room but `service`. Rule: both are measured in turns, so that what else the machine does hits both; the files lie
in a folder on disk (not in memory), because the price of a commit is what it is about.

A bare transaction is `BEGIN IMMEDIATE`, four statements (claim an id, read a row, update it, append a line) and `COMMIT`, in WAL
with synchronous=FULL, by Python's sqlite3 with nothing around it. An event is decided by the real Decider on the real Store:
claim, load, decide, guarded update, journal, outbox. The events are those of whole recordings, from `start` to `upload-finished`;
leases that workers take between them count as time, not as events.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import logging
import sqlite3
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy
import structlog
from ulid import ULID

from bench import noise
from events import codec
from handlers import applying, deciding
from machine import model
from store import engine as engines
from store import sealing
from store import store as stores

APP = 1400000001
AT_ONCE = 8
POLICY = model.Policy()
OUTPUT = {"DurationMs": 5_000, "SizeBytes": 9, "Crc64": "1", "StartMs": 1, "EndMs": 2, "Gaps": []}
COS = {"Region": "ap-shanghai", "Bucket": "bench-1250000000", "Path": "p", "SecretId": "id", "SecretKey": "key"}


def now_ms() -> int:
    """Unix time in ms."""
    return time.time_ns() // 1_000_000


class Bare:
    """Transactions with nothing around them."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        for pragma in ("journal_mode=WAL", "synchronous=FULL"):
            self._connection.execute(f"PRAGMA {pragma}")
        self._connection.execute("CREATE TABLE inbox (id TEXT PRIMARY KEY, at_ms INTEGER)")
        self._connection.execute("CREATE TABLE recordings (id INTEGER PRIMARY KEY, state TEXT, version INTEGER)")
        self._connection.execute("CREATE TABLE journal (seq INTEGER PRIMARY KEY, body TEXT)")
        self._connection.executemany("INSERT INTO recordings VALUES (?, 'Joining', 1)", [(n,) for n in range(100)])
        self._numbers = itertools.count()

    def run(self, seconds: float) -> tuple[int, float]:
        """(transactions, seconds)."""
        execute = self._connection.execute
        begun, done = time.perf_counter(), 0
        while time.perf_counter() - begun < seconds:
            n = next(self._numbers)
            execute("BEGIN IMMEDIATE")
            execute("INSERT INTO inbox VALUES (?, ?)", (f"event-{n}", n))
            (version,) = execute("SELECT version FROM recordings WHERE id = ?", (n % 100,)).fetchone()
            execute("UPDATE recordings SET version = ? WHERE id = ? AND version = ?", (version + 1, n % 100, version))
            execute("INSERT INTO journal (body) VALUES (?)", ("x" * 120,))
            execute("COMMIT")
            done += 1
        return done, time.perf_counter() - begun

    def close(self) -> None:
        """Close the database."""
        self._connection.close()


class Decisions:
    """The real Decider on the real Store, fed with the events of whole recordings."""

    def __init__(self, path: Path) -> None:
        self.engine = engines.open_engine(f"sqlite+aiosqlite:///{path}")
        self._store = stores.Store(
            self.engine, clock=now_ms, new_id=lambda: str(ULID()), sealer=sealing.Keyring([sealing.new_key()])
        )
        self._decider = deciding.Decider(self._store, applying.Context(policy=POLICY, new_id=lambda: str(ULID())))
        self._rooms = itertools.count(1)
        self.decided = 0

    async def start(self) -> None:
        """Make the tables."""
        await self._store.start()

    async def stop(self) -> None:
        """Close the database."""
        await self._store.stop()

    async def run(self, seconds: float) -> tuple[int, float]:
        """(events, seconds): AT_ONCE rooms are recorded side by side until the time is over."""
        begun, before = time.perf_counter(), self.decided

        async def lane() -> None:
            while time.perf_counter() - begun < seconds:
                await self.recording()

        await asyncio.gather(*(lane() for _ in range(AT_ONCE)))
        return self.decided - before, time.perf_counter() - begun

    async def recording(self) -> None:
        """One room with one speaker, from its start to its end: eight events, three leases."""
        room = next(self._rooms)
        start = {"SdkAppId": APP, "RoomId": room, "UserId": "rec", "UserSig": "sig", "CosConfig": COS, "Mode": "02"}
        task_id = (await self._say("start", start))["TaskId"]
        of = {"TaskId": task_id, "Speaker": "alice", "N": 1}
        there = {"SdkAppId": APP, "RoomId": room, "UserId": "alice", "EventMs": now_ms(), "Kind": "audio"}
        await self._say("user-publishing", there)
        await self._lease(task_id, 1)
        await self._store.register_segment(f"{task_id}/alice/1", 1, "n1")
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
        return await self._decider.decide(codec.make(type_, id=str(ULID()), time_ms=now_ms(), data=data))

    async def _lease(self, task_id: str, epoch: int) -> None:
        if not await self._store.take_lease(f"{task_id}/alice/1", epoch, "n1", POLICY.lease_ms):
            raise RuntimeError(f"the lease of epoch {epoch} was refused: the events are not those of a whole recording")


async def statements_per_event(made: Decisions) -> float:
    """How many statements one event costs on the average, BEGIN and COMMIT and the leases between included."""
    counted = 0

    def count(*_: object) -> None:
        nonlocal counted
        counted += 1

    sqlalchemy.event.listen(made.engine.sync_engine, "before_cursor_execute", count)
    before = made.decided
    await made.recording()
    sqlalchemy.event.remove(made.engine.sync_engine, "before_cursor_execute", count)
    return counted / (made.decided - before)


async def measure(folder: Path, rounds: int, seconds: float, say: Callable[[str], None]) -> None:
    """Run all rounds and print the table."""
    bare, made = Bare(folder / "bare.db"), Decisions(folder / "recorder.db")
    await made.start()
    statements = await statements_per_event(made)
    quiet = noise.Noise()
    both: list[tuple[float, float]] = []
    for _ in range(rounds):
        transactions, took_s = bare.run(seconds)
        events, events_took_s = await made.run(seconds)
        both.append((transactions / took_s, events / events_took_s))
    bare.close()
    await made.stop()
    ratios = [events / transactions for transactions, events in both]
    lines = [
        ["bare transactions, 4 statements", noise.spread([transactions for transactions, _ in both])],
        [f"events decided, {statements:.0f} statements", noise.spread([events for _, events in both])],
        ["ratio", noise.spread(ratios, ".3f")],
    ]
    say(noise.table([f"{rounds} rounds of {seconds:g} s each", "per second: median (least … most)"], lines))
    say(str(quiet))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of each half of a round")
    parser.add_argument("--folder", type=Path, default=Path("var"), help="on the disk that is measured")
    given = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    given.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=given.folder) as folder:
        asyncio.run(measure(Path(folder), given.rounds, given.seconds, print))


if __name__ == "__main__":
    main()
