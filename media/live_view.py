"""Live view of a recording: the end of its growing segment, served as fragmented MP4 for a browser.

    LiveTail (here, or on the node with the segment) → FLV → ffmpeg, which copies the packets → fragmented MP4 → the viewer

Rules: files are read by threads of their own, and ffmpeg has the lowest priority, so that no view delays a capture. A viewer that
does not read for PATIENCE_S loses its view. After `close` no process, task or file is left.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from pathlib import Path

import aiohttp
import structlog

from machine import daemon_threads, errors
from media import codecs, ffmpeg_command, ffmpeg_process, flv, live_tail, resource_limits

log = structlog.get_logger()

FILES = daemon_threads.DaemonThreads("live-view", 4)
TICK_S = 0.1
ASK_EVERY_S = 2.0
PATIENCE_S = 10.0
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 5.0, 30.0
_CHUNK_BYTES = 1 << 16
# What browsers play in MP4, with the usual name there (RFC 6381). H.265 depends on the machine: few play it.
_PLAYABLE = {
    "avc": "avc1.42e01e",
    "av01": "av01.0.08M.08",
    "vp09": "vp09.00.41.08",
    "aac": "mp4a.40.2",
    "mp3": "mp4a.6b",
    "Opus": "opus",
    "fLaC": "flac",
}
MODES = ("00", "01", "02")
_NAMES = {"hevc": "H.265", "vvc1": "H.266"}


async def segment(path: Path, mode: str, is_over: Callable[[], Awaitable[bool]]) -> AsyncGenerator[bytes, None]:
    """The end of the segment at `path` as FLV, for as long as it grows. `is_over` is asked while nothing arrives. Raises
    OSError."""
    tail = await FILES.run(live_tail.LiveTail, path, mode)
    asked_s = asyncio.get_running_loop().time()
    over = False
    try:
        while not tail.over:
            data = await FILES.run(tail.read)
            if data:
                asked_s = asyncio.get_running_loop().time()
                yield data
            elif over:
                return
            elif asyncio.get_running_loop().time() - asked_s > ASK_EVERY_S:
                # Bytes written before the end are read once more.
                over = await is_over()
                asked_s = asyncio.get_running_loop().time()
            await asyncio.sleep(TICK_S)
    finally:
        tail.close()


async def fetched(url: str, token: str, query: Mapping[str, str]) -> AsyncGenerator[bytes, None]:
    """The same of a segment on another node. Raises Unavailable if the node does not give it."""
    limits = aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT_S, sock_read=READ_TIMEOUT_S)
    headers = {"Authorization": f"Bearer {token}"}
    try:
        async with (
            aiohttp.ClientSession(timeout=limits, headers=headers) as http,
            http.get(f"{url}/internal/live", params=query, allow_redirects=False) as answer,
        ):
            if answer.status != 200:
                raise errors.Unavailable(f"The node with the segment does not give it now (HTTP {answer.status}).")
            async for data in answer.content.iter_any():
                yield data
    except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
        raise errors.Unavailable("The node with the segment cannot be reached now.") from error


class LiveView:
    """One viewer's MP4. `start`, then `read` until it is empty, then `close`."""

    def __init__(self, ffmpeg: str, source: AsyncGenerator[bytes, None]) -> None:
        """`source` is FLV; the view closes it."""
        self._ffmpeg = ffmpeg
        self._source = source
        self.child: ffmpeg_process.Child | None = None
        self._output: asyncio.StreamReader | None = None
        self._pipe: asyncio.ReadTransport | None = None
        self._feeding: asyncio.Task[None] | None = None
        self._codecs: dict[int, str] = {}

    @property
    def media_type(self) -> str:
        """The content type with the codecs of its tracks, as players of byte streams need it; only after `start`."""
        kind = "video" if flv.VIDEO in self._codecs else "audio"
        return f'{kind}/mp4; codecs="{", ".join(self._codecs[each] for each in sorted(self._codecs, reverse=True))}"'

    async def start(self) -> None:
        """Wait for the first media, and spawn ffmpeg. Raises Refused if browsers do not play it, Unavailable if
        nothing arrives, and OSError."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                head = await self._head()
        except TimeoutError as error:
            raise errors.Unavailable("No picture and no sound arrives from this speaker now.") from error
        ends = os.pipe()
        try:
            argv = ffmpeg_command.view_args(self._ffmpeg, ends[1])
            polite = resource_limits.polite(argv, 19)
            self.child = ffmpeg_process.Child(polite, redact=str, on_error_line=lambda line: log.debug("view.ffmpeg", said=line))
            await self.child.start(inherit=(ends[1],))
            self._output = asyncio.StreamReader(limit=_CHUNK_BYTES)
            protocol = asyncio.StreamReaderProtocol(self._output)
            file = os.fdopen(os.dup(ends[0]), "rb", buffering=0)
            self._pipe, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, file)
        finally:
            for end in ends:
                os.close(end)
        self._feeding = asyncio.create_task(self._feed(self.child, head))

    async def read(self) -> bytes:
        """The next bytes of the MP4; empty at its end."""
        assert self._output is not None  # noqa: S101 - a caller's fault: it was not started
        return await self._output.read(_CHUNK_BYTES)

    async def close(self) -> None:
        """End the process and its input. Safe to call twice."""
        if self._feeding is not None:
            self._feeding.cancel()
            await asyncio.gather(self._feeding, return_exceptions=True)
        if self.child is not None and self.child.pid:
            self.child.kill()
            await self.child.wait()
        if self._pipe is not None:
            self._pipe.close()
        await self._source.aclose()

    async def _head(self) -> bytes:
        """The source up to its first packet, checked."""
        head = b""
        async for data in self._source:
            head += data
            tags = list(flv.tags(head[flv.FIRST_TAG_BYTES :]))
            if any(tag.is_media for tag in tags):
                self._codecs = {tag.kind: _codec(tag) for tag in reversed(tags)}
                return head
        raise errors.Unavailable("The segment has just ended; the next one, if any, begins in a moment.")

    async def _feed(self, child: ffmpeg_process.Child, head: bytes) -> None:
        try:
            child.stdin.write(head)
            async for data in self._source:
                child.stdin.write(data)
                async with asyncio.timeout(PATIENCE_S):
                    await child.stdin.drain()
            child.stdin.close()
        except (BrokenPipeError, ConnectionResetError):
            return  # ffmpeg has ended, and so does the view
        except (TimeoutError, OSError, errors.Unavailable) as error:
            log.info("view.ended", error=type(error).__name__)
            child.kill()


def _codec(tag: flv.Tag) -> str:
    """The codec of a track, from its first tag, in the words of RFC 6381. Raises Refused if browsers do not play it."""
    name = codecs.identity(tag.kind, tag.payload)
    if name not in _PLAYABLE:
        track = "sound" if tag.kind == flv.AUDIO else "picture"
        raise errors.Refused(
            f"This speaker sends the {track} as {_NAMES.get(name, name)}, which browsers do not play live. It is recorded all the"
            " same: the finished file has it."
        )
    if name == "avc" and tag.is_sequence_header:
        return f"avc1.{tag.payload[6:9].hex()}"
    if name == "aac" and tag.is_sequence_header:
        return f"mp4a.40.{tag.payload[5 if tag.payload[0] >> 4 == 9 else 2] >> 3}"
    return _PLAYABLE[name]
