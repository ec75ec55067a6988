"""Faults of SQLite's files: calls that are slow, hang, or fail with EIO or ENOSPC. A VFS around SQLite's own one.

Python cannot replace the calls that SQLite makes to the C library, but SQLite lets each of its file operations be replaced:
https://www.sqlite.org/vfs.html, "VFS shims". `install` makes this VFS the default of the process. It concerns the database
`DatabaseFaults.path`, its log and its journal, and is steered by the file `<database>.fault`: a kind, then operations.

As a process: `main` runs the service in place of `recorder`, and the file in DATA_DIR steers it.
"""

from __future__ import annotations

import _sqlite3
import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import service

HANG, SLOW, EIO, ENOSPC = "hang", "slow", "eio", "enospc"
STEP_S = 0.05
_OK, _FULL = 0, 13
# What SQLite's own VFS returns when the operation fails with EIO.
OPERATIONS = {
    "open": 14, "delete": 10 | 10 << 8, "read": 10 | 1 << 8, "write": 10 | 3 << 8, "fsync": 10 | 4 << 8,
    "truncate": 10 | 6 << 8, "size": 10 | 7 << 8, "lock": 10 | 15 << 8, "map": 10 | 21 << 8,
}  # fmt: skip
READS, WRITES = ("read", "size"), ("write", "fsync", "truncate")
KINDS = (HANG, SLOW, EIO, ENOSPC)
_P, _I = ctypes.c_void_p, ctypes.c_int
_OPEN = ctypes.CFUNCTYPE(_I, _P, _P, _P, _I, _P)
_DELETE = ctypes.CFUNCTYPE(_I, _P, _P, _I)
# The methods of an open file, in their order: https://www.sqlite.org/c3ref/io_methods.html. Those with a name are preceded by
# the fault of that operation.
_METHODS: tuple[tuple[str, Any], ...] = (
    ("", None),  # xClose
    ("read", ctypes.CFUNCTYPE(_I, _P, _P, _I, ctypes.c_int64)),
    ("write", ctypes.CFUNCTYPE(_I, _P, _P, _I, ctypes.c_int64)),
    ("truncate", ctypes.CFUNCTYPE(_I, _P, ctypes.c_int64)),
    ("fsync", ctypes.CFUNCTYPE(_I, _P, _I)),
    ("size", ctypes.CFUNCTYPE(_I, _P, _P)),
    ("lock", ctypes.CFUNCTYPE(_I, _P, _I)),
    *((("", None),) * 5),  # xUnlock, xCheckReservedLock, xFileControl, xSectorSize, xDeviceCharacteristics
    ("map", ctypes.CFUNCTYPE(_I, _P, _I, _I, _I, _P)),
    *((("", None),) * 5),  # xShmLock, xShmBarrier, xShmUnmap, xFetch, xUnfetch
)


class _Vfs(ctypes.Structure):
    _fields_ = (
        ("version", _I), ("size", _I), ("longest", _I), ("next", _P), ("name", ctypes.c_char_p), ("data", _P),
        ("open", _P), ("delete", _P), ("rest", _P * 13),
    )  # fmt: skip


class _Methods(ctypes.Structure):
    _fields_ = (("version", _I), ("of", _P * len(_METHODS)))


