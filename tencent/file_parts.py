"""The parts of a file for a multipart upload: in order, each with its MD5 and the CRC-64 up to its end.

Rules: the length need not be known at the start, so parts grow with their number. Reading blocks, so it runs through `in_thread`.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import fastcrc

from machine import errors
from machine.reasons import Reason

MIN_PART_BYTES = 1024 * 1024  # COS's minimum for every part but the last
FIRST_PART_BYTES = 8 * 1024 * 1024
PARTS_PER_SIZE = 1000
MAX_PARTS = 10_000

InThread = Callable[[Callable[[], Any]], Awaitable[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedFile:
    """Size in bytes and CRC-64/XZ (decimal) of a file, noted when it was verified."""

    size_bytes: int
    crc64: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """The bytes of one part, their MD5, and the CRC-64/XZ of the file up to their end."""

    number: int
    data: bytes
    md5: bytes
    crc64: int


def part_size_bytes(first: int, number: int) -> int:
    """The size of part `number` (from 1) in bytes. It doubles every 1,000 parts, because an upload has at most 10,000 and its
    length may be unknown at the start. From 8 MiB, that allows 7.8 TiB."""
    return int(first * 2 ** ((number - 1) // PARTS_PER_SIZE))


def layout(first: int, head_bytes: int, file_bytes: int) -> Iterator[tuple[int, int, int]]:
    """The parts of a file whose first part is longer by `head_bytes`, or shorter if negative: number, offset and size in bytes of
    each."""
    offset = 0
    for number in itertools.count(1):
        if offset >= file_bytes:
            return
        size_bytes = min(part_size_bytes(first, number) + (head_bytes if number == 1 else 0), file_bytes - offset)
        yield number, offset, size_bytes
        offset += size_bytes


class PartReader:
    """Reads one file; every method raises errors.UploadFailed(reason=Reason.FILE_MISSING) if it cannot be read."""

    def __init__(self, path: Path, in_thread: InThread, verified: VerifiedFile | None = None) -> None:
        self._path = path
        self._verified = verified
        self._in_thread = in_thread

    async def check(self) -> None:
        """Raise errors.UploadFailed unless the file exists, has the size that was verified, and is not empty."""
        status = await self._ask(self._path.stat)
        if self._verified is not None and status.st_size != self._verified.size_bytes:
            self.compare(status.st_size, "")
        if status.st_size == 0:
            raise errors.UploadFailed(f"The file {self._path.name} is empty.", reason=Reason.FILE_MISSING, retry=False)

    async def blocks(self, first_part_bytes: int) -> AsyncGenerator[Block, None]:
        """The file's parts in order; the first 1,000 have `first_part_bytes`."""
        file = await self._ask(lambda: self._path.open("rb"))
        try:
            crc64 = 0
            for number in itertools.count(1):
                size_bytes = part_size_bytes(first_part_bytes, number)
                block = await self._ask(partial(_read, file, number, size_bytes, crc64))
                if block is None:
                    return
                if number > MAX_PARTS:
                    detail = f"The file {self._path.name} has more than {MAX_PARTS} parts."
                    raise errors.UploadFailed(detail, reason=Reason.REFUSED, retry=False)
                crc64 = block.crc64
                yield block
        finally:
            await self._in_thread(file.close)

    async def block(self, number: int, offset: int, size_bytes: int) -> Block:
        """One part; its CRC-64 is that of its bytes alone."""

        def read() -> Block | None:
            with self._path.open("rb") as file:
                file.seek(offset)
                return _read(file, number, size_bytes, 0)

        block: Block | None = await self._ask(read)
        if block is None or len(block.data) != size_bytes:
            self.compare(offset + (len(block.data) if block else 0), "")
            raise errors.UploadFailed(f"The file {self._path.name} is too short.", reason=Reason.FILE_DAMAGED, retry=False)
        return block

    def compare(self, size_bytes: int, crc64: str) -> None:
        """Compare the bytes that were read with the verified ones. Raises errors.UploadFailed ("file-damaged")."""
        verified = self._verified
        if verified is None or (verified.size_bytes, verified.crc64) == (size_bytes, crc64):
            return
        found = f"{size_bytes} bytes" + (f" with CRC-64 {crc64}" if crc64 else "")
        detail = (
            f"The file {self._path.name} was damaged after its verification: it had {verified.size_bytes} bytes with"
            f" CRC-64 {verified.crc64}, and now has {found}. Check the disk of the spool."
        )
        raise errors.UploadFailed(detail, reason=Reason.FILE_DAMAGED, retry=False)

    async def measure(self, first_part_bytes: int) -> tuple[int, str]:
        """The file's size in bytes and its CRC-64/XZ as a decimal string: as verified, or as read."""
        if self._verified is not None:
            return self._verified.size_bytes, self._verified.crc64
        size_bytes = crc64 = 0
        async with contextlib.aclosing(self.blocks(first_part_bytes)) as blocks:
            async for block in blocks:
                size_bytes, crc64 = size_bytes + len(block.data), block.crc64
        return size_bytes, str(crc64)

    async def _ask(self, work: Callable[[], Any]) -> Any:
        try:
            return await self._in_thread(work)
        except FileNotFoundError as error:
            detail = f"The file {self._path.name} is not on the spool."
            raise errors.UploadFailed(detail, reason=Reason.FILE_MISSING, retry=False) from error
        except OSError as error:
            detail = f"The file {self._path.name} could not be read ({error.strerror or type(error).__name__})."
            raise errors.UploadFailed(detail, reason=Reason.FILE_MISSING, retry=True) from error


def _read(file: BinaryIO, number: int, size_bytes: int, crc64: int) -> Block | None:
    """The next part of the file, None at its end."""
    data = file.read(size_bytes)
    if not data:
        return None
    md5 = hashlib.md5(data, usedforsecurity=False).digest()
    return Block(number=number, data=data, md5=md5, crc64=fastcrc.crc64.xz(data, crc64))
