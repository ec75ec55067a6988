"""Fetches a segment from another node's spool, completely or not at all.

Rule: a failure of the other node or of the network may pass; after NODE_RETURN the node counts as away. A failure of this node's
disk is reported as such and never makes a reachable segment count as lost.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from pathlib import Path
from typing import NamedTuple

import aiohttp
import structlog

from machine import segments
from media import arrival_index, file_threads, transcode

log = structlog.get_logger()

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 20.0
CHUNK_BYTES = 1 << 20
_FETCHED, _NOT_THERE = 200, 404

_locks: weakref.WeakValueDictionary[Path, asyncio.Lock] = weakref.WeakValueDictionary()


async def fetch(url: str, token: str, recording_id: str, epoch: int, path: Path) -> bool:
    """Copy the segment of `epoch` and its arrival index from the node at `url` to `path`, unless `path` exists; False if that
    node cannot give it now. Raises errors.TranscodeFailed with the reason "disk-full" or "spool-lost" if it cannot be written
    here."""
    # A superseded transcode may still fetch while its successor does.
    async with _locks.setdefault(path, asyncio.Lock()):
        if await file_threads.BULK.run(path.exists):
            return True
        source = _Source(url, token, recording_id, epoch)
        # The index comes first: a segment that exists here is complete, and so is its index. A segment of ffmpeg has none.
        index = await _fetch(source, "arrivals", arrival_index.path_of(path))
        return index in (_FETCHED, _NOT_THERE) and await _fetch(source, "segments", path) == _FETCHED


class _Source(NamedTuple):
    url: str
    token: str
    recording_id: str
    epoch: int


async def _fetch(source: _Source, kind: str, path: Path) -> int:
    """Copy one file; returns the HTTP status, or 0 if the node could not be reached."""
    part = path.with_name(path.name + ".fetched")
    limits = aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT_S, sock_read=READ_TIMEOUT_S)
    headers = {"Authorization": f"Bearer {source.token}"}
    query = {"recording": source.recording_id, "epoch": str(source.epoch)}
    about = {"recording_id": source.recording_id, "epoch": source.epoch, "url": source.url, "kind": kind}
    try:
        async with (
            aiohttp.ClientSession(timeout=limits, headers=headers) as http,
            http.get(f"{source.url}/internal/{kind}", params=query, allow_redirects=False) as answer,
        ):
            if answer.status != _FETCHED:
                (log.debug if kind == "arrivals" else log.warning)("segment.not_given", status=answer.status, **about)
                return answer.status
            await _write(answer.content, part)
            await file_threads.BULK.run(_set_written, part, answer.headers.get(segments.WRITTEN_HEADER, ""))
        await file_threads.BULK.run(part.replace, path)
    except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
        log.warning("segment.not_fetched", error=type(error).__name__, **about)
        return 0
    except OSError as error:
        log.warning("segment.not_written", error=error.strerror or str(error), **about)
        raise transcode.storage_failed(error) from error
    finally:
        # A partial copy is useless, and it occupies a full disk.
        await file_threads.BULK.run_within(file_threads.ANSWER_S, lambda: part.unlink(missing_ok=True))
    log.info("segment.fetched", **about)
    return _FETCHED


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
