"""Batched bare loops: the rows of whole lives written again with no logic, in batches as large as those of the engine.

Rule: a batch holds one event of each of its lives, and is one commit. Rows of one kind go in one call of the driver. The settings
of the database are those of the store.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import asyncpg

from bench import bare, lives, write_log
from store import connections

# As many events in flight as the engine has.
IN_FLIGHT = 64


class Replay(Protocol):
    """A batched bare loop."""

    async def run(self, seconds: float, batch: int) -> tuple[int, float]:
        """(events, seconds)."""
        ...

    async def close(self) -> None:
        """Close the database."""
        ...


async def create_tables(url: str) -> None:
    """The store's own tables, in a database of their own."""
    engine = lives.Decisions(url, lanes=1)
    await engine.start()
    await engine.stop()


class ReplayFile:
    """Batches on SQLite, one after the other, because there is one writer."""

    def __init__(self, path: Path, steps: Sequence[write_log.Step]) -> None:
        self._connection = bare.connect(path)
        for pragma in connections.PRAGMAS:
            self._connection.execute(f"PRAGMA {pragma}")
        self._steps = [step.writes("?") for step in steps]
        self._numbers = itertools.count()

    async def run(self, seconds: float, batch: int) -> tuple[int, float]:
        """(events, seconds)."""
        begun, done = time.perf_counter(), 0
        while time.perf_counter() - begun < seconds:
            cohort = [write_log.Life.numbered(next(self._numbers)) for _ in range(batch)]
            for writes in self._steps:
                self._connection.execute("BEGIN IMMEDIATE")
                for write in writes:
                    self._connection.executemany(write.sql, [write.parameters(life) for life in cohort])
                self._connection.execute("COMMIT")
                done += batch
        return done, time.perf_counter() - begun

    async def close(self) -> None:
        """Close the database."""
        self._connection.close()


class ReplayServer:
    """Batches on PostgreSQL, over so many connections that IN_FLIGHT events are in flight, at most AT_ONCE."""

    def __init__(self, pool: asyncpg.Pool[Any], steps: Sequence[write_log.Step]) -> None:
        self._pool = pool
        self._steps = [step.writes("${}") for step in steps]
        self._numbers = itertools.count()

    @classmethod
    async def open(cls, url: str, steps: Sequence[write_log.Step]) -> ReplayServer:
        """Create the tables and connect."""
        await create_tables(url)
        return cls(await bare.connect_pool(url), steps)

    async def run(self, seconds: float, batch: int) -> tuple[int, float]:
        """(events, seconds)."""
        begun, done = time.perf_counter(), 0

        async def lane() -> None:
            nonlocal done
            async with self._pool.acquire() as connection:
                while time.perf_counter() - begun < seconds:
                    cohort = [write_log.Life.numbered(next(self._numbers)) for _ in range(batch)]
                    for writes in self._steps:
                        async with connection.transaction():
                            await write_rows(connection, [(writes, cohort)])
                        done += batch

        await bare.at_once(lane, writers(batch))
        return done, time.perf_counter() - begun

    async def close(self) -> None:
        """Close the database."""
        await self._pool.close()


def writers(batch: int) -> int:
    """How many connections write batches of this size at the same time."""
    return max(1, min(bare.AT_ONCE, IN_FLIGHT // batch))


async def write_rows(connection: Any, groups: Iterable[tuple[Sequence[write_log.Write], Sequence[write_log.Life]]]) -> None:
    """Write the rows of some lives; each group of lives is at the same step."""
    for writes, cohort in groups:
        for write in writes:
            await connection.executemany(write.sql, [write.parameters(life) for life in cohort])
