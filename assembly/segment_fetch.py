"""A segment from another node's spool: fetched whole or not at all. Imports `media` and `web`.

Rule: what the other node, or the way to it, fails at may pass, and after NODE_RETURN counts as away; what our own disk fails at
is our own disk's, and never makes a segment of a node that answers a loss.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from pathlib import Path

import aiohttp
import structlog

from media import transcode
from web import segment_download

log = structlog.get_logger()

CONNECT_TIMEOUT_S = 5.0
SILENCE_TIMEOUT_S = 20.0
CHUNK_BYTES = 1 << 20

_turns: weakref.WeakValueDictionary[Path, asyncio.Lock] = weakref.WeakValueDictionary()


async def fetch(url: str, token: str, recording_id: str, epoch: int, path: Path) -> bool:
    """Copy the segment of `epoch` from the node at `url` to `path`, unless it is there already. False if it cannot be had from
    there now. Raises errors.TranscodeFailed with the reason "disk-full" or "spool-lost" when it cannot be written here."""
    # A transcode that was superseded may still fetch beside its successor.
    async with _turns.setdefault(path, asyncio.Lock()):
        return await asyncio.to_thread(path.exists) or await _fetch(url, token, recording_id, epoch, path)


async def _fetch(url: str, token: str, recording_id: str, epoch: int, path: Path) -> bool:
    part = path.with_name(path.name + ".fetched")
    limits = aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT_S, sock_read=SILENCE_TIMEOUT_S)
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
            await asyncio.to_thread(_date, part, answer.headers.get(segment_download.WRITTEN, ""))
        await asyncio.to_thread(part.replace, path)
    except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
        log.warning("segment.not_fetched", recording_id=recording_id, epoch=epoch, url=url, error=type(error).__name__)
        return False
    except OSError as error:
        log.warning("segment.not_written", recording_id=recording_id, epoch=epoch, url=url, error=error.strerror or str(error))
        raise transcode.storage_failed(error) from error
    finally:
        # A part of a segment is of use to nobody, and on a full disk it is what fills it.
        await asyncio.to_thread(part.unlink, missing_ok=True)
    log.info("segment.fetched", recording_id=recording_id, epoch=epoch, url=url)
    return True


def _date(part: Path, written_ms: str) -> None:
    """Give the copy the time at which the other node's file was last written: a segment's times may be reckoned from it."""
    if written_ms.isdecimal():
        os.utime(part, ns=(int(written_ms) * 1_000_000,) * 2)


async def _write(content: aiohttp.StreamReader, part: Path) -> None:
    """What comes, on the disk (fsync). Raises what reading raises, and OSError."""
    with await asyncio.to_thread(part.open, "wb", buffering=0) as file:
        async for chunk in content.iter_chunked(CHUNK_BYTES):
            left = memoryview(chunk)
            while left:
                left = left[await asyncio.to_thread(file.write, left) :]
        await asyncio.to_thread(os.fsync, file.fileno())
