"""A bare endpoint for TRTC's callbacks, the reference for the intake: verify, parse, append a row, answer after the commit.

Rule: rows that wait together share a commit. It has the same server as the service, but no framework, and no logic at all.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from pathlib import Path
from typing import Any, Protocol

import asyncpg

from bench import bare
from tencent import trtc_callbacks

MAX_BATCH = 200
Row = tuple[int, str]


class Log(Protocol):
    """A table to which rows are appended."""

    async def append(self, rows: list[Row]) -> None:
        """Append rows, and commit."""
        ...

    async def close(self) -> None:
        """Close the database."""
        ...


class LogFile:
    """A table of SQLite, written in a thread."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        for pragma in ("journal_mode=WAL", "synchronous=FULL"):
            self._connection.execute(f"PRAGMA {pragma}")
        self._connection.execute("CREATE TABLE callbacks (seq INTEGER PRIMARY KEY, app INTEGER, body TEXT)")

    async def append(self, rows: list[Row]) -> None:
        """Append rows, and commit."""
        await asyncio.to_thread(self._append, rows)

    async def close(self) -> None:
        """Close the database."""
        self._connection.close()

    def _append(self, rows: list[Row]) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany("INSERT INTO callbacks (app, body) VALUES (?, ?)", rows)
        self._connection.execute("COMMIT")


class LogServer:
    """A table of PostgreSQL."""

    def __init__(self, pool: asyncpg.Pool[Any]) -> None:
        self._pool = pool

    @classmethod
    async def open(cls, url: str) -> LogServer:
        """Connect and create the table."""
        pool = await bare.connect_pool(url)
        await pool.execute("CREATE TABLE callbacks (seq BIGSERIAL PRIMARY KEY, app BIGINT, body TEXT)")
        return cls(pool)

    async def append(self, rows: list[Row]) -> None:
        """Append rows, and commit."""
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.executemany("INSERT INTO callbacks (app, body) VALUES ($1, $2)", rows)

    async def close(self) -> None:
        """Close the database."""
        await self._pool.close()


class BareEndpoint:
    """An ASGI application with one route."""

    def __init__(self, key: str, log: Log) -> None:
        self._key = key
        self._log = log
        self._waiting: list[tuple[Row, asyncio.Future[None]]] = []
        self._task: asyncio.Task[None] | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request (ASGI)."""
        headers = dict(scope["headers"])
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        status = 200 if trtc_callbacks.verify(self._key, body, headers[b"sign"].decode()) else 401
        if status == 200:
            await self._append((int(headers[b"sdkappid"]), json.dumps(json.loads(body))))
        answer = b'{"code": 0}'
        head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": status, "headers": head})
        await send({"type": "http.response.body", "body": answer})

    async def _append(self, row: Row) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((row, done))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        await done

    async def _run(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
            await self._log.append([row for row, _ in batch])
            for _, done in batch:
                done.set_result(None)
