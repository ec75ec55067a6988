"""Holes: bytes of a file that are given back to its file system while the file keeps its size.

Rule: only whole blocks become holes, so that the bytes around them stay. A hole reads as zeros. Linux can punch holes on ext4,
XFS, btrfs and tmpfs; other file systems refuse.
"""

from __future__ import annotations

import ctypes
import errno
import os
import uuid
from pathlib import Path

BLOCK_BYTES = 4096
_UNIT_BYTES = 512  # of st_blocks
_KEEP_SIZE_PUNCH_HOLE = 0x01 | 0x02  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE of linux/falloc.h
_CANNOT_PUNCH = frozenset((errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.ENODEV, errno.EPERM))
_LIBC = ctypes.CDLL(None, use_errno=True)


def punch(path: Path, from_bytes: int, to_bytes: int) -> None:
    """Give back the whole blocks between two offsets of a file (blocking). Raises OSError if it cannot."""
    begin = -(-from_bytes // BLOCK_BYTES) * BLOCK_BYTES
    end = to_bytes // BLOCK_BYTES * BLOCK_BYTES
    if end <= begin:
        return
    with path.open("r+b") as file:
        size = ctypes.c_int64(end - begin)
        if _LIBC.fallocate(file.fileno(), _KEEP_SIZE_PUNCH_HOLE, ctypes.c_int64(begin), size) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))


def used_bytes(path: Path) -> int:
    """What a file takes on its disk (blocking). Raises OSError."""
    return path.stat().st_blocks * _UNIT_BYTES


def supported(folder: Path) -> bool:
    """Whether the file system of a folder can give back bytes inside a file (blocking). Raises OSError if nothing can be written
    there."""
    path = folder / f".probe.holes.{uuid.uuid4().hex[:8]}"
    try:
        with path.open("wb") as file:
            file.write(b"\x01" * 4 * BLOCK_BYTES)
            file.flush()
            os.fsync(file.fileno())
        before = used_bytes(path)
        punch(path, BLOCK_BYTES, 3 * BLOCK_BYTES)
        return used_bytes(path) < before
    except OSError as error:
        if error.errno in _CANNOT_PUNCH:
            return False
        raise
    finally:
        path.unlink(missing_ok=True)
