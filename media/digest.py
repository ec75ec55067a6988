"""The CRC-64 of a file that ffmpeg still writes, computed as the file grows.

Rule: ffmpeg changes only the first bytes of what it has written: the size of an MP4's media, and the first frame of an MP3. All
others are final at once. They are flushed to disk too, so that little is left at the end.
"""

from __future__ import annotations

import os
from pathlib import Path

import fastcrc

from media import crc64

_CHANGING_BYTES = 4096
_READ_BYTES = 1 << 20


class GrowingDigest:
    """The digest of one file."""

    def __init__(self, path: Path, changing_bytes: int = _CHANGING_BYTES) -> None:
        """`changing_bytes`: the first ones, which change at the end."""
        self._path = path
        self._changing_bytes = self._at = changing_bytes
        self.crc = 0

    def look(self, until: int | None = None) -> None:
        """Read the bytes since the last look, up to an offset if it is given, and flush the file to disk (blocking). Raises
        OSError."""
        if self._path.exists():
            with self._path.open("rb") as file:
                self._read(file.fileno(), 0, until)
                os.fsync(file.fileno())

    def settle(self, moved_bytes: int) -> tuple[int, str]:
        """Flush the finished file to disk (fsync); returns its size in bytes and its CRC-64/XZ in decimal. All bytes behind the
        first are now `moved_bytes` farther back. Blocking. Raises OSError."""
        with self._path.open("rb") as file:
            self._read(file.fileno(), moved_bytes)
            os.fsync(file.fileno())
            first = os.pread(file.fileno(), self._changing_bytes + moved_bytes, 0)
        crc = int(fastcrc.crc64.xz(first))
        behind_bytes = self._at - self._changing_bytes
        return len(first) + behind_bytes, str(crc64.combined(crc, self.crc, behind_bytes))

    def _read(self, file: int, moved_bytes: int, until: int | None = None) -> None:
        while True:
            size_bytes = _READ_BYTES if until is None else min(_READ_BYTES, until - self._at)
            piece = os.pread(file, size_bytes, self._at + moved_bytes)
            if not piece:
                return
            self.crc = int(fastcrc.crc64.xz(piece, self.crc))
            self._at += len(piece)
