"""Hostile streams: the real ffmpeg captures from a malicious server, opens nothing else, and ends within its limits.

Rule: besides the capture's own outcome there are two kinds of evidence: a listener that must get no connection, and a marked file
outside the spool whose mark must appear in no capture.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from machine import capture_progress
from machine.reasons import Reason
from media import ffmpeg_command, flv, resource_limits, segment_scan
from tests import flv_source, waiting
from tests.security import capture_runner

MARK = b"MARK-OF-A-FILE-THAT-IS-NOBODYS-BUSINESS"
HTTPS = "https://127.0.0.1:{inside}/x"
REDIRECTS = (
    "file://{secret}", "{secret}", "ffconcat:{secret}", "concat:{secret}|{secret}", "subfile,,start,0,end,9,,:{secret}",
    "data:video/x-flv;base64,RkxWAQ==", "crypto:file:{secret}", "cache:file:{secret}", "async:file:{secret}", "tee:{secret}",
    "pipe:0", "fd:0", "unix:{secret}", "tcp://127.0.0.1:{inside}", "udp://127.0.0.1:{inside}", "tls://127.0.0.1:{inside}",
    "rtmp://127.0.0.1:{inside}/a/b", "rtsp://127.0.0.1:{inside}/a", "gopher://127.0.0.1:{inside}/_x",
    "ftp://127.0.0.1:{inside}/x", "mmsh://127.0.0.1:{inside}/x", "icecast://127.0.0.1:{inside}/x",
    "httpproxy://127.0.0.1:{inside}/x", "lavfi:testsrc", HTTPS,
)  # fmt: skip
# Addresses that ffmpeg opens if it may: files, whose mark then appears in the capture, and calls, which then reach the listener.
OPENED_FILES = ("file://{secret}", "{secret}", "concat:{secret}|{secret}", "cache:file:{secret}", "async:file:{secret}")
OPENED_CALLS = (
    HTTPS, "tls://127.0.0.1:{inside}", "rtmp://127.0.0.1:{inside}/a/b", "gopher://127.0.0.1:{inside}/_x",
    "ftp://127.0.0.1:{inside}/x", "mmsh://127.0.0.1:{inside}/x", "httpproxy://127.0.0.1:{inside}/x",
)  # fmt: skip
PROTOCOLS = (
    "file,http,https,tcp,tls,udp,rtmp,rtmps,rtsp,gopher,ftp,mmsh,icecast,httpproxy,concat,concatf,subfile,data,crypto,cache,async,"
    "tee,pipe,fd,unix"
)
FORMATS = "concat,hls,dash,sdp,rtp,rtsp,flv"


def amf_bomb(depth: int) -> bytes:
    """onMetaData whose value is objects within objects."""
    return b"\x02" + struct.pack(">H", 10) + b"onMetaData" + (b"\x03\x00\x01a") * depth


def metadata(*fields: bytes) -> bytes:
    """onMetaData with these raw fields."""
    return b"\x02\x00\x0aonMetaData\x08" + struct.pack(">I", len(fields)) + b"".join(fields) + b"\x00\x00\x09"


def number(name: str, value: float) -> bytes:
    """One numeric field."""
    return struct.pack(">H", len(name)) + name.encode() + b"\x00" + struct.pack(">d", value)


def tag(kind: int, at_ms: int, payload: bytes, *, size: int | None = None) -> bytes:
    """One tag; `size` replaces the true size in its header."""
    made = bytearray(flv.encode(kind, at_ms, payload))
    if size is not None:
        made[1:4] = size.to_bytes(3, "big")
    return bytes(made)


def hostile_bodies() -> dict[str, bytes]:
    """Malformed streams, by their fault."""
    head = flv.header(audio=True, video=True)
    both = [
        tag(flv.VIDEO, 0, flv_source.AVC_HEADER),
        tag(flv.AUDIO, 0, flv_source.AAC_HEADER),
    ]
    chance = random.Random(20_261_123)
    wild = b"".join(
        tag(
            chance.choice((8, 9, 18)),
            chance.randrange(1 << 32),
            chance.choice((b"\xaf\x01", b"\x17\x01\0\0\0", b"")) + chance.randbytes(9),
        )
        for _ in range(20_000)
    )
    numbers = metadata(number("width", 1e308), number("height", -1), number("duration", float("nan")), number("filesize", 1e18))
    frame = b"\x17\x01\0\0\0"
    lies = (tag(flv.VIDEO, n, frame + b"x", size=0xFFFFFF) for n in range(1000))
    changes = (
        tag(flv.VIDEO, n, flv_source.AVC_HEADER + n.to_bytes(4, "big")) + tag(flv.VIDEO, n, frame + b"x") for n in range(5000)
    )
    return {
        "nothing": b"",
        "noise": chance.randbytes(1 << 20),
        "a header that says it is 4 GB long": b"FLV\x01\x05\xff\xff\xff\xff" + bytes(1 << 16),
        "objects 300,000 deep": head + tag(flv.SCRIPT, 0, amf_bomb(300_000)),
        "an array of 4 billion": head + tag(flv.SCRIPT, 0, b"\x02\x00\x0aonMetaData\x0a\xff\xff\xff\xff"),
        "numbers that are none": head + tag(flv.SCRIPT, 0, numbers),
        "sizes that lie": head + b"".join(lies),
        "timestamps without order": head + b"".join(both) + wild,
        "a picture of 65536 × 65536": head + tag(flv.VIDEO, 0, huge_picture()) + tag(flv.VIDEO, 0, frame + bytes(64)) * 99,
        "a new configuration each packet": head + b"".join(changes),
    }


def huge_picture() -> bytes:
    """An AVC sequence header that states 65536 × 65536 pixels."""
    bits = "01100111" + "01000010" + "11000000" + "00110011" + "1" + "1" + "1" + "1" + "011" + "0"
    side = "0" * 12 + format(4096, "b")
    bits += side + side + "1" + "1" + "0" + "0" + "1"
    unit = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
    record = b"\x01\x42\xc0\x33\xff\xe1" + len(unit).to_bytes(2, "big") + unit + b"\x01\x00\x04\x68\xce\x0f\xc8"
    return b"\x17\x00\x00\x00\x00" + record


class Server:
    """A server with a raw response for each path; it records the requested paths."""

    def __init__(self) -> None:
        self.answers: dict[str, bytes] = {}
        self.requested: list[str] = []
        self.inner_connections = 0
        self._tasks: set[asyncio.Task[None] | None] = set()

    async def start(self) -> None:
        """Listen on two ports: one is the stream server, the inner one must get no connection."""
        self._outer = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._inner = await asyncio.start_server(self._arrived, "127.0.0.1", 0)
        self.port, self.inside_port = (s.sockets[0].getsockname()[1] for s in (self._outer, self._inner))

    async def stop(self) -> None:
        """End all connections."""
        for server in (self._outer, self._inner):
            server.close()
        for task in filter(None, self._tasks):
            task.cancel()
        await asyncio.gather(*filter(None, self._tasks), return_exceptions=True)

    def put(self, path: str, body: bytes, *, status: str = "200 OK", headers: str = "Content-Type: video/x-flv") -> str:
        """Set the response of `path`; returns its address."""
        # ffmpeg ignores a script that is shorter than announced.
        fields = f"{headers}\r\nContent-Length: {len(body)}\r\nConnection: close"
        self.answers[path] = f"HTTP/1.1 {status}\r\n{fields}\r\n\r\n".encode() + body
        return f"http://127.0.0.1:{self.port}{path}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.current_task())
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            path = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
            self.requested.append(path)
            writer.write(self.answers.get(path, b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n"))
            await writer.drain()
        writer.transport.abort() if not writer.can_write_eof() else writer.close()

    async def _arrived(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.inner_connections += 1
        writer.close()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file that no capture may read: an FLV whose packets contain a mark."""
    packets = [flv_source.configuration(flv.AUDIO, flv_source.AAC_HEADER), *(flv_source.sound(n * 23, MARK) for n in range(200))]
    return flv_source.write(tmp_path / "secret.flv", packets, video=False)


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    """The folder of the captures."""
    made = tmp_path / "spool"
    made.mkdir()
    return made


