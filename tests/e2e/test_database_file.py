"""SQLite's file fails under live rooms of the embedded engine: another process locks it for longer than writes wait, or its disk
is full. No capture ends, and nothing is lost or doubled.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from store import connections
from tests import backends, service_process, waiting
from tests.chaos import fault_figures
from tests.e2e.conftest import World, live_for
from tests.e2e.scenes import Scene, gaps
from tests.e2e.test_failures import fill

pytestmark = pytest.mark.parametrize("engine", [backends.EMBEDDED])

LOCKED_S = connections.BUSY_TIMEOUT_MS / 1000 + 3
# SQLite's log grows to 4 MiB before it is written back.
DISK_KIB = 24 * 1024
SPEAKERS = ("alice", "bob")


@contextlib.contextmanager
def locked(database: Path) -> Iterator[None]:
    """Lock the file as a backup or a person with a shell would."""
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


@pytest.fixture
def data_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own for the database; skipped on a machine that does not allow mounting one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_KIB}k", "tmpfs", str(folder)]
    made = subprocess.run(command, check=False, capture_output=True, text=True)
    if made.returncode != 0:
        pytest.skip(f"this machine lets us mount no tmpfs: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


async def _live(world: World, name: str) -> Scene:
    scene = Scene(world, name)
    await scene.start("02")
    await asyncio.gather(*(scene.join(speaker) for speaker in SPEAKERS))
    await scene.recordings("Recording", "Recording")
    return scene


async def _answer(
    service: service_process.ServiceProcess, method: str, path: str, status: int, reason: str = "", body: Any = None
) -> bool:
    """Whether a request gets this status, with a message that contains the reason."""
    async with aiohttp.ClientSession() as http, http.request(method, service.url + path, json=body) as answer:
        return answer.status == status and reason in (await answer.json()).get("Message", "")


async def _whole(world: World, scenes: list[Scene]) -> None:
    for scene in scenes:
        await world.service.finished(scene.task_id, 60)
        files = await scene.files("RoomDestroyed")
        assert [gaps(entry) for entries in files.values() for entry in entries] == [[], []], (scene.name, files)
    assert world.backend is not None
    expected = [(scene, speaker) for scene in scenes for speaker in SPEAKERS]
    await fault_figures.audited(world, world.backend.database, expected)


@pytest.mark.timeout(120)
async def test_another_writer_locks_the_file(world: World) -> None:
    """A lock that outlasts the writes' wait, during one room and at the end of another, delays the writes and loses none."""
    service = await world.serve(LINGER="3s")
    scenes = [await _live(world, "locked-a"), await _live(world, "locked-b")]
    with locked(service.folder / "data" / "recorder.db"):
        await scenes[0].room.dismiss()
        await live_for(LOCKED_S)
    await live_for(1)
    await scenes[1].room.dismiss()
    await _whole(world, scenes)


@pytest.mark.timeout(120)
async def test_the_disk_of_the_database_is_full(world: World, data_disk: Path) -> None:
    """A full disk for some seconds, during one room and at the end of another, delays the rows and loses none."""
    service = await world.serve(LINGER="3s", DATA_DIR=str(data_disk / "data"))
    assert world.backend is not None
    world.backend.database = f"sqlite:///{data_disk / 'data' / 'recorder.db'}"
    scenes = [await _live(world, "full-a"), await _live(world, "full-b")]
    filler = await asyncio.to_thread(fill, data_disk, 0)
    await scenes[0].room.dismiss()
    await waiting.until(lambda: "disk is full" in service.log.read_text(), 20, "a write to fail", every_s=0.3)
    reason = "The disk of the database file is full"
    await waiting.until(lambda: _answer(service, "GET", "/readyz", 503, reason), 20, "/readyz to name the reason", every_s=0.3)
    room = world.request("full-c")
    await waiting.until(lambda: _answer(service, "POST", "/sessions", 503, reason, room), 20, "a refused start", every_s=0.3)
    await live_for(3)
    await asyncio.to_thread(filler.unlink)
    await waiting.until(lambda: _answer(service, "GET", "/readyz", 200), 20, "the service to be ready", every_s=0.3)
    await scenes[1].room.dismiss()
    await _whole(world, scenes)
