"""Bare transactions of four statements: claim an id, read a row, update it, append a line. The reference for every other figure.

On SQLite they run on Python's sqlite3, in WAL with synchronous=FULL; on PostgreSQL on asyncpg, over AT_ONCE connections.
"""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Protocol

import asyncpg

from store import side_by_side

AT_ONCE = 8
ROWS = 100


def connect(path: Path) -> sqlite3.Connection:
    """A connection with the settings of the store; transactions begin and end by statements."""
    connection = sqlite3.connect(path, isolation_level=None)
    for pragma in ("journal_mode=WAL", "synchronous=FULL"):
        connection.execute(f"PRAGMA {pragma}")
    return connection


async def connect_pool(url: str) -> asyncpg.Pool[Any]:
    """AT_ONCE connections to PostgreSQL."""
    return await asyncpg.create_pool(
        url.replace("+asyncpg", ""),
        min_size=AT_ONCE,
        max_size=AT_ONCE,
        # Without this name the triggers for nodes of 0.1.0 would count once more.
        server_settings={"application_name": side_by_side.APPLICATION_NAME},
    )


async def at_once(lane: Callable[[], Coroutine[Any, Any, None]], count: int) -> None:
    """Run so many lanes at once until all of them have ended."""
    await asyncio.gather(*(lane() for _ in range(count)))


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
        self._connection = connect(path)
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
        pool = await connect_pool(url)
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

        rows = itertools.count()
        await at_once(lambda: lane(next(rows)), AT_ONCE)
        return done, time.perf_counter() - begun

    async def close(self) -> None:
        """Close the database."""
        await self._pool.close()
