"""The lock beside SQLite's file: a second service on one database waits, and then says who holds it."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest

from cli import doctor_case, doctor_checks
from machine import errors
from store import database_lock
from tests import service_process, waiting


@pytest.fixture
async def first(tmp_path: Path) -> service_process.ServiceProcess:
    service = service_process.ServiceProcess(_folder(tmp_path, "first"), {"DATA_DIR": str(tmp_path / "data")})
    await service.start()
    return service


def _folder(parent: Path, name: str) -> Path:
    made = parent / name
    made.mkdir()
    return made


def _second(parent: Path, **environment: str) -> service_process.ServiceProcess:
    return service_process.ServiceProcess(_folder(parent, "second"), {"DATA_DIR": str(parent / "data")} | environment)


async def test_a_second_service_does_not_start_and_names_the_first(first: service_process.ServiceProcess, tmp_path: Path) -> None:
    """It ends with 1 and the holder's process and host; it takes no spool, and the first one goes on."""
    second = _second(tmp_path, DRAIN="0.3s")
    try:
        await second.begin()
        assert await second.end() == 1
        said = second.log.read_text().splitlines()[-1]
        assert f"process {first.pid} on host {socket.gethostname()}, since 20" in said
        assert "DATA_DIR" in said
        assert not (second.folder / "spool").exists()
        assert (await first.get("/readyz"))["Status"] == "ready"
    finally:
        await second.stop()
        await first.stop()


@pytest.mark.parametrize("end", ["stops", "is killed"])
async def test_a_restart_waits_for_the_process_before(first: service_process.ServiceProcess, tmp_path: Path, end: str) -> None:
    """It begins as soon as the earlier process has ended, however it ended."""
    second = _second(tmp_path, DRAIN="60s")
    try:
        await second.begin()
        await waiting.until(lambda: "service.waits_for_database" in second.log.read_text(), 30, "the second one to wait")
        await (first.stop() if end == "stops" else first.kill())
        await second.ready()
        assert str(second.pid) in (tmp_path / "data" / "recorder.db.lock").read_text()
    finally:
        await second.stop()
        await first.stop()


async def test_the_lock_of_the_file_itself_counts(tmp_path: Path) -> None:
    """A symbolic link to the folder or to the file is the same SQLite database."""
    file = _folder(tmp_path, "data") / "recorder.db"
    file.touch()
    (tmp_path / "folder").symlink_to(file.parent)
    (tmp_path / "other.db").symlink_to(file)
    held = database_lock.DatabaseLock(file, wait_s=0)
    await held.start()
    await held.start()
    for name in (tmp_path / "folder" / "recorder.db", tmp_path / "other.db"):
        with pytest.raises(errors.Unavailable, match=f"process {os.getpid()} on host"):
            await database_lock.DatabaseLock(name, wait_s=0).start()
    waits = asyncio.create_task(database_lock.DatabaseLock(tmp_path / "other.db", wait_s=60).start())
    await held.stop()
    await held.stop()
    async with waiting.at_most(5):
        await waits


async def test_a_lock_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    """A folder that cannot exist, and a lock that is a link, are refused with the path and the remedy (SQLite's file)."""
    (tmp_path / "file").touch()
    with pytest.raises(errors.Unavailable, match=r"recorder\.db\.lock .*Set DATA_DIR"):
        await database_lock.DatabaseLock(tmp_path / "file" / "recorder.db", wait_s=0).start()
    (tmp_path / "recorder.db.lock").symlink_to(tmp_path / "file")
    with pytest.raises(errors.Unavailable, match=r"recorder\.db\.lock .*Set DATA_DIR"):
        await database_lock.DatabaseLock(tmp_path / "recorder.db", wait_s=0).start()


async def test_doctor_examines_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A held lock of SQLite's file is ok if the service answers; else doctor fails and names DATA_DIR."""
    environment = {"HOME": str(tmp_path), "DATA_DIR": str(tmp_path), "SPOOL_DIR": str(tmp_path / "spool")}
    case = doctor_case.Case(environment, Path("/proc/mounts"))
    assert doctor_checks.check_lock(case).found == "free"
    held = database_lock.DatabaseLock(tmp_path / "recorder.db", wait_s=0)
    await held.start()
    monkeypatch.setattr(doctor_case.Case, "service_fault", "")
    assert doctor_checks.check_lock(case).found == "held by the running service"
    monkeypatch.setattr(doctor_case.Case, "service_fault", "It does not answer.")
    found = doctor_checks.check_lock(case)
    await held.stop()
    assert (found.status, "DATA_DIR" in found.type) == ("fail", True)
