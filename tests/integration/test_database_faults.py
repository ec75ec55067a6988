"""SQLite's file at faults of its disk: slow, hung, EIO, no space. Refusals name the reason, nothing is lost, and all goes on."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from machine import errors
from store import file_connections, group_commit
from tests import database_faults, engines, waiting
from tests.database_faults import EIO, ENOSPC, HANG, SLOW
from tests.integration import api_service

SILENT = "The database file has not answered for"
UNREADABLE = "The database file cannot be read or written"
FULL = "The disk of the database file is full"
ALL = tuple(database_faults.OPERATIONS)
# Kind and operations of a fault, and the beginning of the reason.
REFUSED = [
    (HANG, ("write",), SILENT),
    (HANG, ("fsync",), SILENT),
    (HANG, ALL, SILENT),
    (EIO, ("write",), UNREADABLE),
    (EIO, ("fsync",), UNREADABLE),
    (EIO, ("read", "write"), UNREADABLE),
    (ENOSPC, ("write",), FULL),
    (ENOSPC, ("fsync",), UNREADABLE),
]
UNREAD = [(HANG, ("read", "open"), SILENT), (EIO, ("read",), UNREADABLE), (EIO, ("size", "map", "lock"), UNREADABLE)]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[engines.Database]:
    """An SQLite database that can have faults."""
    made = engines.fresh("sqlite", tmp_path)
    with database_faults.installed():
        yield made


@pytest.fixture
async def faults(database: engines.Database) -> AsyncIterator[database_faults.DatabaseFaults]:
    """The faults of its files. Afterwards, connections that hung end within the event loop."""
    made = database_faults.DatabaseFaults(database.path)
    yield made
    made.heal()
    await waiting.until(lambda: not any("connection_worker" in each.name for each in threading.enumerate()))


async def ready(service: api_service.Service) -> None:
    """Wait until /readyz answers with 200."""

    async def told() -> bool:
        return (await service.ask("GET", "/readyz"))[0] == 200

    await waiting.until(told, 20, "the service to be ready")


async def not_ready(service: api_service.Service, reason: str) -> None:
    """Wait until /readyz answers with this reason."""

    async def told() -> bool:
        status, answer = await service.ask("GET", "/readyz")
        return status == 503 and str(answer["Message"]).startswith(reason)

    await waiting.until(told, 20, f"/readyz to say {reason!r}")


async def refused(service: api_service.Service, room: int, reason: str) -> None:
    """A start is refused for a while, with the reason."""
    async with service.http.post(service.url + "/sessions", json=api_service.start_body(RoomId=room)) as response:
        answer = await response.json()
        assert (response.status, answer["Message"].startswith(reason)) == (503, True), answer
        assert int(response.headers["Retry-After"]) > 0


@pytest.mark.parametrize(("kind", "operations", "reason"), REFUSED)
async def test_starts_are_refused_and_nothing_is_lost(
    database: engines.Database,
    faults: database_faults.DatabaseFaults,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    operations: tuple[str, ...],
    reason: str,
) -> None:
    """While the file takes no write, starts get 503 with the reason and Retry-After, as /readyz does. Afterwards each start opens
    one session, also one that was refused while its transaction hung."""
    async with api_service.running(database) as service:
        before = await service.open_session(RoomId=1)
        with monkeypatch.context() as patched, faults.during(kind, *operations):
            if kind == HANG:
                patched.setattr(group_commit, "SILENT_S", waiting.pace())
            for room in (2, 3):
                await refused(service, room, reason)
            await not_ready(service, reason)
        await ready(service)
        after = {room: await service.open_session(RoomId=room) for room in (1, 2, 3)}
        assert after[1] == before
    found = database.ask("SELECT task_id FROM sessions")
    assert sorted(after.values()) == sorted(task_id for (task_id,) in found)


@pytest.mark.parametrize(("kind", "operations", "reason"), UNREAD)
async def test_queries_are_refused_and_go_on(
    database: engines.Database,
    faults: database_faults.DatabaseFaults,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    operations: tuple[str, ...],
    reason: str,
) -> None:
    """While the file cannot be read, many queries at a time get 503 with the reason, and none waits in line. Afterwards they get
    their answers."""
    async with api_service.running(database) as service:
        task_id = await service.open_session(RoomId=1)
        await service.store.connections.engine.dispose()
        with monkeypatch.context() as patched, faults.during(kind, *operations):
            if kind == HANG:
                patched.setattr(group_commit, "SILENT_S", waiting.pace())
            asked = [service.ask("GET", f"/sessions/{task_id}") for _ in range(25)]
            async with waiting.at_most(20):
                answers = await asyncio.gather(*asked)
            odd = [(status, answer) for status, answer in answers if (status, answer["Message"][: len(reason)]) != (503, reason)]
            assert not odd
            await not_ready(service, reason)
        await ready(service)
        assert (await service.ask("GET", f"/sessions/{task_id}"))[1]["TaskId"] == task_id


@pytest.mark.parametrize("ms", [50, 200])
async def test_a_slow_file_is_only_slow(database: engines.Database, faults: database_faults.DatabaseFaults, ms: int) -> None:
    """If each call takes long, starts take long and succeed, the probe of the process answers, and no thread but the file's own
    waits."""
    async with api_service.running(database) as service:
        with faults.during(SLOW, "read", "write", "fsync", "size", "lock", ms=ms):
            starting = asyncio.create_task(service.open_session(RoomId=1))
            assert (await service.ask("GET", "/healthz"))[0] == 200
            assert not starting.done()
            task_id = await starting
        assert await service.open_session(RoomId=1) == task_id


async def test_a_query_that_was_given_up_refuses_no_other(
    database: engines.Database, faults: database_faults.DatabaseFaults, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that is not closed at once is no proof that the file hangs."""
    monkeypatch.setattr(file_connections, "CLOSE_S", 0.0)
    async with api_service.running(database) as service:
        connections = service.store.connections
        await connections.engine.dispose()

        async def sessions() -> int:
            async with connections.read() as connection:
                return (await connection.execute(text("SELECT count(*) FROM sessions"))).scalar_one()

        with faults.during(SLOW, "open", "read", "lock", ms=100):
            given_up = asyncio.create_task(sessions())
            await waiting.until(lambda: connections.engine.sync_engine.pool.checkedout() > 0, what="the query")
            given_up.cancel()
            assert isinstance((await asyncio.gather(given_up, return_exceptions=True))[0], asyncio.CancelledError)
            assert connections.hangs  # left to itself
            assert await sessions() == 0
        await waiting.until(lambda: not connections.hangs, what="the end of the first call")


