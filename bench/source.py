"""Live source for measurements: one encoded stream over HTTP-FLV to any number of viewers, in a process of its own.

    python -m bench.source FOLDER [SECONDS]        prints its port, ends with its standard input

Rule: the stream is encoded once and cached in FOLDER. Every viewer gets it from the beginning, paced by the packets' timestamps.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import imageio_ffmpeg
from aiohttp import web

from media import flv

KBITS = 1500
LENGTH_S = 120
SAMPLES, RATE = 1024, 44_100  # of a packet of sound, and a second


def encoded(folder: Path, length_s: int = LENGTH_S) -> list[flv.Tag]:
    """The stream: 640×360 at 25 frames and 1.5 Mbit/s with 64 kbit/s of sound, as a phone sends it. FOLDER caches it."""
    path = folder / f"source-{KBITS}-{length_s}.flv"
    if not path.exists():
        part = path.with_suffix(f".{os.getpid()}")  # others may encode it at the same time
        noise = "noise=alls=40:allf=t"  # without noise, a test picture does not reach the bit rate
        picture = f"testsrc=size=640x360:rate=25:duration={length_s},{noise},format=yuv420p"
        rate = ["-b:v", f"{KBITS}k", "-minrate", f"{KBITS}k", "-maxrate", f"{KBITS}k", "-bufsize", f"{KBITS}k"]
        subprocess.run(
            [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", "-f", "lavfi", "-i", picture, "-f", "lavfi",
             "-i", f"sine=frequency=440:duration={length_s}", "-c:v", "libx264", "-preset", "ultrafast", "-g", "50", "-bf", "0",
             *rate, "-c:a", "aac", "-b:a", "64k", "-f", "flv", str(part)],
            check=True,
        )  # fmt: skip
        part.rename(path)
    reader = flv.TagReader(path)
    tags = []
    while more := reader.read():
        tags += more
    reader.close()
    return [tag for tag in tags if tag.kind != flv.SCRIPT]


def repeated(tags: list[flv.Tag], ends_ms: int) -> Iterator[tuple[int, flv.Tag]]:
    """The stream again and again until `ends_ms`: the time of each packet, and its tag. Sound goes on sample by sample, as a
    publisher sends it, so it has a length of its own."""
    packets = sum(tag.kind == flv.AUDIO and tag.is_media for tag in tags)
    lengths_ms = {flv.AUDIO: packets * SAMPLES * 1000 / RATE, flv.VIDEO: LENGTH_S * 1000}

    def of(kind: int) -> Iterator[tuple[int, flv.Tag]]:
        for ahead in itertools.count():
            for tag in tags:
                if tag.kind == kind and not (ahead and tag.is_sequence_header):
                    yield round(tag.timestamp_ms + ahead * lengths_ms[kind]), tag

    both = heapq.merge(of(flv.AUDIO), of(flv.VIDEO), key=lambda each: each[0])
    return itertools.takewhile(lambda each: each[0] < ends_ms, both)


async def serve(tags: list[flv.Tag]) -> None:
    """Serve viewers on an ephemeral port of 127.0.0.1 until standard input ends."""
    packets = [(tag.timestamp_ms / 1000, flv.encode(tag.kind, tag.timestamp_ms, tag.payload)) for tag in tags]

    async def live(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "video/x-flv"})
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            await response.write(flv.header(audio=True, video=True))
            begun_s = time.monotonic()
            for at_s, packet in packets:
                wait_s = begun_s + at_s - time.monotonic()
                if wait_s > 0:
                    await asyncio.sleep(wait_s)
                await response.write(packet)
        return response

    application = web.Application()
    application.router.add_get("/live/{name}", live)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    sys.stdout.write(f"{runner.addresses[0][1]}\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(serve(encoded(Path(sys.argv[1]), *map(int, sys.argv[2:]))))
