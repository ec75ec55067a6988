"""Faults of the files in one folder, as a full disk, a broken disk or a stale mount gives them: ENOSPC, EIO, ESTALE.

In a test: `with SpoolFaults(folder) as faults: faults.fail(errno.ENOSPC, "mkdir", "write")`. As a process: `main` runs the
service in place of `recorder`, and the file `<SPOOL_DIR>.fault` steers it, for example `28 mkdir write`. ffmpeg is another
process and knows nothing of this.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import service

BY_PATH = (
    "open", "stat", "lstat", "mkdir", "listdir", "scandir", "unlink", "replace", "rename", "rmdir", "statvfs", "utime", "truncate"
)  # fmt: skip
BY_NUMBER = ("fstat", "fsync", "read", "pread", "write", "pwrite", "writev", "ftruncate")
OPERATIONS = frozenset((*BY_PATH, *BY_NUMBER))
READS = ("open", "stat", "lstat", "listdir", "scandir", "read", "pread", "fstat", "statvfs")
WRITES = ("mkdir", "write", "pwrite", "writev", "fsync", "replace")


class SpoolFaults:
    """The operations of `os` and `open`, each of which may fail if it is in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)
        self._flag = Path(f"{folder}.fault")
        self._originals: list[tuple[Any, str, Any]] = []
        self._numbers: set[int] = set()
        self._stat, self._read_text = os.stat, io.open
        self.seen: list[str] = []

    def fail(self, number: int, *operations: str) -> None:
        """From now on these operations fail with this errno."""
        unknown = set(operations) - OPERATIONS
        assert not unknown, f"no such operations: {unknown}"
        with self._read_text(self._flag, "w", encoding="ascii") as file:
            file.write(" ".join((str(number), *operations)))

    def heal(self) -> None:
        """From now on all operations work."""
        self._flag.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        for name in BY_PATH:
            self._replace(os, name, self._by_path(name, getattr(os, name)))
        for name in BY_NUMBER:
            self._replace(os, name, self._by_number(name, getattr(os, name)))
        self._replace(os, "close", self._closed(os.close))
        self._replace(io, "open", self._opened(io.open))
        return self

    def __exit__(self, *_: object) -> None:
        self.heal()
        for owner, name, original in reversed(self._originals):
            setattr(owner, name, original)

    def check(self, name: str) -> None:
        """Raise the error of this operation, if it fails now."""
        try:
            self._stat(self._flag)
        except FileNotFoundError:
            return
        with self._read_text(self._flag, encoding="ascii") as file:
            number, *operations = file.read().split() or ["0"]
        if name in operations:
            self.seen.append(name)
            raise OSError(int(number), os.strerror(int(number)))

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
            if number in self._numbers:
                self.check(name)
            return call(number, *args)

        return may_fail

    def _closed(self, call: Callable[[int], None]) -> Callable[[int], None]:
        def close(number: int) -> None:
            self._numbers.discard(number)  # before the close: the next file may get the number
            call(number)

        return close

    def _opened(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def may_fail(path: Any, mode: str = "r", buffering: int = -1, *args: Any, **named: Any) -> Any:
            if not self._inside(path):
                return call(path, mode, buffering, *args, **named)
            self.check("open")
            if "b" not in mode:
                return call(path, mode, buffering, *args, **named)
            raw = _File(path, mode.replace("b", ""), self)
            if buffering == 0:
                return raw
            return io.BufferedReader(raw) if mode == "rb" else io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)

        return may_fail


class _File(io.FileIO):
    """A file whose reads and writes may fail."""

    def __init__(self, path: Any, mode: str, faults: SpoolFaults) -> None:
        super().__init__(os.fspath(path), mode)
        self._faults = faults
        faults._numbers.add(self.fileno())

    def read(self, size: int = -1, /) -> Any:
        self._faults.check("read")
        return super().read(size)

    def readinto(self, buffer: Any, /) -> Any:
        self._faults.check("read")
        return super().readinto(buffer)

    def readall(self) -> bytes:
        self._faults.check("read")
        return super().readall()

    def write(self, data: Any, /) -> Any:
        self._faults.check("write")
        return super().write(data)

    def close(self) -> None:
        if not self.closed:
            self._faults._numbers.discard(self.fileno())
        super().close()


def main() -> None:
    """Run the command line with such a spool."""
    SpoolFaults(Path(os.environ["SPOOL_DIR"])).__enter__()
    service.main()