async def test_a_write_that_hangs_is_left_alone(
    database: engines.Database, faults: database_faults.DatabaseFaults, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store can be closed while its writes and queries hang; afterwards another one opens the file and finds what was
    committed."""
    monkeypatch.setattr(group_commit, "CLOSE_S", 0.2)
    async with api_service.running(database) as service:
        task_id = await service.open_session(RoomId=1)
        with faults.during(HANG, *ALL):
            hanging = [asyncio.create_task(service.key("sessions:read")), asyncio.create_task(service.open_session(RoomId=2))]
            group = service.store.connections._group
            assert group is not None
            await waiting.until(lambda: group.silent_s > 0, what="a transaction")
            async with waiting.at_most(10):
                await service.store.connections.close()
        await asyncio.gather(*hanging, return_exceptions=True)
    opened = database.open(api_service.now_ms)
    async with opened.connections.read() as connection:
        assert task_id in (await connection.execute(text("SELECT task_id FROM sessions"))).scalars().all()
    await opened.stop()


async def test_a_long_transaction_may_be_unlimited(
    database: engines.Database, faults: database_faults.DatabaseFaults, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A migration takes as long as it needs; any other transaction that takes longer than the limit is refused."""
    monkeypatch.setattr(group_commit, "SILENT_S", 0.2)
    opened = database.open(api_service.now_ms)
    write = text("UPDATE sessions SET version = version")
    began_s = time.monotonic()
    try:
        faults.begin(HANG, "size", "lock", "map", "open")
        asyncio.get_running_loop().call_later(1.0, faults.heal)
        async with opened.connections.write(limited=False) as connection:
            await connection.execute(write)
        assert time.monotonic() - began_s >= 1.0
        await opened.connections.engine.dispose()
        with faults.during(HANG, "size", "lock", "map", "open"), pytest.raises(errors.DatabaseUnavailable, match=SILENT):
            async with opened.connections.write() as connection:
                await connection.execute(write)
    finally:
        await opened.stop()
