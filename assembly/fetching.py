"""A segment from another node's spool: fetched whole or not at all. Imports nothing of ours."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import aiohttp
import structlog

log = structlog.get_logger()

CONNECT_TIMEOUT_S = 5.0
SILENCE_TIMEOUT_S = 20.0
CHUNK_BYTES = 1 << 20


async def fetch(url: str, token: str, recording_id: str, epoch: int, path: Path) -> bool:
    """Copy the segment of `epoch` from the node at `url` to `path`, unless it is there already. False if it cannot be had now."""
    if await asyncio.to_thread(path.exists):
        return True
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
            with await asyncio.to_thread(part.open, "wb") as file:
                async for chunk in answer.content.iter_chunked(CHUNK_BYTES):
                    await asyncio.to_thread(file.write, chunk)
                file.flush()
                await asyncio.to_thread(os.fsync, file.fileno())
        await asyncio.to_thread(part.replace, path)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        log.warning("segment.not_fetched", recording_id=recording_id, epoch=epoch, url=url, error=type(error).__name__)
        return False
    log.info("segment.fetched", recording_id=recording_id, epoch=epoch, url=url)
    return True
