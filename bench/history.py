"""The cost of an event on a database of many years next to that of the first event, on both engines.

    .venv/bin/python -m bench.history --write
    .venv/bin/python -m bench.history --engine embedded --quick

Rule: both databases take turns in one run, so other load hits both. Every commit is synced to disk. A ratio is that of medians.

The new database has one session with one speaker. The old one has SESSIONS finished sessions with rows in every table, and a
session with SPEAKERS speakers, of whom the measured one had PULLS earlier pulls (`tests/history.py` makes them in bulk). Both go
through the same cycle: a pull brings media, a track appears, the stream ends, the backoff passes. Leases are not measured.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import structlog
from ulid import ULID

from bench import lives, noise
from events import codec
from machine import job_key
from store import connections, queries
from tests import history, postgres

SESSIONS, PULLS, SPEAKERS = 1_000_000, 10_000, 500
QUICK = 10_000
# The first cycles fill caches and prepare statements.
WARM = 5


class Cycles(lives.Decisions):
    """Pulls of one speaker, one after the other."""

    def __init__(self, url: str) -> None:
        super().__init__(url, lanes=1)
        self.times: dict[str, list[float]] = defaultdict(list)
        self._key = job_key.RecordingKey("", "", 1)
        self._epoch = 0

    async def open(self, speakers: int, pulls: int) -> None:
        """Start a session whose speakers publish, and begin the pull of the first one."""
        room = {"SdkAppId": lives.APP, "RoomId": 88}
        if speakers > 1:
            await history.add_users(self.store, lives.now_ms(), speakers - 1, publishing=True)
        await self.say("user-publishing", room | {"UserId": lives.SPEAKER, "EventMs": lives.now_ms(), "Kind": "audio"})
        task_id = (await self.say("start", lives.request(88)))["TaskId"]
        self._key, self._epoch = job_key.RecordingKey(task_id, lives.SPEAKER, 1), 1
        await self._pull()
        if pulls:
            await history.add_pulls(self.store, self._key, pulls, media_ms=900)
            self._epoch += pulls
        await history.analyze(self.store)

    async def cycle(self) -> None:
        """A pull from its first packet to the next pull. The pull is leased already."""
        named = self._key.fields()
        there = {"SdkAppId": lives.APP, "RoomId": 88, "UserId": lives.SPEAKER}
        await self._timed("capture-started", named | {"Epoch": self._epoch, "FirstPacketMs": lives.now_ms()})
        await self._timed("user-publishing", there | {"EventMs": lives.now_ms(), "Kind": "video"})
        ended = {"Job": "capture", "Epoch": self._epoch, "Reason": "eof", "MediaMs": 900, "SizeBytes": 9}
        await self._timed("ffmpeg-exit", named | ended | {"LastPacketMs": lives.now_ms()})
        serial = await self.store.decisions.read(lambda snapshot: snapshot.deadline(self._key, "retry"))
        await self._timed("deadline-passed", {"Owner": self._key.text, "Kind": "retry", "Serial": serial})
        self._epoch += 1
        await self._pull()

    async def _pull(self) -> None:
        if not await self.store.leases.take(self._key, self._epoch, "n1", lives.POLICY.lease_ms):
            raise RuntimeError(f"the lease of epoch {self._epoch} was refused")
        await self.store.segments.register(self._key, self._epoch, "n1")

    async def _timed(self, type_: str, data: dict[str, Any]) -> None:
        event, begun_s = codec.make(type_, id=str(ULID()), time_ms=lives.now_ms(), data=data), time.perf_counter()
        await self.decider.decide(event)
        self.times[type_].append(time.perf_counter() - begun_s)


@contextlib.asynccontextmanager
async def embedded(folder: Path) -> AsyncIterator[list[str]]:
    """The addresses of two SQLite files."""
    yield [f"sqlite+aiosqlite:///{folder / name}.db" for name in ("new", "old")]


@contextlib.asynccontextmanager
async def distributed(_: Path) -> AsyncIterator[list[str]]:
    """The addresses of two databases on one server of the benchmark's own, which syncs to disk."""
    server = postgres.Server(durable=True)
    try:
        server.start()
        yield [server.create(), server.create()]
    finally:
        server.remove()


ENGINES = {"embedded": embedded, "distributed": distributed}