class DatabaseFaults:
    """The faults of one database file. Open connections have them as well, if they were opened through this VFS."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._flag = Path(f"{path}.fault")

    def begin(self, kind: str, *operations: str, ms: int = 0) -> None:
        """From now on these operations of the files hang, are slow by `ms`, or fail."""
        assert kind in KINDS, kind
        assert not set(operations) - OPERATIONS.keys(), operations
        written = self._flag.with_name(self._flag.name + ".part")
        written.write_text(" ".join((kind, str(ms), *operations)))
        written.replace(self._flag)

    def heal(self) -> None:
        """From now on all operations work; those that hang return."""
        self._flag.unlink(missing_ok=True)

    @contextmanager
    def during(self, kind: str, *operations: str, ms: int = 0) -> Iterator[None]:
        """The faults of `begin` within this block."""
        self.begin(kind, *operations, ms=ms)
        try:
            yield
        finally:
            self.heal()


class _Shim:
    """The VFS. Everything that SQLite may still call is kept for as long as the process lives."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(_sqlite3.__file__)
        self._library.sqlite3_vfs_find.restype = ctypes.POINTER(_Vfs)
        self._own = self._library.sqlite3_vfs_find(None)
        self._tables: dict[int, tuple[_Methods, list[Any]]] = {}
        self._names: dict[int, str] = {}
        self._vfs = _Vfs.from_buffer_copy(self._own.contents)
        self._vfs.name = b"faults"
        self._own_open, self._own_delete = _OPEN(self._own.contents.open), _DELETE(self._own.contents.delete)
        self._callbacks = _OPEN(self._open), _DELETE(self._delete)
        self._vfs.open, self._vfs.delete = (ctypes.cast(each, _P).value for each in self._callbacks)
        self._library.sqlite3_vfs_register(ctypes.byref(self._vfs), 1)

    def remove(self) -> None:
        """Make SQLite's own VFS the default again. Files that are open keep this one."""
        self._library.sqlite3_vfs_register(self._own, 1)

    def _open(self, _: int, name: int | None, file: int, flags: int, out: int) -> int:
        path = os.fsdecode(ctypes.string_at(name)) if name else ""
        code = _fault(path, "open") or self._own_open(ctypes.addressof(self._own.contents), name, file, flags, out)
        pointer = _P.from_address(file)
        if code == _OK and path and pointer.value:
            self._names[file] = path
            pointer.value = ctypes.addressof(self._shimmed(pointer.value))
        return code

    def _delete(self, _: int, name: int, sync: int) -> int:
        path = os.fsdecode(ctypes.string_at(name))
        return _fault(path, "delete") or self._own_delete(ctypes.addressof(self._own.contents), name, sync)

    def _shimmed(self, address: int) -> _Methods:
        """The table of methods in place of the one at `address`."""
        if address not in self._tables:
            own = _Methods.from_address(address)
            table, kept = _Methods.from_buffer_copy(own), []
            for at, (operation, type_) in enumerate(_METHODS):
                if operation and own.of[at]:
                    callback = type_(self._preceded(operation, type_(own.of[at])))
                    kept.append(callback)
                    table.of[at] = ctypes.cast(callback, _P).value
            self._tables[address] = table, kept
        return self._tables[address][0]

    def _preceded(self, operation: str, own: Any) -> Any:
        def call(file: int, *arguments: Any) -> int:
            return _fault(self._names.get(file, ""), operation) or int(own(file, *arguments))

        return call


def _fault(path: str, operation: str) -> int:
    """Wait as long as this operation hangs or is slow; returns the code with which it fails, or 0."""
    for end in ("", "-wal", "-journal"):
        flag = f"{path.removesuffix(end)}.fault"
        if path.endswith(end) and os.path.exists(flag):
            break
    else:
        return _OK
    never = threading.Event()
    while True:
        try:
            with open(flag, encoding="ascii") as file:
                kind, ms, *operations = file.read().split()
        except FileNotFoundError:
            return _OK
        if operation not in operations:
            return _OK
        if kind == HANG:
            never.wait(STEP_S)
            continue
        if kind == SLOW:
            never.wait(int(ms) / 1000)
            return _OK
        return _FULL if kind == ENOSPC and operation == "write" else OPERATIONS[operation]


_installed: list[_Shim] = []


@contextmanager
def installed() -> Iterator[None]:
    """Within this block, databases are opened with this VFS."""
    _installed.append(_Shim())
    try:
        yield
    finally:
        _installed[-1].remove()


def main() -> None:
    """Run the command line with such a database."""
    _installed.append(_Shim())
    service.main()
