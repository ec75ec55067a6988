"""The life of one recording for engines other than the recorder, and the measurement that all of them share.

Rule: six steps, each in a transaction of its own: a guarded update of the recording's state and a line of the journal. How one
step leads to the next is the engine's business, and so is what survives a crash in between. The measurement has two parts:

- a closed loop with `--lanes` lives at once; after a second of warm-up, steps are counted in the journal;
- then lives that begin at random, half as many a second; their time runs from the submission to the last line of the journal.

Programs print one line of JSON. They import nothing of the recorder but `bench.arrivals` and `bench.processes`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import asyncpg

from bench import arrivals, processes

STEPS = ("start", "capture-started", "ffmpeg-exit", "ffmpeg-exit-transcode", "upload-finished", "finished")
STATES = ("", "Joining", "Recording", "Transcoding", "Uploading", "Done", "Finished")
"""The state before the step of the same number; the one after it follows."""
LAST = len(STEPS) - 1
NOTE = "x" * 120
TABLES = """
CREATE TABLE life_recordings (id TEXT PRIMARY KEY, state TEXT NOT NULL, version INT NOT NULL, submitted_ms FLOAT8 NOT NULL);
CREATE TABLE life_journal (
  seq BIGSERIAL PRIMARY KEY, recording TEXT NOT NULL, event TEXT NOT NULL, from_state TEXT NOT NULL, to_state TEXT NOT NULL,
  note TEXT NOT NULL, at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp()
);
"""
INSERT = "INSERT INTO life_recordings VALUES (%s, %s, 1, %s) ON CONFLICT DO NOTHING"
UPDATE = "UPDATE life_recordings SET state = %s, version = version + 1 WHERE id = %s AND state = %s"
JOURNAL = "INSERT INTO life_journal (recording, event, from_state, to_state, note) VALUES (%s, %s, %s, %s, %s)"
POLL_S = 0.02
WARM_UP_S = 1.0
LIMIT_S = 60.0

Statement = tuple[str, tuple[Any, ...]]
Submit = Callable[[str, float], Awaitable[None]]
Engine = Callable[[argparse.Namespace], AbstractAsyncContextManager[Submit]]


def statements(life: str, step: int, submitted_ms: float) -> tuple[Statement, Statement]:
    """The guarded write of a step and its journal line, which is written only if the first wrote a row."""
    before, after = STATES[step], STATES[step + 1]
    guarded = (INSERT, (life, after, submitted_ms)) if step == 0 else (UPDATE, (after, life, before))
    return guarded, (JOURNAL, (life, STEPS[step], before, after, NOTE))


def write(cursor: Any, life: str, step: int, submitted_ms: float) -> None:
    """Write one step with a psycopg cursor, inside the caller's transaction."""
    guarded, journal = statements(life, step, submitted_ms)
    cursor.execute(*guarded)
    if cursor.rowcount:
        cursor.execute(*journal)


async def write_async(cursor: Any, life: str, step: int, submitted_ms: float) -> None:
    """The same with an asynchronous one."""
    guarded, journal = statements(life, step, submitted_ms)
    await cursor.execute(*guarded)
    if cursor.rowcount:
        await cursor.execute(*journal)


async def write_asyncpg(connection: asyncpg.Connection[Any], life: str, step: int, submitted_ms: float) -> None:
    """The same with a connection of asyncpg."""
    (guarded, values), (journal, line) = statements(life, step, submitted_ms)
    if not (await connection.execute(_numbered(guarded), *values)).endswith(" 0"):
        await connection.execute(_numbered(journal), *line)


def _numbered(sql: str) -> str:
    parts = sql.split("%s")
    return parts[0] + "".join(f"${n}{part}" for n, part in enumerate(parts[1:], 1))


