"""Streams from a server that means harm, captured by the real ffmpeg: it opens nothing else, and ends within its limits.

Rule: two witnesses beside the capture's own answer: a listener that nobody may reach, and marked files beside the spool whose
mark may turn up nowhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import ssl
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from machine import errors
from machine.reasons import Reason
from media import capture, ffmpeg_command, flv, resource_limits, segment_scan
from tests import certificates, flv_source, waiting
from tests.flv_source import FFMPEG

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
# What ffmpeg opens if it may: files, whose mark is then in what is recorded, and calls, which then arrive.
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
    """One field that is a number."""
    return struct.pack(">H", len(name)) + name.encode() + b"\x00" + struct.pack(">d", value)


def tag(kind: int, at_ms: int, payload: bytes, *, size: int | None = None) -> bytes:
    """One tag, whose header may lie about its size."""
    made = bytearray(flv.encode(kind, at_ms, payload))
    if size is not None:
        made[1:4] = size.to_bytes(3, "big")
    return bytes(made)


def hostile_bodies() -> dict[str, bytes]:
    """Streams that are no good, by what is wrong with them."""
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
    """Answers each path with what it was given for it, raw; counts what was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.inside = 0
        self._tasks: set[asyncio.Task[None] | None] = set()

    async def start(self) -> None:
        """Two ports: one is the stream server, at the other nobody may arrive."""
        self._outer = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._inner = await asyncio.start_server(self._arrived, "127.0.0.1", 0)
        self.port, self.inside_port = (s.sockets[0].getsockname()[1] for s in (self._outer, self._inner))

    async def stop(self) -> None:
        """End what is under way."""
        for server in (self._outer, self._inner):
            server.close()
        for task in filter(None, self._tasks):
            task.cancel()
        await asyncio.gather(*filter(None, self._tasks), return_exceptions=True)

    def put(self, path: str, body: bytes, *, status: str = "200 OK", headers: str = "Content-Type: video/x-flv") -> str:
        """Answer `path` like this; returns the address."""
        # ffmpeg obeys no script that ends before its time
        told = f"{headers}\r\nContent-Length: {len(body)}\r\nConnection: close"
        self.answers[path] = f"HTTP/1.1 {status}\r\n{told}\r\n\r\n".encode() + body
        return f"http://127.0.0.1:{self.port}{path}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.current_task())
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            path = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
            self.asked.append(path)
            writer.write(self.answers.get(path, b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n"))
            await writer.drain()
        writer.transport.abort() if not writer.can_write_eof() else writer.close()

    async def _arrived(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.inside += 1
        writer.close()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file that nobody may read: an FLV whose packets bear a mark."""
    packets = [flv_source.configuration(flv.AUDIO, flv_source.AAC_HEADER), *(flv_source.sound(n * 23, MARK) for n in range(200))]
    return flv_source.write(tmp_path / "secret.flv", packets, video=False)


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    """Where the captures write."""
    made = tmp_path / "spool"
    made.mkdir()
    return made


async def run(address: str, folder: Path, name: str) -> capture.CaptureExit:
    """One capture to its end."""
    spec = capture.CaptureSpec(address=address, path=folder / f"{name}.flv", mode="02", stall_after_s=3, first_media_s=4)
    running = capture.Capture(spec, ffmpeg=FFMPEG)
    await running.start()
    return await asyncio.wait_for(running.wait(), waiting.limit_s(60))


def listing(folder: Path) -> dict[str, int]:
    """Every file below, with its size."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def marked(folder: Path) -> list[Path]:
    """The files that bear the mark."""
    return [path for path in folder.iterdir() if MARK in path.read_bytes()]


async def in_turn(addresses: list[str], folder: Path) -> list[capture.CaptureExit]:
    """All captures, four at a time, in `folder`."""
    gate = asyncio.Semaphore(4)

    async def one(number: int, address: str) -> capture.CaptureExit:
        async with gate:
            return await run(address, folder, f"{number:08d}")

    return list(await asyncio.gather(*(one(number, address) for number, address in enumerate(addresses))))


def lift(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on captures may speak every protocol and read every format: what is refused still, ffmpeg refuses by itself."""
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
    """302 to files, pipes, scripts and other protocols: nothing is opened, nothing arrives, nothing is recorded. Of these ffmpeg
    refuses all but one by itself, as the control shows: without our list of protocols, the redirect to HTTPS is followed."""
    before = listing(tmp_path)
    addresses = []
    for number, target in enumerate(REDIRECTS):
        location = target.format(secret=secret, inside=server.inside_port)
        addresses.append(server.put(f"/{number}.flv", b"", status="302 Found", headers=f"Location: {location}"))
    addresses.append(server.put("/control.flv", b"", status="302 Found", headers="Location: /stream.flv"))
    server.put("/stream.flv", flv_source.write(spool / "stream", flv_source.content()).read_bytes())
    *ended, control = await in_turn(addresses, spool)
    assert control.progress.media_ms > 5_000, "a redirect to a stream is followed, so these were"
    assert {one.progress.media_ms for one in ended} == {0}
    assert server.inside == 0
    assert [name for name in listing(tmp_path) if name not in before and not name.startswith("spool/")] == []
    assert marked(spool) == []
    lift(monkeypatch)
    https = REDIRECTS.index(HTTPS)
    await in_turn([address for number, address in enumerate(addresses[:-1]) if number != https], spool)
    assert (server.inside, marked(spool)) == (0, [])
    await run(addresses[https], spool, "https")
    assert server.inside == 1


async def test_only_the_protocols_of_a_pull_are_spoken(
    server: Server, secret: Path, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever an address comes from, the script itself included: no file is opened, and nobody is called by a protocol that a
    pull has no need of. Without our list of protocols ffmpeg would open every one of these."""
    named = ffmpeg_command.capture_script
    place = "http://place.invalid/"

    def unchecked(address: str, *, timeout_s: float) -> bytes:
        return named(place, timeout_s=timeout_s).replace(
            ffmpeg_command._quoted(place.encode()), ffmpeg_command._quoted(address.encode())
        )

    monkeypatch.setattr(ffmpeg_command, "capture_script", unchecked)
    files = [target.format(secret=secret) for target in OPENED_FILES]
    calls = [target.format(inside=server.inside_port) for target in OPENED_CALLS]
    ended = await in_turn([*files, *calls], spool)
    assert {one.progress.media_ms for one in ended} == {0}
    assert (server.inside, marked(spool)) == (0, [])
    lift(monkeypatch)
    for number, address in enumerate(files):
        await run(address, spool, f"lifted-{number}")
    assert [path.stem for path in sorted(marked(spool))] == [f"lifted-{number}" for number in range(len(files))]
    for address in calls:
        called = server.inside
        await run(address, spool, "call")
        assert server.inside > called, address


async def test_no_script_of_a_server_is_obeyed(
    server: Server, secret: Path, tmp_path: Path, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that is a script or a playlist, whatever its type says, is no stream: what it names is not opened, not even
    on its own server. Without our list of formats, ffmpeg opens what the first script names; the others it does not take."""
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
    ended = await in_turn(addresses, spool)
    assert {one.progress.media_ms for one in ended} == {0}
    assert server.inside == 0
    assert sorted(server.asked) == sorted(f"/{n}.flv" for n in range(len(bodies)))
    assert marked(spool) == []
    lift(monkeypatch)
    server.asked.clear()
    await in_turn(addresses, spool)
    assert sorted(server.asked) == sorted(["/next.flv", *(f"/{n}.flv" for n in range(len(bodies)))])
    assert (server.inside, marked(spool)) == (0, [])


async def test_no_stream_harms_the_service(server: Server, spool: Path) -> None:
    """Malformed, lying and exploding streams each end by themselves or by the watch, and the event loop goes on turning."""
    longest_s, looked_s = 0.0, asyncio.get_running_loop().time()
    done = asyncio.Event()

    async def turn() -> None:
        nonlocal longest_s, looked_s
        while not done.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(done.wait(), 0.01)
            now_s = asyncio.get_running_loop().time()
            longest_s, looked_s = max(longest_s, now_s - looked_s), now_s

    turning = asyncio.create_task(turn())
    bodies = hostile_bodies()
    ended = await in_turn([server.put(f"/{n}.flv", body) for n, body in enumerate(bodies.values())], spool)
    done.set()
    await turning
    assert longest_s < waiting.limit_s(2)
    assert {one.reason for one in ended} <= {Reason.EOF, Reason.ERROR, Reason.NO_MEDIA, Reason.STALLED, Reason.NEW_TRACK}
    assert sum(listing(spool).values()) < 64 << 20


HOSTILE_TEXTS = [
    "'", "''", "'\\''", "\\", "\\'", '"', "$(id)", "`id`", ";id", "|id", "&id", ">x", "<x", "*", "?", "[a]", "{a,b}", "~", "#",
    "%", "%00", "%0a", "-i", "--", "-f", "=", ":", ",", "[in]", "@", "!", "é", "房间", "\u202e", "\U0001f3a4", "'option'safe'0",
    "file:x", "../../x", "x" * 4096,
]  # fmt: skip
ENDS_OF_A_LINE = [
    "\n",
    "\r",
    "\nfile '/etc/passwd'",
    "\r\noption safe 0",
    "\x00",
    "\x0b",
    "\x0c",
    "\x1b",
    " ",
    "\t",
    "' option safe 0",
]


def test_an_address_is_one_word_of_the_script() -> None:
    """Read back as ffmpeg reads it, the script names this address and four options, whatever stands in the address; what could
    end a line or a word has no place in an address and is refused."""
    for text in HOSTILE_TEXTS:
        address = f"http://127.0.0.1/{text}?a={text}"
        lines = ffmpeg_command.capture_script(address, timeout_s=20).decode().split("\n")
        assert [line.split(" ")[0] for line in lines] == ["ffconcat", "file", *["option"] * 4, ""]
        assert word(lines[1].removeprefix("file ")) == address
        options = [line.split()[1] for line in lines[2:-1]]
        assert sorted(options) == ["analyzeduration", "format_whitelist", "protocol_whitelist", "rw_timeout"]
    for text in ENDS_OF_A_LINE:
        with pytest.raises(errors.InvalidParameter):
            ffmpeg_command.capture_script(f"http://127.0.0.1/{text}", timeout_s=20)
    for scheme in ("file", "concat", "data", "pipe", "subfile", "tcp", "rtsp", "gopher", "ffconcat", ""):
        with pytest.raises(errors.InvalidParameter):
            ffmpeg_command.capture_script(f"{scheme}://127.0.0.1/a", timeout_s=20)


def word(text: str) -> str:
    """One word as ffmpeg's av_get_token reads it: quotes take everything, a backslash outside of them the next character."""
    found, quoted, at = "", False, 0
    while at < len(text):
        if text[at] == "'":
            quoted = not quoted
        elif text[at] == "\\" and not quoted:
            at += 1
            found += text[at]
        else:
            assert quoted or not text[at].isspace()
            found += text[at]
        at += 1
    assert not quoted
    return found


def test_a_path_is_one_argument(tmp_path: Path) -> None:
    """No path begins with a hyphen, because it is whole from the root, and it stands once and by itself."""
    for name in ("-i", "%d.flv", "a b", "房间", "'", "$(id)", "a,b:c=d", "[x]"):
        argv = ffmpeg_command.capture_args(FFMPEG, 7, tmp_path / name, "02")
        assert argv.count(str(tmp_path / name)) == 1
        assert str(tmp_path / name).startswith("/")
        following = dict(itertools.pairwise(argv))
        assert following["-format_whitelist"] == "concat,flv"
        assert {*following["-protocol_whitelist"].split(",")} == {"file", "http", "https", "rtmp", "rtmps", "tcp", "tls"}


async def tls_reaches(scheme: str, host: str, made: certificates.Certificates, spool: Path) -> bool:
    """Whether a pull by TLS says anything to the server of these certificates: with its first word it would say the UserSig."""
    heard = asyncio.Event()

    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            if await reader.read(1):
                heard.set()
        writer.transport.abort()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.certificate, made.key)
    server = await asyncio.start_server(hear, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    await run(f"{scheme}://{host}:{port}/pull/room?usersig=x", spool, f"{port:08d}")
    server.close()
    return heard.is_set()


@pytest.mark.parametrize("scheme", ["https", "rtmps"])
async def test_a_server_that_is_another_hears_nothing(
    scheme: str, tmp_path: Path, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By TLS, a pull talks to a server whose certificate is signed by an authority that counts, for the name that was asked for,
    and says nothing to any other."""
    made = certificates.make(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(made.authority))
    assert await tls_reaches(scheme, "127.0.0.1", made, spool)
    assert not await tls_reaches(scheme, "localhost", made, spool)
    monkeypatch.setenv("SSL_CERT_FILE", str(made.stranger))
    assert not await tls_reaches(scheme, "127.0.0.1", made, spool)
    monkeypatch.delenv("SSL_CERT_FILE")
    assert not await tls_reaches(scheme, "127.0.0.1", made, spool)


async def test_a_segment_that_grows_too_large_ends_whole(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At its limit a segment ends with what it holds, for a reason that begins the next one, and not as a full disk."""
    monkeypatch.setattr(capture.limits, "CAPTURE", resource_limits.Limits(memory_bytes=2 << 30, file_bytes=20_000))
    source = flv_source.LiveSource()
    await source.start()
    source.streams["anna"] = flv_source.Stream(tags=flv_source.content(), ahead_ms=60_000)
    ended = await run(source.address("anna"), spool, "a")
    await source.stop()
    assert ended.reason == Reason.ERROR
    assert ended.progress.media_ms > 1_000
    assert ended.progress.size_bytes == 20_000
    assert segment_scan.scan(spool / "a.flv", "02").media_ms == ended.progress.media_ms
