"""HTTP-FLV client: reads the tags of one stream over HTTP or HTTPS.

Rules: a redirect leads to the protocols that a pull may use, as in ffmpeg: from http to http, from https to https or http. The
body must be FLV, not compressed. Cookies and proxies are not used. Sizes that the server chooses are bounded.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any
from urllib.parse import urljoin, urlsplit

import aiohttp
import yarl
from aiohttp.abc import AbstractResolver, ResolveResult

from media import ffmpeg_log, flv, pull, rtmp_chunks

_SCHEMES = {"http": ("http",), "https": ("https", "http")}
_MOST_REDIRECTS = 8
_REDIRECTS = (301, 302, 303, 307, 308)
_HEADER_BYTES, _TAG_HEADER_BYTES, _TRAILER_BYTES = 9, 11, 4
_LONGEST_HEADER_BYTES = 4_096
# In all, so that a hostile stream costs little; a stream with more faults is continued by a new connection.
_MOST_SKIPPED_BYTES = 1 << 20
_NO_STREAM_ID = bytes(3)
_NO_HEADER = "a packet of the stream has no FLV header"
_LIMITS = aiohttp.ClientTimeout(total=None, connect=None, sock_read=None)
_HEADERS = {"User-Agent": "recorder", "Accept": "*/*", "Accept-Encoding": "identity"}


class NotFlv(ValueError):
    """The body is no FLV."""


class TagSplitter:
    """Splits a body into tags, in any pieces. Bytes between two tags that are no tag are skipped: some servers lose or repeat a
    part of their stream. Raises NotFlv where the body is no FLV, or where no tag follows for too long."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._held = 0
        self._needed = _HEADER_BYTES
        self._skipping = False
        self._stream_id: bytes | None = None  # of all tags: 0 in the standard
        self.begun = False
        self.skipped_bytes = 0

    def feed(self, data: bytes) -> list[tuple[int, int, bytes]]:
        """The tags that `data` completes: kind, time in ms, payload."""
        self._parts.append(data)
        self._held += len(data)
        if self._held < self._needed:
            return []
        data = b"".join(self._parts) if len(self._parts) > 1 else data
        found: list[tuple[int, int, bytes]] = []
        at = 0
        while (after := self._end_of(data, at)) <= len(data):
            if after < 0:
                at, after = self._skip(data, at)
                if self._skipping:
                    break
                continue
            if self.begun:
                kind, size = data[at] & 0x1F, after - at - flv.TAG_OVERHEAD_BYTES
                if kind in flv.KINDS:
                    payload = data[at + _TAG_HEADER_BYTES : at + _TAG_HEADER_BYTES + size]
                    found.append((kind, data[at + 7] << 24 | int.from_bytes(data[at + 4 : at + 7], "big"), payload))
            self.begun, at = True, after
        self._parts, self._held, self._needed = [data[at:]], len(data) - at, after - at
        return found

    def _end_of(self, data: bytes, at: int) -> int:
        """The end of what begins at `at`, or the least end that it can have; -1 where no tag begins."""
        if not self.begun:
            if len(data) < _HEADER_BYTES:
                return _HEADER_BYTES
            offset = int.from_bytes(data[5:9], "big")
            if data[:3] != b"FLV" or not _HEADER_BYTES <= offset <= _LONGEST_HEADER_BYTES:
                raise NotFlv("the answer is not FLV")
            return offset + _TRAILER_BYTES
        if self._skipping:
            return -1
        if len(data) - at < _TAG_HEADER_BYTES:
            return at + _TAG_HEADER_BYTES
        size, stream_id = int.from_bytes(data[at + 1 : at + 4], "big"), data[at + 8 : at + 11]
        if data[at] & 0x1F not in flv.KINDS or size > rtmp_chunks.LARGEST_MESSAGE_BYTES:
            if self._stream_id is None:
                raise NotFlv(_NO_HEADER)
            return -1
        if self._stream_id not in (None, stream_id):
            return -1
        self._stream_id = stream_id
        return at + size + flv.TAG_OVERHEAD_BYTES

    def _skip(self, data: bytes, at: int) -> tuple[int, int]:
        """Where the next whole tag begins, or the bytes that may still become one; and how many bytes are needed to go on."""
        found, rest = flv.find_tag(data, at if self._skipping else at + 1)
        self._skipping = found is None
        self._stream_id = _NO_STREAM_ID
        begin = rest if found is None else found
        self.skipped_bytes += begin - at
        if self.skipped_bytes > _MOST_SKIPPED_BYTES or (found is None and len(data) - begin > _MOST_SKIPPED_BYTES):
            raise NotFlv(_NO_HEADER)
        return begin, len(data) + 1


