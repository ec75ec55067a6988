"""Fetches a segment from another node's spool, completely or not at all.

Rule: a failure of the other node or of the network may pass; after NODE_RETURN the node counts as away. A failure of this node's
disk is reported as such and never makes a reachable segment count as lost.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from pathlib import Path

import aiohttp
import structlog

from machine import segments
from media import file_threads, transcode

log = structlog.get_logger()

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 20.0
CHUNK_BYTES = 1 << 20

_locks: weakref.WeakValueDictionary[Path, asyncio.Lock] = weakref.WeakValueDictionary()


async def fetch(url: str, token: str, recording_id: str, epoch: int, path: Path) -> bool:
    """Copy the segment of `epoch` from the node at `url` to `path`, unless `path` exists; False if that node cannot give it now.
    Raises errors.TranscodeFailed with the reason "disk-full" or "spool-lost" if it cannot be written here."""
    # A superseded transcode may still fetch while its successor does.
    async with _locks.setdefault(path, asyncio.Lock()):
        return await file_threads.BULK.run(path.exists) or await _fetch(url, token, recording_id, epoch, path)


async def _fetch(url: str, token: str, recording_id: str, epoch: int, path: Path) -> bool:
    part = path.with_name(path.name + ".fetched")
    limits = aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT_S, sock_read=READ_TIMEOUT_S)
    address, query = f"{url}/internal/segments", {"recording": recording_id, "epoch": str(epoch)}
    try:
        async with (
            aiohttp.ClientSession(timeout=limits, headers={"Authorization": f"Bearer {token}"}) as http,
            http.get(address, params=query, allow_redirects=False) as answer,
        ):
            if answer.status != 200:
                log.warning("segment.not_given", recording_id=recording_id, epoch=epoch, url=url, status=answer.status)
                return False
            await _write(answer.content, part)
            await file_threads.BULK.run(_set_written, part, answer.headers.get(segments.WRITTEN_HEADER, ""))
        await file_threads.BULK.run(part.replace, path)
    except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
        log.warning("segment.not_fetched", recording_id=recording_id, epoch=epoch, url=url, error=type(error).__name__)
        return False
    except OSError as error:
        log.warning("segment.not_written", recording_id=recording_id, epoch=epoch, url=url, error=error.strerror or str(error))
        raise transcode.storage_failed(error) from error
    finally:
        # A partial copy is useless, and it occupies a full disk.
        await file_threads.BULK.run_within(file_threads.ANSWER_S, lambda: part.unlink(missing_ok=True))
    log.info("segment.fetched", recording_id=recording_id, epoch=epoch, url=url)
    return True


def _set_written(part: Path, written_ms: str) -> None:
    """Give the copy the original's time of writing: a segment's wall times may be derived from it."""
    if written_ms.isdecimal():
        os.utime(part, ns=(int(written_ms) * 1_000_000,) * 2)


async def _write(content: aiohttp.StreamReader, part: Path) -> None:
    """Write the response to disk (fsync). Raises the errors of reading, and OSError."""
    file = await file_threads.BULK.run(lambda: part.open("wb", buffering=0))
    try:
        async for chunk in content.iter_chunked(CHUNK_BYTES):
            left = memoryview(chunk)
            while left:
                left = left[await file_threads.BULK.run(file.write, left) :]
        await file_threads.BULK.run(os.fsync, file.fileno())
    finally:
        await file_threads.BULK.run_within(file_threads.ANSWER_S, file.close)
