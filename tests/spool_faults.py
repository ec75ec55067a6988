"""Faults of the files in one folder, as a full disk, a broken disk, a stale mount or a file server that is away gives them.

In a test: `with SpoolFaults(folder) as faults: faults.fail(errno.ENOSPC, "mkdir", "write")`. As a process: `main` runs the
service in place of `recorder`, and the file `<SPOOL_DIR>.fault` steers it, for example `28 0 mkdir write` or `slow 50 read`. With
a file `<SPOOL_DIR>.watch`, operations on the event loop's thread are noted in `<SPOOL_DIR>.on-loop`. ffmpeg is another process
and knows nothing of this.

`FAULTS` is the table of kinds and operations. `tests/unit/test_spool_fault_cover.py` compares it with the sources.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import service

BY_PATH = (
    "open", "stat", "lstat", "mkdir", "listdir", "scandir", "unlink", "replace", "rename", "rmdir", "statvfs", "utime",
    "truncate", "link",
)  # fmt: skip
BY_NUMBER = ("fstat", "fsync", "read", "pread", "write", "pwrite", "writev", "ftruncate", "close")
OPERATIONS = frozenset((*BY_PATH, *BY_NUMBER))
READS = ("open", "stat", "lstat", "listdir", "scandir", "read", "pread", "fstat", "statvfs")
WRITES = ("mkdir", "write", "pwrite", "writev", "ftruncate", "fsync", "replace")
HANG, SLOW = "hang", "slow"
# What a read gives in place of the bytes on the disk.
CONTENTS: dict[str, Callable[[bytes], bytes]] = {
    "zero-page": lambda data: bytes(min(len(data), 4096)) + data[4096:],
    "byte-flip": lambda data: data[:-1] + bytes(byte ^ 0x55 for byte in data[-1:]),
    "truncation": lambda data: data[: len(data) // 2],
}
NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EROFS)
FAULTS: dict[int | str, frozenset[str]] = {
    **dict.fromkeys((*NUMBERS, HANG, SLOW), OPERATIONS),
    **dict.fromkeys(CONTENTS, frozenset(("read", "pread"))),
}
STEP_S = 0.05


class SpoolFaults:
    """The operations of `os` and `open`, each of which may fail, hang or be slow if it is in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)
        self._flag = Path(f"{folder}.fault")
        self._originals: list[tuple[Any, str, Any]] = []
        self._numbers: set[int] = set()
        self._stat, self._open, self._close, self._write, self._text = os.stat, os.open, os.close, os.write, io.open
        self._unlink, self._move = os.unlink, os.replace
        self.seen: list[str] = []

    def fail(self, kind: int | str, *operations: str, ms: int = 0) -> None:
        """From now on these operations fail with this errno, hang, are slow by `ms`, or give other bytes."""
        assert operations, "no operation"
        unknown = set(operations) - FAULTS[kind]
        assert not unknown, f"no such operations: {unknown}"
        # In one step: another process reads it.
        with self._text(f"{self._flag}.part", "w", encoding="ascii") as file:
            file.write(" ".join((str(kind), str(ms), *operations)))
        self._move(f"{self._flag}.part", self._flag)

    def heal(self) -> None:
        """From now on all operations work; those that hang return."""
        with contextlib.suppress(FileNotFoundError):
            self._unlink(self._flag)

    def watch(self) -> None:
        """Note operations on the event loop's thread from now on."""
        with self._text(f"{self._folder}.watch", "w", encoding="ascii"):
            pass

    def on_loop(self) -> str:
        """The operations that were noted."""
        try:
            with self._text(f"{self._folder}.on-loop", encoding="ascii") as file:
                return file.read()
        except FileNotFoundError:
            return ""

    def __enter__(self) -> Self:
        for name in BY_PATH:
            self._replace(os, name, self._by_path(name, getattr(os, name)))
        for name in BY_NUMBER:
            self._replace(os, name, self._by_number(name, getattr(os, name)))
        self._replace(io, "open", self._opened(io.open))
        return self

    def __exit__(self, *_: object) -> None:
        self.heal()
        for owner, name, original in reversed(self._originals):
            setattr(owner, name, original)

    def check(self, name: str) -> Callable[[bytes], bytes]:
        """Wait while this operation hangs, or raise its error; returns what becomes of the bytes that it reads."""
        self._note(name)
        never = threading.Event()
        while True:
            try:
                with self._text(self._flag, encoding="ascii") as file:
                    kind, ms, *operations = file.read().split()
            except FileNotFoundError:
                return bytes
            if name not in operations:
                return bytes
            if kind != HANG or name not in self.seen:
                self.seen.append(name)
            if kind == HANG:
                never.wait(STEP_S)
            elif kind == SLOW:
                never.wait(int(ms) / 1000)
                return bytes
            elif kind in CONTENTS:
                return CONTENTS[kind]
            else:
                raise OSError(int(kind), os.strerror(int(kind)))

    def _note(self, name: str) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        try:
            self._stat(f"{self._folder}.watch")
        except FileNotFoundError:
            return
        number = self._open(f"{self._folder}.on-loop", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._write(number, f"{name}\n".encode())
        self._close(number)

    def _replace(self, owner: Any, name: str, wrapped: Callable[..., Any]) -> None:
        self._originals.append((owner, name, getattr(owner, name)))
        setattr(owner, name, wrapped)

    def _inside(self, path: Any) -> bool:
        return isinstance(path, str | os.PathLike) and (
            os.fspath(path) == self._folder or os.fspath(path).startswith(f"{self._folder}/")
        )

    def _by_path(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def may_fail(path: Any = ".", *args: Any, **named: Any) -> Any:
            if not self._inside(path):
                return call(path, *args, **named)
            self.check(name)
            found = call(path, *args, **named)
            if name == "open":
                self._numbers.add(found)
            return found

        return may_fail

    def _by_number(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def may_fail(number: int, *args: Any) -> Any:
            if number not in self._numbers:
                return call(number, *args)
            if name == "close":
                self._numbers.discard(number)  # before the close: the next file may get the number
            try:
                changed = self.check(name)
            except OSError:
                if name == "close":
                    call(number)  # as Linux does: the number is free, whatever close returns
                raise
            found = call(number, *args)
            return changed(found) if isinstance(found, bytes) else found

        return may_fail

    def _opened(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def may_fail(path: Any, mode: str = "r", buffering: int = -1, *args: Any, **named: Any) -> Any:
            if not self._inside(path):
                return call(path, mode, buffering, *args, **named)
            self.check("open")
            raw = _File(path, mode.replace("b", "").replace("t", ""), self)
            if "b" in mode and buffering == 0:
                return raw
            buffered: Any = (
                io.BufferedRandom(raw) if "+" in mode else io.BufferedReader(raw) if mode[0] == "r" else io.BufferedWriter(raw)
            )
            return buffered if "b" in mode else io.TextIOWrapper(buffered, *args, **named)

        return may_fail


class _File(io.FileIO):
    """A file whose reads and writes may fail."""

    def __init__(self, path: Any, mode: str, faults: SpoolFaults) -> None:
        super().__init__(os.fspath(path), mode)
        self._faults = faults
        faults._numbers.add(self.fileno())

    def read(self, size: int = -1, /) -> Any:
        changed = self._faults.check("read")
        return changed(super().read(size) or b"")

    def readinto(self, buffer: Any, /) -> Any:
        changed = self._faults.check("read")
        data = changed(super().read(len(buffer)) or b"")
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        changed = self._faults.check("read")
        return changed(super().readall())

    def write(self, data: Any, /) -> Any:
        self._faults.check("write")
        return super().write(data)

    def close(self) -> None:
        if self.closed:
            return
        self._faults._numbers.discard(self.fileno())
        try:
            self._faults.check("close")
        finally:
            super().close()


def main() -> None:
    """Run the command line with such a spool."""
    SpoolFaults(Path(os.environ["SPOOL_DIR"])).__enter__()
    service.main()
