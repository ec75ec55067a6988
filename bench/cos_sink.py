"""A COS for measurements: takes parts at a limited rate, keeps their digests, and drops their bytes.

    python -m bench.cos_sink [MB_PER_S]        prints its port, ends with its standard input

Rule: the rate is one for all connections. The CRC-64 of an object is that of its parts.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from xml.etree import ElementTree

import fastcrc
from aiohttp import web

from media import crc64

MB_PER_S = 50.0
_CHUNK_BYTES = 1 << 18


@dataclass
class Part:
    """The digests of a part."""

    size: int
    etag: str
    crc: int


@dataclass
class Sink:
    """The uploads and objects by key."""

    bytes_per_s: float
    uploads: dict[str, dict[int, Part]] = field(default_factory=dict)
    objects: dict[str, tuple[int, int]] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=itertools.count)
    free_s: float = 0.0

    async def answer(self, request: web.Request) -> web.Response:
        """Answer one request of an upload."""
        upload_id, key = request.query.get("uploadId", ""), request.path
        match request.method:
            case "POST" if not upload_id:
                upload_id = f"u{next(self.numbers)}"
                self.uploads[upload_id] = {}
                return _xml(f"<InitiateMultipartUploadResult><UploadId>{upload_id}</UploadId></InitiateMultipartUploadResult>")
            case "PUT":
                part = await self._receive(request)
                self.uploads[upload_id][int(request.query["partNumber"])] = part
                return web.Response(headers={"ETag": f'"{part.etag}"'})
            case "POST":
                found = ElementTree.fromstring(await request.read()).iter("PartNumber")  # noqa: S314 - from this program
                self._complete(key, [self.uploads[upload_id][int(each.text or "")] for each in found])
                return _xml("<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>")
            case "HEAD" if key == "/":
                return web.Response()
            case "HEAD" if key in self.objects:
                size, crc = self.objects[key]
                return web.Response(headers={"Content-Length": str(size), "x-cos-hash-crc64ecma": str(crc)})
            case "GET" if upload_id:
                listed = "".join(
                    f"<Part><PartNumber>{n}</PartNumber><ETag>{part.etag}</ETag><Size>{part.size}</Size></Part>"
                    for n, part in sorted(self.uploads[upload_id].items())
                )
                return _xml(f"<ListPartsResult>{listed}<IsTruncated>false</IsTruncated></ListPartsResult>")
            case "GET":
                return _xml("<ListMultipartUploadsResult></ListMultipartUploadsResult>")
            case "DELETE":
                self.uploads.pop(upload_id, None)
                return web.Response(status=204)
        return web.Response(status=404)

    async def _receive(self, request: web.Request) -> Part:
        md5, crc, size = hashlib.md5(usedforsecurity=False), 0, 0
        async for chunk in request.content.iter_chunked(_CHUNK_BYTES):
            self.free_s = max(self.free_s, time.monotonic()) + len(chunk) / self.bytes_per_s
            md5.update(chunk)
            crc, size = int(fastcrc.crc64.xz(chunk, crc)), size + len(chunk)
            await asyncio.sleep(max(0.0, self.free_s - time.monotonic()))
        return Part(size=size, etag=md5.hexdigest(), crc=crc)

    def _complete(self, key: str, parts: list[Part]) -> None:
        crc = size = 0
        for part in parts:
            crc, size = crc64.combined(crc, part.crc, part.size), size + part.size
        self.objects[key] = size, crc


def _xml(body: str) -> web.Response:
    return web.Response(text=body, content_type="application/xml")


async def serve(mb_per_s: float) -> None:
    """Serve on an ephemeral port of 127.0.0.1 until standard input ends."""
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{tail:.*}", Sink(bytes_per_s=mb_per_s * 1e6).answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(serve(float(sys.argv[1]) if len(sys.argv) > 1 else MB_PER_S))
