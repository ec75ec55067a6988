"""A service whose spool can hang, like a network file system whose server is away.

`tests/e2e/test_hung_spool.py` runs it in the place of `recorder`. Each file operation on the folder SPOOL_DIR waits while a file
of its name and `.hang` exists. With a file `.watch`, operations on the event loop's thread are noted in the file `.on-loop`.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import service

BY_PATH = ("open", "stat", "lstat", "mkdir", "listdir", "scandir", "unlink", "replace", "rmdir", "statvfs", "utime")
BY_NUMBER = ("fstat", "pread", "fsync", "write", "pwrite")
STEP_S = 0.05


class HungFiles:
    """The operations of `os`, each preceded by a wait if it is on the spool."""

    def __init__(self, spool: str) -> None:
        self._spool = spool
        self._stat, self._open, self._close = os.stat, os.open, os.close
        self._numbers: set[int] = set()

    def install(self) -> None:
        """Replace the operations."""
        for name in BY_PATH:
            setattr(os, name, self._by_path(name, getattr(os, name)))
        for name in BY_NUMBER:
            setattr(os, name, self._by_number(name, getattr(os, name)))
        os.close = self._closed
        io.open = self._by_path("io.open", io.open)  # type: ignore[assignment]

    def _by_path(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def waits(path: Any = ".", *args: Any, **named: Any) -> Any:
            inside = isinstance(path, str | os.PathLike) and os.fspath(path).startswith(self._spool)
            if inside:
                self._wait(name)
            found = call(path, *args, **named)
            if inside and name == "open":
                self._numbers.add(found)
            return found

        return waits

    def _by_number(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def waits(number: int, *args: Any) -> Any:
            if number in self._numbers:
                self._wait(name)
            return call(number, *args)

        return waits

    def _closed(self, number: int) -> None:
        # Before the close: the next file or pipe may get the number.
        self._numbers.discard(number)
        self._close(number)

    def _wait(self, name: str) -> None:
        if threading.current_thread() is threading.main_thread() and self._there("watch"):
            number = self._open(self._spool + ".on-loop", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.write(number, f"{name}\n".encode())
            self._close(number)
        never = threading.Event()
        while self._there("hang"):
            never.wait(STEP_S)

    def _there(self, flag: str) -> bool:
        try:
            self._stat(f"{self._spool}.{flag}")
        except FileNotFoundError:
            return False
        return True


def main() -> None:
    """Run the command line with such a spool."""
    HungFiles(str(Path(os.environ["SPOOL_DIR"]))).install()
    service.main()
