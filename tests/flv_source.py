"""Live streams for tests: small FLV files made by the bundled ffmpeg, split into tags, and an HTTP server that paces them.

Rule: a flash and a beep at every full second of the source's own time, 100 ms long, so that a test can see in the finished file
when its content was live.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import subprocess
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import imageio_ffmpeg
from aiohttp import web

from media import avc, flv

FFMPEG: str = imageio_ffmpeg.get_ffmpeg_exe()
_FLASH = "drawbox=color=white:t=fill:enable='lt(mod(t,1),0.1)'"
_BEEP = "volume='if(lt(mod(t,1),0.1),1,0)':eval=frame"


# Synthetic packets for tests that need no decoder.
AVC_HEADER = bytes.fromhex("17000000000142c00cffe100166742c00cda0507ec0440000003004000000783c50aa801000468ce0fc8")  # 320x240
LARGER_AVC_HEADER = bytes.fromhex(  # 1278x718
    "17000000000142c01fffe100186742c01fda014016faac0440000003004000000783c60ca801000468ce0fc8"
)
AAC_HEADER = bytes.fromhex("af00120856e500")


def sound(timestamp_ms: int, payload: bytes = b"\x21\x10") -> flv.Tag:
    """A packet of AAC sound."""
    return flv.Tag(kind=flv.AUDIO, timestamp_ms=timestamp_ms, payload=b"\xaf\x01" + payload)


def picture(timestamp_ms: int, *, key: bool = False, payload: bytes = b"\x00\x00\x00\x01\x09") -> flv.Tag:
    """A packet of AVC pictures."""
    return flv.Tag(
        kind=flv.VIDEO, timestamp_ms=timestamp_ms, payload=(b"\x17" if key else b"\x27") + b"\x01\x00\x00\x00" + payload
    )


def configuration(kind: int, payload: bytes, timestamp_ms: int = 0) -> flv.Tag:
    """A sequence header."""
    return flv.Tag(kind=kind, timestamp_ms=timestamp_ms, payload=payload)


@functools.cache
def content(
    size: str = "320x240",
    duration_s: int = 10,
    rate: int = 15,
    gop: int = 15,
    samples: int = 44100,
    bframes: int = 0,
    *,
    video: str = "libx264 -preset ultrafast -pix_fmt yuv420p",
    audio: str = "aac -b:a 64k",
    filters: str = "null",
) -> tuple[flv.Tag, ...]:
    """The tags of a stream with both tracks: blue picture (to differ from black), flash and beep each second. `video` and `audio`
    are the encoders with their options, `filters` change the picture."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "source.flv"
        picture = f"color=blue:s={size}:r={rate}:d={duration_s},{_FLASH},{filters}"
        sound = f"sine=frequency=1000:r={samples}:d={duration_s}:samples_per_frame={samples // 100},{_BEEP}"
        encoders = f"-c:v {video} -g {gop} -bf {bframes} -c:a {audio} -ac 1".split()
        inputs = ["-f", "lavfi", "-i", picture, "-f", "lavfi", "-i", sound]
        subprocess.run([FFMPEG, "-loglevel", "error", *inputs, *encoders, "-f", "flv", str(path)], check=True)
        return read(path)


def read(path: Path) -> tuple[flv.Tag, ...]:
    """All tags of a file, its metadata left out."""
    reader = flv.TagReader(path)
    tags: list[flv.Tag] = []
    while more := reader.read():
        tags += more
    reader.close()
    return tuple(tag for tag in tags if tag.kind != flv.SCRIPT)


def only(tags: Iterable[flv.Tag], kind: int) -> tuple[flv.Tag, ...]:
    """The tags of one track."""
    return tuple(tag for tag in tags if tag.kind == kind)


def between(tags: Iterable[flv.Tag], from_ms: int, to_ms: int) -> tuple[flv.Tag, ...]:
    """The configuration and the media with from_ms ≤ time < to_ms."""
    return tuple(tag for tag in tags if tag.is_sequence_header or (tag.is_media and from_ms <= tag.timestamp_ms < to_ms))


def shifted(tags: Iterable[flv.Tag], by_ms: int) -> tuple[flv.Tag, ...]:
    """The same tags, later by `by_ms`."""
    return tuple(replace(tag, timestamp_ms=max(0, tag.timestamp_ms + by_ms)) for tag in tags)