def listing(folder: Path) -> dict[str, int]:
    """Every file below the folder, with its size."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def marked(folder: Path) -> list[Path]:
    """The files that contain the mark."""
    return [path for path in folder.iterdir() if MARK in path.read_bytes()]


async def run_all(addresses: list[str], folder: Path, engine: str = "ffmpeg") -> list[capture_progress.CaptureExit]:
    """Run all captures into `folder`, four at a time."""
    gate = asyncio.Semaphore(4)

    async def one(number: int, address: str) -> capture_progress.CaptureExit:
        async with gate:
            return await capture_runner.run(address, folder, f"{number:08d}", engine)

    return list(await asyncio.gather(*(one(number, address) for number, address in enumerate(addresses))))


def allow_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow every protocol and format to captures from now on; ffmpeg's own refusals remain."""
    script, args = ffmpeg_command.capture_script, ffmpeg_command.capture_args

    def any_format(address: str, *, timeout_s: float) -> bytes:
        ours, lifted = b"option format_whitelist flv\n", f"option format_whitelist {FORMATS}\n".encode()
        made = script(address, timeout_s=timeout_s)
        assert ours in made
        return made.replace(ours, lifted)

    def any_argument(*given: Any) -> list[str]:
        made = args(*given)
        assert "concat,flv" in made
        return [FORMATS if word == "concat,flv" else word for word in made]

    for scheme in list(ffmpeg_command._PROTOCOLS):
        monkeypatch.setitem(ffmpeg_command._PROTOCOLS, scheme, PROTOCOLS)
    monkeypatch.setattr(ffmpeg_command, "capture_script", any_format)
    monkeypatch.setattr(ffmpeg_command, "capture_args", any_argument)


