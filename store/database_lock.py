"""The lock beside SQLite's file: one service at a time uses a database.

    <file>.lock         held while the service runs; names its process, host and start

Rule: two services on one database would take each other's jobs, whose files are on the other's spool. The kernel releases the
lock with its process, so a crash leaves none behind.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import time
from datetime import UTC, datetime
from pathlib import Path

import structlog

from machine import errors

log = structlog.get_logger()

ASK_EVERY_S = 0.1
_MAX_BYTES = 512


class DatabaseLock:
    """The lock of one database file. A name that is a symbolic link has the lock of the file itself."""

    def __init__(self, file: Path, *, wait_s: float) -> None:
        """`wait_s` is how long `start` waits for an earlier process that still stops."""
        self._file = file
        self._wait_s = wait_s
        self._descriptor = -1

    async def start(self) -> None:
        """Take the lock. Safe to call twice. Raises errors.Unavailable with the holder if another process keeps it."""
        if self._descriptor >= 0:
            return
        path = lock_of(self._file)
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise _unusable(path, error) from error
        try:
            await self._take(descriptor)
        except OSError as error:
            os.close(descriptor)
            raise _unusable(path, error) from error
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        self._name_holder()

    async def stop(self) -> None:
        """Release the lock. Safe to call twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    async def _take(self, descriptor: int) -> None:
        ends_s = time.monotonic() + self._wait_s
        told = False
        while not _locked(descriptor):
            holder = _read(descriptor)
            if time.monotonic() >= ends_s:
                raise errors.Unavailable(
                    f"The database {self._file} is in use by another recorder: {holder}. Stop that one, or give this one a"
                    " DATA_DIR of its own."
                )
            if not told:
                log.warning("service.waits_for_database", file=str(self._file), holder=holder, wait_s=self._wait_s)
                told = True
            await asyncio.sleep(ASK_EVERY_S)

    def _name_holder(self) -> None:
        line = f"process {os.getpid()} on host {socket.gethostname()}, since {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}\n"
        try:
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, line.encode(), 0)
        except OSError as error:
            # A full disk: the lock itself holds.
            log.warning("service.lock_without_name", file=str(self._file), reason=error.strerror)


def lock_of(file: Path) -> Path:
    """The lock of a database file."""
    real = file.resolve()
    return real.with_name(f"{real.name}.lock")


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(descriptor: int) -> str:
    # A process that just took the lock may not have written its line yet.
    return os.pread(descriptor, _MAX_BYTES, 0).decode("utf-8", "replace").strip() or "a process that did not write its name"


def _unusable(path: Path, error: OSError) -> errors.Unavailable:
    return errors.Unavailable(
        f"The lock {path} of the database cannot be used: {error.strerror}. Set DATA_DIR to a folder on a local disk that this"
        " user can write."
    )