async def lengthen(url: str, sessions: int) -> None:
    """Fill a database with finished sessions. Without a limit of time for each statement, because these are large."""
    before, connections.COMMAND_TIMEOUT_S = connections.COMMAND_TIMEOUT_S, 3_600.0
    filling = lives.Decisions(url, lives.six_steps, lanes=1)
    connections.COMMAND_TIMEOUT_S = before
    await filling.start()
    await filling.recording()
    (finished,), _ = await queries.SessionQueries(filling.store.connections).sessions()
    await history.copy_session(filling.store, finished.task_id, sessions)
    await filling.stop()


async def settle(url: str) -> None:
    """Let PostgreSQL finish what bulk inserts leave to do, and would do during the measurement: a database of years has none."""
    if not url.startswith("postgresql"):
        return
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        for statement in ("VACUUM ANALYZE", "CHECKPOINT"):
            await connection.execute(statement)
    finally:
        await connection.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Medians of the times of one engine, in ms by type of event, on the new and on the old database."""

    about: str
    new: dict[str, float]
    old: dict[str, float]

    @property
    def ratio(self) -> float:
        """The cost of all events of a cycle: old to new."""
        return sum(self.old.values()) / sum(self.new.values())

    def as_json(self) -> dict[str, Any]:
        """The figures as JSON."""
        each = {name: {"new_ms": round(ms, 2), "old_ms": round(self.old[name], 2)} for name, ms in self.new.items()}
        return each | {"ratio": round(self.ratio, 2)}

    def table(self) -> str:
        """The figures as text."""
        lines = [[name, f"{ms:.2f}", f"{self.old[name]:.2f}", f"{self.old[name] / ms:.2f}"] for name, ms in self.new.items()]
        lines.append(["all", f"{sum(self.new.values()):.2f}", f"{sum(self.old.values()):.2f}", f"{self.ratio:.2f}"])
        return noise.table([self.about, "new, ms", "old, ms", "ratio"], lines)


async def measure(engine: str, folder: Path, *, sessions: int, pulls: int, rounds: int, speakers: int = SPEAKERS) -> Figures:
    """Run all rounds."""
    async with ENGINES[engine](folder) as (new_url, old_url):
        if sessions:
            await lengthen(old_url, sessions)
        new, old = Cycles(new_url), Cycles(old_url)
        for each, sizes in ((new, (1, 0)), (old, (speakers, pulls))):
            await each.start()
            await each.open(*sizes)
        for url in (new_url, old_url):
            await settle(url)
        for _ in range(WARM + rounds):
            for each in (new, old):
                await each.cycle()
        for each in (new, old):
            await each.stop()
    first, last = ({name: statistics.median(t[WARM:]) * 1000 for name, t in each.times.items()} for each in (new, old))
    about = f"{engine}: {sessions:,} sessions, {pulls:,} pulls, {speakers} speakers; {rounds} rounds"
    return Figures(about=about, new=first, old=last)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engine", choices=sorted(ENGINES), action="append", help="may be repeated; both without it")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--sessions", type=int, default=SESSIONS, help="0: none; so is seen which of the three costs what")
    parser.add_argument("--pulls", type=int, default=PULLS)
    parser.add_argument("--speakers", type=int, default=SPEAKERS)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK:,} sessions instead of {SESSIONS:,}, and few rounds")
    parser.add_argument("--folder", type=Path, default=Path("var"), help="on the disk that is measured; SQLite's alone")
    parser.add_argument("--write", action="store_true", help="write results/history.json")
    given = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    given.folder.mkdir(parents=True, exist_ok=True)
    sizes = {name: getattr(given, name) for name in ("sessions", "pulls", "speakers", "rounds")}
    if given.quick:
        sizes |= {"sessions": QUICK, "pulls": 1_000, "rounds": 10}
    quiet, results = noise.Noise(), {}
    for engine in given.engine or list(ENGINES):
        with tempfile.TemporaryDirectory(prefix="bench-", dir=given.folder.absolute()) as made:
            found = asyncio.run(measure(engine, Path(made), **sizes))
        print(found.table())
        results[engine] = found.as_json()
    print(quiet)
    if given.write:
        noise.write("history", quiet, sizes | results)


if __name__ == "__main__":
    main()