async def test_no_redirect_leads_to_another_protocol(
    server: Server, secret: Path, tmp_path: Path, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A redirect to files, pipes, scripts or other protocols opens, calls and records nothing; with every protocol allowed, as a
    control, ffmpeg follows the one to HTTPS and refuses the others by itself."""
    before = listing(tmp_path)
    addresses = []
    for number, target in enumerate(REDIRECTS):
        location = target.format(secret=secret, inside=server.inside_port)
        addresses.append(server.put(f"/{number}.flv", b"", status="302 Found", headers=f"Location: {location}"))
    addresses.append(server.put("/control.flv", b"", status="302 Found", headers="Location: /stream.flv"))
    server.put("/stream.flv", flv_source.write(spool / "stream", flv_source.content()).read_bytes())
    *ended, control = await run_all(addresses, spool)
    assert control.progress.media_ms > 5_000, "a redirect to a stream is followed, so these were"
    assert {one.progress.media_ms for one in ended} == {0}
    assert server.inner_connections == 0
    assert [name for name in listing(tmp_path) if name not in before and not name.startswith("spool/")] == []
    assert marked(spool) == []
    allow_everything(monkeypatch)
    https = REDIRECTS.index(HTTPS)
    await run_all([address for number, address in enumerate(addresses[:-1]) if number != https], spool)
    assert (server.inner_connections, marked(spool)) == (0, [])
    await capture_runner.run(addresses[https], spool, "https")
    assert server.inner_connections == 1


async def test_only_the_protocols_of_a_pull_are_used(
    server: Server, secret: Path, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even an unchecked address in the script opens no file and makes no call by a protocol that a pull does not need; with every
    protocol allowed, as a control, ffmpeg opens each of them."""
    named = ffmpeg_command.capture_script
    place = "http://place.invalid/"

    def unchecked(address: str, *, timeout_s: float) -> bytes:
        return named(place, timeout_s=timeout_s).replace(
            ffmpeg_command._quoted(place.encode()), ffmpeg_command._quoted(address.encode())
        )

    monkeypatch.setattr(ffmpeg_command, "capture_script", unchecked)
    files = [target.format(secret=secret) for target in OPENED_FILES]
    calls = [target.format(inside=server.inside_port) for target in OPENED_CALLS]
    ended = await run_all([*files, *calls], spool)
    assert {one.progress.media_ms for one in ended} == {0}
    assert (server.inner_connections, marked(spool)) == (0, [])
    allow_everything(monkeypatch)
    for number, address in enumerate(files):
        await capture_runner.run(address, spool, f"lifted-{number}")
    assert [path.stem for path in sorted(marked(spool))] == [f"lifted-{number}" for number in range(len(files))]
    for address in calls:
        called = server.inner_connections
        await capture_runner.run(address, spool, "call")
        assert server.inner_connections > called, address


async def test_no_script_of_a_server_is_obeyed(
    server: Server, secret: Path, tmp_path: Path, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script or playlist as a response, whatever its content type, opens nothing that it names; with every format allowed, as a
    control, ffmpeg opens the file of the first script."""
    inside = f"http://127.0.0.1:{server.inside_port}/x.flv"
    bodies = [
        "ffconcat version 1.0\nfile next.flv\n",
        f"ffconcat version 1.0\nfile '{secret}'\n",
        f"ffconcat version 1.0\nfile '{secret}'\noption protocol_whitelist file,http,tcp\noption safe 0\n",
        f"ffconcat version 1.0\nfile {inside}\n",
        f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nnext.flv\n#EXTINF:9,\n{inside}\n#EXTINF:9,\nfile://{secret}\n#EXT-X-ENDLIST\n",
        f'<?xml version="1.0"?><MPD><Period><BaseURL>{inside}</BaseURL></Period></MPD>',
        f"[playlist]\nFile1={inside}\n",
        f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio {server.inside_port} RTP/AVP 0\n",
    ]
    addresses = [server.put(f"/{n}.flv", body.encode(), headers="Content-Type: text/plain") for n, body in enumerate(bodies)]
    ended = await run_all(addresses, spool)
    assert {one.progress.media_ms for one in ended} == {0}
    assert server.inner_connections == 0
    assert sorted(server.requested) == sorted(f"/{n}.flv" for n in range(len(bodies)))
    assert marked(spool) == []
    allow_everything(monkeypatch)
    server.requested.clear()
    await run_all(addresses, spool)
    assert sorted(server.requested) == sorted(["/next.flv", *(f"/{n}.flv" for n in range(len(bodies)))])
    assert (server.inner_connections, marked(spool)) == (0, [])


@pytest.mark.parametrize("engine", ["ffmpeg", "native"])
async def test_no_stream_harms_the_service(server: Server, spool: Path, engine: str) -> None:
    """Malformed, lying and exploding streams each end by themselves or by the monitor, and the event loop stays responsive."""
    longest_s, seen_s = 0.0, asyncio.get_running_loop().time()
    done = asyncio.Event()

    async def turn() -> None:
        nonlocal longest_s, seen_s
        while not done.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(done.wait(), 0.01)
            now_s = asyncio.get_running_loop().time()
            longest_s, seen_s = max(longest_s, now_s - seen_s), now_s

    turning = asyncio.create_task(turn())
    bodies = hostile_bodies()
    ended = await run_all([server.put(f"/{n}.flv", body) for n, body in enumerate(bodies.values())], spool, engine)
    done.set()
    await turning
    assert longest_s < waiting.limit_s(2)
    assert {one.reason for one in ended} <= {Reason.EOF, Reason.ERROR, Reason.NO_MEDIA, Reason.STALLED, Reason.NEW_TRACK}
    assert sum(listing(spool).values()) < 64 << 20


async def test_a_segment_at_its_size_limit_stays_readable(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment at its size limit ends with readable media and a reason that starts the next segment, not with a full disk."""
    monkeypatch.setattr(resource_limits, "CAPTURE", resource_limits.Limits(memory_bytes=2 << 30, file_bytes=20_000))
    source = flv_source.LiveSource()
    await source.start()
    source.streams["anna"] = flv_source.Stream(tags=flv_source.content(), ahead_ms=60_000)
    ended = await capture_runner.run(source.address("anna"), spool, "a")
    await source.stop()
    assert ended.reason == Reason.ERROR
    assert ended.progress.media_ms > 1_000
    assert ended.progress.size_bytes == 20_000
    assert segment_scan.scan(spool / "a.flv", "02").media_ms == ended.progress.media_ms
