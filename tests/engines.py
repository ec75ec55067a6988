"""Fresh databases for tests, one kind per engine, and the clock and ids that a test controls.

A database is migrated once per process and copied for each test: a migration takes longer than most tests.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import itertools
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg

from machine import encryption
from store import connections, queries
from store import store as stores
from tests import postgres, run_folders
from tests.simulated import dictionary, dictionary_tables

NAMES = ("sqlite", "postgresql")
# The value of the setting SECRET_KEYS in every test.
SECRET_KEYS = "c2VhbHMgd2hhdCB0ZXN0cyBwbGFudCwgbm90aGluZyE="
# The engines of the store's own suite: the simulated world's engine must behave like them where it is used.
STORES = (*NAMES, "dictionary")
START_MS = 1_800_000_000_000


@dataclass(slots=True)
class Clock:
    """Unix ms that only a test moves."""

    now_ms: int = START_MS

    def __call__(self) -> int:
        return self.now_ms

    def advance(self, ms: int) -> None:
        """Let `ms` pass."""
        self.now_ms += ms


def ids(prefix: str = "01") -> Callable[[], str]:
    """Ids in the form of a ULID that count up, so that two runs of the same history get the same ones."""
    numbers = itertools.count(1)
    return lambda: prefix + str(next(numbers)).zfill(26 - len(prefix))


def keyring() -> encryption.Keyring:
    """The keyring of SECRET_KEYS."""
    return encryption.Keyring([SECRET_KEYS])


@dataclass(frozen=True, slots=True)
class Database:
    """One database of one engine."""

    engine: str
    url: str
    path: Path = field(default=Path())
    memory: dictionary_tables.Tables | None = None

    def open(self, clock: Callable[[], int], new_id: Callable[[], str] | None = None) -> Any:
        """A store on it. The caller stops it."""
        if self.memory is not None:
            return dictionary.Store(clock=clock, tables=self.memory)
        return stores.Store(connections.open_database(self.url), clock=clock, keyring=keyring(), pinned=True)

    def ask(self, query: str) -> list[tuple[Any, ...]]:
        """Query the database past the store."""
        if self.engine == "postgresql":
            with futures.ThreadPoolExecutor(1) as pool:  # a loop of its own: the caller may be inside a running one
                return pool.submit(asyncio.run, _ask_postgresql(self.url, query)).result()
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            return connection.execute(query).fetchall()

    def everything(self) -> bytes:
        """All bytes of the database on disk: to search for secrets."""
        if self.engine == "postgresql":
            return postgres.shared().dump(self.url)
        return b"".join(p.read_bytes() for p in sorted(self.path.parent.glob(self.path.name + "*")))


async def _ask_postgresql(url: str, query: str) -> list[tuple[Any, ...]]:
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        return [tuple(row) for row in await connection.fetch(query)]
    finally:
        await connection.close()


def fresh(engine: str, folder: Path) -> Database:
    """An empty database of `engine` with the current schema; files go into `folder`."""
    if engine == "dictionary":
        return Database(engine=engine, url="", memory=dictionary_tables.Tables())
    if engine == "postgresql":
        return Database(engine=engine, url=postgres.shared().create(_postgres_template()))
    path = folder / "recorder.db"
    shutil.copyfile(_template(), path)
    return Database(engine=engine, url=f"sqlite+aiosqlite:///{path}", path=path)


def reader(store: Any) -> Any:
    """Queries of a store's sessions, timelines and results."""
    return store if isinstance(store, dictionary.Store) else queries.SessionQueries(store.connections)


def fast_folder() -> tempfile.TemporaryDirectory[str]:
    """A temporary folder in memory if the system has one: durable writes cost nothing there."""
    made = tempfile.TemporaryDirectory(prefix=f"{run_folders.PREFIX}test-", dir=run_folders.in_memory())
    run_folders.mark(Path(made.name))
    return made


@functools.cache
def _postgres_template() -> str:
    url = postgres.shared().create()
    with futures.ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, _migrate(url)).result()
    return url.rsplit("/", 1)[1]


@functools.cache
def _template() -> Path:
    folder = fast_folder()
    atexit.register(folder.cleanup)
    path = Path(folder.name) / "template.db"
    # In a thread of its own: the caller may be inside a running loop.
    with futures.ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, _migrate(f"sqlite+aiosqlite:///{path}")).result()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path


async def _migrate(url: str) -> None:
    store = stores.Store(connections.open_database(url), clock=Clock(), keyring=keyring(), pinned=True)
    await store.start()
    await store.stop()