def merged(*streams: Iterable[flv.Tag]) -> tuple[flv.Tag, ...]:
    """Several tag streams as one, in the order of time; configuration keeps its place before the media of its time."""
    return tuple(sorted((tag for stream in streams for tag in stream), key=lambda tag: tag.timestamp_ms))


def units(payload: bytes) -> list[bytes]:
    """The NAL units of an H.264 packet."""
    at, found = 5, []
    while at + 4 <= len(payload):
        length = int.from_bytes(payload[at : at + 4], "big")
        found.append(payload[at + 4 : at + 4 + length])
        at += 4 + length
    return found


def inband(tags: Iterable[flv.Tag]) -> tuple[flv.Tag, ...]:
    """The same H.264 stream with its parameter sets before each key frame, and no header."""
    tags = tuple(tags)
    header = next(tag.payload for tag in tags if tag.kind == flv.VIDEO and tag.is_sequence_header)
    sets = [avc.sps(header[5:]), avc.pps(header[5:])]
    found = []
    for tag in tags:
        if tag.kind == flv.VIDEO and tag.is_sequence_header:
            continue
        body = b"".join(len(unit).to_bytes(4, "big") + unit for unit in (*sets, *units(tag.payload)))
        found.append(replace(tag, payload=tag.payload[:5] + body) if tag.is_key else tag)
    return tuple(found)


def write(path: Path, tags: Iterable[flv.Tag], *, audio: bool = True, video: bool = True) -> Path:
    """Writes tags as an FLV file and returns its path."""
    body = b"".join(flv.encode(tag.kind, tag.timestamp_ms, tag.payload) for tag in tags)
    path.write_bytes(flv.header(audio=audio, video=video) + body)
    return path


@dataclass(kw_only=True)
class Stream:
    """The response of one address: a refusal, or tags paced by their times, and then `close`, `hold` (silence) or `reset`."""

    tags: tuple[flv.Tag, ...] = ()
    status: int = 200
    text: str = ""
    declares: tuple[bool, bool] = (True, True)
    then: str = "close"
    ahead_ms: int = 0
    first_sent: float = 0.0
    last_sent: float = 0.0
    requests: int = 0
    extra: bytes = field(default=b"")


class LiveSource:
    """An HTTP-FLV server on an ephemeral port of 127.0.0.1. Put a `Stream` into `streams`, pull `address(name)`."""

    def __init__(self) -> None:
        self.streams: dict[str, Stream] = {}
        self.closing = asyncio.Event()
        self._runner: web.AppRunner | None = None
        self.port = 0

    async def start(self) -> None:
        application = web.Application()
        application.router.add_get("/live/{name}", self._serve)
        self._runner = web.AppRunner(application, shutdown_timeout=1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        self.closing.set()
        if self._runner is not None:
            await self._runner.cleanup()

    def address(self, name: str) -> str:
        return f"http://127.0.0.1:{self.port}/live/{name}?userid=recorder&usersig=SECRET-SIGNATURE&remoteuserid={name}"

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        stream = self.streams[request.match_info["name"]]
        stream.requests += 1
        if stream.status != 200:
            return web.Response(status=stream.status, text=stream.text)
        response = web.StreamResponse(headers={"Content-Type": "video/x-flv"})
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            await response.write(flv.header(audio=stream.declares[0], video=stream.declares[1]))
            await self._pace(stream, response)
        if stream.then == "reset" and request.transport is not None:
            request.transport.abort()
        return response

    async def _pace(self, stream: Stream, response: web.StreamResponse) -> None:
        began = time.monotonic()
        first = stream.tags[0].timestamp_ms if stream.tags else 0
        for tag in stream.tags:
            due = began + (tag.timestamp_ms - first - stream.ahead_ms) / 1000
            if due > time.monotonic() + 0.005:
                await self._pause(due - time.monotonic())
            if self.closing.is_set():
                return
            await response.write(flv.encode(tag.kind, tag.timestamp_ms, tag.payload))
            if tag.is_media:
                stream.last_sent = time.time()
                stream.first_sent = stream.first_sent or stream.last_sent
        await response.write(stream.extra)
        if stream.then == "hold":
            await self.closing.wait()

    async def _pause(self, delay_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.closing.wait(), delay_s)