class HttpFlvPull:
    """One request for a stream."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._reading = asyncio.Event()
        self._reading.set()

    def pause(self) -> None:
        """Stop reading."""
        self._reading.clear()

    def resume(self) -> None:
        """Continue to read."""
        self._reading.set()

    async def run(self, on_tag: pull.OnTag) -> pull.End:
        """Request the stream and read until the end. Cancellation closes the connection."""
        connector = aiohttp.TCPConnector(resolver=_Resolver(), ssl=_tls(self._address), use_dns_cache=False)
        session = aiohttp.ClientSession(
            connector=connector, timeout=_LIMITS, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False, headers=_HEADERS
        )
        async with session:
            try:
                answer = await _request(session, self._address)
            except aiohttp.ClientConnectorCertificateError as error:
                return pull.unreachable(error.certificate_error)  # type: ignore[arg-type]
            except aiohttp.ClientConnectorError as error:
                return pull.unreachable(error.os_error)
            except OSError as error:  # a server that restarts resets the connection: no reason to change the client
                return pull.unreachable(error)
            except aiohttp.ServerDisconnectedError:
                return pull.End("The server closed the connection before it answered.", ffmpeg_log.Meaning.REFUSED)
            except (aiohttp.ClientError, ValueError) as error:
                return pull.End(f"The server's answer was not understood: {type(error).__name__}.", blame=pull.Blame.CLIENT)
            if isinstance(answer, pull.End):
                return answer
            try:
                return await self._read(answer.content, on_tag)
            finally:
                answer.close()

    async def _read(self, content: aiohttp.StreamReader, on_tag: pull.OnTag) -> pull.End:
        splitter = TagSplitter()
        try:
            while data := await content.readany():
                for kind, timestamp_ms, payload in splitter.feed(data):
                    if payload:
                        on_tag(kind, timestamp_ms, payload)
                if not self._reading.is_set():
                    await self._reading.wait()
        except NotFlv as error:
            return pull.End(f"The stream cannot be read: {error}.", ffmpeg_log.Meaning.NO_TRACK, pull.Blame.CLIENT)
        except (aiohttp.ClientError, OSError):
            return pull.End("The connection broke off.", ffmpeg_log.Meaning.NO_TRACK)
        return pull.End("The server closed the connection.", ffmpeg_log.Meaning.NO_TRACK)


async def _request(session: aiohttp.ClientSession, address: str) -> aiohttp.ClientResponse | pull.End:
    """The answer with the stream. Redirects are followed here, because their protocol counts."""
    for _ in range(_MOST_REDIRECTS):
        answer = await session.get(yarl.URL(address, encoded=True), allow_redirects=False)
        if answer.status not in _REDIRECTS:
            break
        answer.close()
        following = urljoin(address, answer.headers.get("Location", ""))
        if urlsplit(following).scheme not in _SCHEMES[urlsplit(address).scheme.lower()]:
            return pull.End("The server redirects to another protocol; no redirect but to HTTP is followed.")
        address = following
    if answer.status != 200:
        answer.close()
        return pull.refusal(f"HTTP error {answer.status} {answer.reason or ''}"[:200])
    return answer


def _tls(address: str) -> Any:
    return pull.tls() if urlsplit(address).scheme.lower() == "https" else True


class _Resolver(AbstractResolver):
    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in await pull.addresses(host, port)
        ]

    async def close(self) -> None:
        """Do nothing: there is nothing to close."""