class Measurement:
    """One run of one engine."""

    def __init__(self, given: argparse.Namespace, pool: asyncpg.Pool[Any], submit: Submit) -> None:
        self._given = given
        self._pool = pool
        self._submit = submit
        self._submitted = 0
        self._unfinished: set[str] = set()
        self._feeding = True
        self._servers = dict(each.split("=") for each in given.server)

    async def run(self) -> dict[str, float]:
        """The figures: per_s, CPU per step, and latencies of a life at half load."""
        await self._begin()
        await self._wait_until_all_are_finished()
        feeding = asyncio.create_task(self._keep_lanes_full())
        await asyncio.sleep(WARM_UP_S)
        figures = await self._count_steps()
        self._feeding = False
        await feeding
        await self._wait_until_all_are_finished()
        figures |= await self._half_load(figures["per_s"])
        await self._check()
        return figures

    async def _count_steps(self) -> dict[str, float]:
        begun_s, steps, cpu = time.perf_counter(), await self._steps(), self._cpu_s()
        await asyncio.sleep(self._given.seconds)
        done = await self._steps() - steps
        took_s = time.perf_counter() - begun_s
        if not done:
            raise RuntimeError("no step was done")
        used = {f"{name}cpu_ms": (now - cpu[name]) / done * 1000 for name, now in self._cpu_s().items()}
        return {"per_s": done / took_s} | used

    async def _keep_lanes_full(self) -> None:
        while self._feeding:
            await self._see_finished()
            while len(self._unfinished) < self._given.lanes:
                await self._begin()
            await asyncio.sleep(POLL_S)

    async def _half_load(self, steps_per_s: float) -> dict[str, float]:
        last = self._submitted
        await arrivals.begin_at_random(self._begin, steps_per_s / len(STEPS) / 2, self._given.seconds)
        await self._wait_until_all_are_finished()
        rows = await self._pool.fetch(
            "SELECT extract(epoch FROM j.at) * 1000 - r.submitted_ms AS ms FROM life_recordings r"
            " JOIN life_journal j ON j.recording = r.id AND j.event = 'finished' WHERE r.id > $1",
            _id(last),
        )
        times = [float(row["ms"]) for row in rows]
        return {f"life_p{percent}_ms": arrivals.percentile(times, percent) for percent in (50, 99)}

    async def _begin(self) -> None:
        self._submitted += 1
        life = _id(self._submitted)
        self._unfinished.add(life)
        await self._submit(life, time.time() * 1000)

    async def _check(self) -> None:
        """Raise RuntimeError unless every life has exactly its six lines."""
        lines = await self._pool.fetchval("SELECT count(*) FROM (SELECT DISTINCT recording, event FROM life_journal) AS found")
        if not lines == await self._steps() == self._submitted * len(STEPS):
            raise RuntimeError(f"{self._submitted} lives have {await self._steps()} lines, {lines} of them different")

    async def _steps(self) -> int:
        return int(await self._pool.fetchval("SELECT count(*) FROM life_journal"))

    async def _see_finished(self) -> None:
        found = "SELECT id FROM life_recordings WHERE id = ANY($1) AND state = 'Finished'"
        self._unfinished -= {row["id"] for row in await self._pool.fetch(found, list(self._unfinished))}

    async def _wait_until_all_are_finished(self) -> None:
        limit_s = time.monotonic() + LIMIT_S
        while self._unfinished:
            if time.monotonic() > limit_s:
                raise RuntimeError(f"{len(self._unfinished)} lives of {self._submitted} were not finished in {LIMIT_S:.0f} s")
            await asyncio.sleep(POLL_S)
            await self._see_finished()

    def _cpu_s(self) -> dict[str, float]:
        trees = {"": os.getpid()} | {f"{name}_": int(pid) for name, pid in self._servers.items()}
        return {name: processes.tree_cpu_s(pid) for name, pid in trees.items()}


def _id(number: int) -> str:
    return f"{number:026d}"


def main(engine: Engine) -> None:
    """The program of one engine."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--database", required=True, help="URL of an empty PostgreSQL database")
    parser.add_argument("--broker", default="", help="URL of RabbitMQ")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--lanes", type=int, default=64)
    parser.add_argument("--inline", action="store_true", help="a workflow engine awaits no event from outside between its steps")
    parser.add_argument("--server", action="append", default=[], help="NAME=PID of a server whose CPU is counted")
    given = parser.parse_args()
    print(json.dumps(asyncio.run(_run(engine, given))))


async def _run(engine: Engine, given: argparse.Namespace) -> dict[str, float]:
    async with asyncpg.create_pool(given.database, min_size=2, max_size=2) as pool:
        await pool.execute(TABLES)
        async with engine(given) as submit:
            return await Measurement(given, pool, submit).run()
