"""SQLite's file is damaged, or refuses writes: each answer names the reason, and no request pretends success."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from machine import errors
from tests import engines, waiting
from tests.integration import api_service

PAGE = 4096
SESSIONS = 40
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "zeroed page": lambda data: bytes(PAGE) + data[PAGE:],
    "zeroed pages": lambda data: data[:PAGE] + bytes(len(data) - PAGE),
    "flipped bytes": lambda data: b"".join(
        bytes((data[at] ^ 0x55,)) + data[at + 1 : at + PAGE] for at in range(PAGE, len(data), PAGE)
    ),
    "truncated": lambda data: data[: 2 * PAGE],
}
DAMAGED = "The database file is damaged"
UNWRITABLE = "The database file cannot be read or written"


@pytest.fixture
def database(tmp_path: Path) -> engines.Database:
    """An SQLite database."""
    return engines.fresh("sqlite", tmp_path)


def settle(path: Path) -> bytes:
    """Write SQLite's log back to the file, so that connections read the file again; returns its bytes."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE sessions SET version = version")
        assert connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
    return path.read_bytes()


def overwrite(path: Path, data: bytes) -> None:
    """Give the file other bytes, in place: connections to it stay."""
    with path.open("r+b") as file:
        file.write(data)
        file.truncate()


def restore(path: Path, data: bytes) -> None:
    """Put a backup in the place of a database that no process has open."""
    for old in path.parent.glob(f"{path.name}-*"):
        old.unlink()
    path.write_bytes(data)


@contextlib.contextmanager
def files_limited(size_bytes: int) -> Iterator[None]:
    """No file of this process grows beyond a size, as if the disk refused the write: EFBIG."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def answers(service: api_service.Service, task_ids: dict[int, str]) -> list[tuple[str, int, dict[str, Any]]]:
    """What the service answers about each session and about a new one."""
    found = []
    for room, task_id in task_ids.items():
        found.append((task_id, *await service.ask("GET", f"/sessions/{task_id}")))
        found.append((task_id, *await service.ask("POST", "/sessions", json=api_service.start_body(RoomId=room))))
    found.append(("", *await service.ask("POST", "/sessions", json=api_service.start_body(RoomId=SESSIONS + 1))))
    return found


@pytest.mark.parametrize("damage", DAMAGES)
async def test_requests_are_refused_with_the_reason(database: engines.Database, damage: str) -> None:
    """With a damaged file each answer is true, or a 503 with the reason. After a restore and a restart all is there."""
    async with api_service.running(database) as service:
        task_ids = {room: await service.open_session(RoomId=room) for room in range(1, SESSIONS + 1)}
        right = await asyncio.to_thread(settle, database.path)
        await asyncio.to_thread(overwrite, database.path, DAMAGES[damage](right))
        refused = 0
        for task_id, status, answer in await answers(service, task_ids):
            if status == 503:
                assert answer["Message"].startswith(DAMAGED), answer
                refused += 1
            else:
                assert (status, answer.get("TaskId")) in ((200, task_id), (202, task_id)), answer
        assert refused
    await asyncio.to_thread(restore, database.path, right)
    async with api_service.running(database) as service:
        assert (await service.ask("GET", "/readyz"))[0] == 200
        for task_id, status, answer in (await answers(service, task_ids))[:-1]:
            assert (status in (200, 202), answer.get("TaskId")) == (True, task_id), answer


async def test_writes_that_fail_are_refused_with_the_reason(database: engines.Database) -> None:
    """While no write succeeds, starts and /readyz get 503 with the reason. Nothing of what was refused remains."""
    async with api_service.running(database) as service:
        assert (await service.ask("POST", "/sessions", json=api_service.start_body(RoomId=1)))[0] == 202
        with files_limited(database.path.with_name(database.path.name + "-wal").stat().st_size):
            for _ in range(3):
                status, answer = await service.ask("POST", "/sessions", json=api_service.start_body(RoomId=2))
                assert (status, answer["Message"].startswith(UNWRITABLE)) == (503, True), answer
            status, answer = await service.ask("GET", "/readyz")
            assert (status, answer["Message"].startswith(UNWRITABLE)) == (503, True), answer
        assert database.ask("SELECT count(*) FROM sessions") == [(1,)]

        async def ready() -> bool:
            return (await service.ask("GET", "/readyz"))[0] == 200

        await waiting.until(ready, 20, "the service to be ready")
        assert (await service.ask("POST", "/sessions", json=api_service.start_body(RoomId=2)))[0] == 202


@pytest.mark.parametrize("damage", ["zeroed page", "zeroed pages", "truncated"])
async def test_a_start_names_the_damage(database: engines.Database, damage: str) -> None:
    """A service whose database file is damaged does not start as if it were empty."""
    right = await asyncio.to_thread(settle, database.path)
    await asyncio.to_thread(overwrite, database.path, DAMAGES[damage](right))
    store = database.open(api_service.now_ms)
    with pytest.raises(errors.DatabaseUnavailable, match=DAMAGED):
        await store.start()
    await store.stop()


LOG_DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "zeroed page": lambda data: data[: len(data) // 2] + bytes(PAGE) + data[len(data) // 2 + PAGE :],
    "flipped byte": lambda data: data[: len(data) // 2] + bytes((data[len(data) // 2] ^ 0x55,)) + data[len(data) // 2 + 1 :],
    "truncated": lambda data: data[: len(data) // 2],
    "zeroed header": lambda data: bytes(32) + data[32:],
}


@pytest.mark.parametrize("damage", LOG_DAMAGES)
async def test_a_damaged_log_keeps_what_was_committed_before(database: engines.Database, tmp_path: Path, damage: str) -> None:
    """The process crashed, and its write-ahead log was damaged: the sessions of the transactions before the damage are there, the
    file is sound, and the service works."""
    crashed = engines.Database("sqlite", f"sqlite+aiosqlite:///{tmp_path}/crashed.db", tmp_path / "crashed.db")
    async with api_service.running(database) as service:
        task_ids = [await service.open_session(RoomId=room) for room in range(1, 11)]
        crashed.path.write_bytes(database.path.read_bytes())
        log = database.path.with_name(database.path.name + "-wal").read_bytes()
    crashed.path.with_name("crashed.db-wal").write_bytes(LOG_DAMAGES[damage](log))
    async with api_service.running(crashed) as service:
        assert (await service.ask("GET", "/readyz"))[0] == 200
        states = [(await service.ask("GET", f"/sessions/{task_id}"))[0] for task_id in task_ids]
        kept = states.count(200)
        assert states == [200] * kept + [404] * (len(task_ids) - kept)
        assert (kept > 0) == (damage != "zeroed header")
        again = [await service.open_session(RoomId=room) for room in range(1, 11)]
        assert again[:kept] == task_ids[:kept]
    assert crashed.ask("PRAGMA integrity_check") == [("ok",)]
