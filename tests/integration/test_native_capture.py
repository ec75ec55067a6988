"""Native capture by RTMP, from a scripted server that writes the wire as different servers do."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from machine import capture_progress
from machine.reasons import Reason
from media import (
    arrival_index,
    capture,
    capture_engines,
    ffmpeg_capture,
    flv,
    native_capture,
    rtmp_client,
    segment_scan,
    segment_writer,
)
from tests import flv_source, rtmp_server, waiting
from tests.flv_source import LiveSource, Stream
from tests.rtmp_server import Script

LARGE = flv_source.picture(80, key=True, payload=os.urandom(70_000))
TAGS = (
    flv_source.configuration(flv.AUDIO, flv_source.AAC_HEADER),
    flv_source.configuration(flv.VIDEO, flv_source.AVC_HEADER),
    flv_source.picture(0, key=True, payload=b"\x00\x00\x00\x01\x65" * 300),
    *(flv_source.sound(n * 23, os.urandom(200)) for n in range(4)),
    LARGE,
    flv_source.sound(92),
    flv_source.picture(120, payload=os.urandom(4_096)),
)


@pytest.fixture
async def source() -> AsyncIterator[LiveSource]:
    live = LiveSource()
    await live.start()
    yield live
    await live.stop()


async def _run(address: str, path: Path, mode: str = "02", **limits: float) -> capture_progress.CaptureExit:
    spec = capture.CaptureSpec(address=address, path=path, mode=mode, **limits)
    running = native_capture.NativeCapture(spec)
    await running.start()
    return await asyncio.wait_for(running.wait(), waiting.limit_s(20))


def _written(path: Path) -> list[tuple[int, int, bytes]]:
    return [(tag.kind, tag.timestamp_ms, tag.payload) for tag in flv_source.read(path)]


def _sent(script: Script) -> list[tuple[int, int, bytes]]:
    return [(tag.kind, tag.timestamp_ms, tag.payload) for tag in script.tags]


@pytest.mark.parametrize(
    "script",
    [
        *(Script(chunk_bytes=size) for size in (128, 129, 4_096, 65_536)),
        Script(deltas=True),
        Script(aggregate=3),
        Script(chunk_bytes=128, deltas=True, aggregate=4),
        Script(ping=True),
        Script(then="eof"),
        Script(then="NetStream.Play.Stop"),
        Script(then=""),
    ],
    ids=str,
)
@pytest.mark.parametrize("from_ms", [0, 0xFFFFFF - 60, 0x1234567, 0xFFFFFFFF - 60], ids=hex)
async def test_every_tag_is_written_as_it_came(script: Script, from_ms: int, tmp_path: Path) -> None:
    """Chunk sizes, deltas, aggregates, pings and large timestamps change no tag, and each kind of end is "eof"."""
    script = rtmp_server.shifted(replace(script, tags=TAGS, heard=[]), from_ms)
    async with rtmp_server.serving(script) as server:
        ended = await _run(server.address(), tmp_path / "a.flv")
    assert (ended.reason, _written(tmp_path / "a.flv")) == (Reason.EOF, _sent(script))
    assert ended.progress.media_ms == segment_scan.scan(tmp_path / "a.flv", "02").media_ms
    names = b"".join(body for _, body in script.heard)
    assert b"pull" in names
    assert b"42?userid=recorder&usersig=SECRET-SIGNATURE" in names


@pytest.mark.parametrize("chunk_bytes", [128, 4_096])
async def test_a_server_that_omits_extended_timestamps_is_understood(chunk_bytes: int, tmp_path: Path) -> None:
    """Continuation chunks may lack the extended timestamp that others repeat; the first one shows it."""
    script = rtmp_server.shifted(Script(tags=TAGS, chunk_bytes=chunk_bytes, extended_everywhere=False), 0x2000000)
    async with rtmp_server.serving(script) as server:
        ended = await _run(server.address(), tmp_path / "a.flv")
    assert (ended.reason, _written(tmp_path / "a.flv")) == (Reason.EOF, _sent(script))


async def test_arrivals_belong_to_the_tags(source: LiveSource, tmp_path: Path) -> None:
    """The index has one record for each tag, with its offset and size, and its arrivals are those of the stream."""
    stream = source.streams["anna"] = Stream(tags=flv_source.between(flv_source.content(), 0, 2_000))
    await _run(source.address("anna"), tmp_path / "a.flv")
    records = list(arrival_index.read(tmp_path / "a.flv"))
    data = (tmp_path / "a.flv").read_bytes()
    assert [data[each.offset] for each in records] == [each.kind for each in records]
    assert records[-1].offset + records[-1].size + flv.TAG_OVERHEAD_BYTES == len(data)
    media = [each for each in records if each.size > 50]
    assert media[0].arrival_ms == pytest.approx(stream.first_sent * 1000, abs=100)
    assert records[-1].arrival_ms == pytest.approx(stream.last_sent * 1000, abs=100)
    arrivals = [each.arrival_ms for each in records]
    assert arrivals == sorted(arrivals)


async def test_late_tracks_other_codecs_and_jumps_end_nothing(tmp_path: Path) -> None:
    """A track that begins late, a codec that changes, a picture header without a picture and a clock that jumps are all written,
    and the header of the file declares the tracks that came."""
    tags = (
        flv_source.configuration(flv.AUDIO, flv_source.AAC_HEADER),
        flv_source.sound(0),
        flv_source.sound(90_000),
        flv_source.configuration(flv.VIDEO, flv_source.AVC_HEADER),
        flv_source.sound(5),
        flv.Tag(kind=flv.VIDEO, timestamp_ms=10, payload=b"\x90hvc1\x01\x02"),
        flv.Tag(kind=flv.VIDEO, timestamp_ms=20, payload=b"\x9fxxxx\x01"),
        flv.Tag(kind=flv.AUDIO, timestamp_ms=30, payload=b"\x2f\xff\xfb"),
    )
    async with rtmp_server.serving(Script(tags=tags)) as server:
        ended = await _run(server.address(), tmp_path / "a.flv")
    assert (ended.reason, _written(tmp_path / "a.flv")) == (Reason.EOF, _sent(Script(tags=tags)))
    assert (tmp_path / "a.flv").read_bytes()[:5] == b"FLV\x01\x05"


@pytest.mark.parametrize(
    ("mode", "payload", "codec"),
    [("00", b"\xdf\x01\xfc\x01\x02", "audio codec 13"), ("01", b"\x1f\x01\x00\x00\x00\x01", "video codec 15")],
)
async def test_a_stream_that_no_one_can_read_names_its_codec(tmp_path: Path, mode: str, payload: bytes, codec: str) -> None:
    """The recording fails for lack of media: its reason is the codec, and not only that the stream ended."""
    kind = flv.AUDIO if mode == "00" else flv.VIDEO
    tags = tuple(flv.Tag(kind=kind, timestamp_ms=at_ms, payload=payload) for at_ms in range(0, 200, 20))
    async with rtmp_server.serving(Script(tags=tags)) as server:
        ended = await _run(server.address(), tmp_path / "a.flv", mode)
    assert (ended.reason, ended.progress.media_ms) == (Reason.EOF, 0)
    assert codec in ended.detail


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (Script(refusal="no such stream"), Reason.REFUSED),
        (Script(refusal="usersig expired"), Reason.REFUSED_FOR_GOOD),
        (Script(connect_refusal="application has no package"), Reason.REFUSED_FOR_GOOD),
        (Script(connect_refusal="try again"), Reason.REFUSED),
        (Script(then=""), Reason.ERROR),
    ],
    ids=str,
)
async def test_refusals_have_the_reasons_of_ffmpeg(script: Script, reason: Reason, tmp_path: Path) -> None:
    """A status decides whether a retry may help, no file is left, and ffmpeg is not tried in the native reader's place."""
    misunderstood: list[bool] = []
    async with rtmp_server.serving(script) as server:
        spec = capture.CaptureSpec(address=server.address(), path=tmp_path / "a.flv", mode="02")
        running = native_capture.NativeCapture(spec, on_misunderstood=misunderstood.append)
        await running.start()
        ended = await asyncio.wait_for(running.wait(), waiting.limit_s(20))
    assert (ended.reason, misunderstood, os.listdir(tmp_path)) == (reason, [], [])


@pytest.mark.parametrize(
    "script",
    [
        Script(handshake=b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        Script(handshake=b"\x03" + bytes(3_072)),
        Script(raw=struct.pack(">B3s3sB4s", 2, bytes(3), b"\x00\x00\x04", 1, bytes(4)) + b"\x00\x00\x00\x01"),
        Script(raw=b"\x04" + bytes(3) + b"\xff\xff\xff\x09" + bytes(4)),
        Script(raw=b"".join(b"\x00" + bytes((n,)) + bytes(3) + b"\x00\x00\x00\x09" + bytes(4) for n in range(80))),
    ],
    ids=["http", "no echo", "chunk size 1", "16 MB message", "80 chunk streams"],
)
async def test_a_server_that_is_not_understood_gets_ffmpeg(script: Script, tmp_path: Path) -> None:
    """A fault of the protocol before media is an error, and the next segment of that recording is captured by ffmpeg."""
    engines = capture_engines.CaptureEngines("native", ffmpeg=flv_source.FFMPEG, clock=capture.unix_ms)
    async with rtmp_server.serving(script) as server:
        spec = capture.CaptureSpec(address=server.address(), path=tmp_path / "a.flv", mode="02")
        running = engines.make(spec, "t/anna/1", lambda _: None)
        await running.start()
        ended = await asyncio.wait_for(running.wait(), waiting.limit_s(20))
    assert (ended.reason, ended.progress.media_ms) == (Reason.ERROR, 0)
    assert isinstance(engines.make(spec, "t/anna/1", lambda _: None), ffmpeg_capture.FfmpegCapture)
    assert isinstance(engines.make(spec, "t/bob/1", lambda _: None), native_capture.NativeCapture)


@pytest.mark.parametrize(
    ("answers", "engines_after"),
    [
        ((b"", b"", b"", b""), "nnnn"),
        ((b"\x03" + bytes(100), b"\x03" + bytes(100)), "nf"),
        ((b"\x03" + bytes(100), None, b"\x03" + bytes(100)), "nnn"),
    ],
    ids=["before any byte", "twice in the handshake", "with media in between"],
)
async def test_a_server_that_closes_in_the_handshake(
    answers: tuple[bytes | None, ...], engines_after: str, tmp_path: Path
) -> None:
    """A connection closed before any byte is an ordinary failed pull, however often; one closed in the handshake gets ffmpeg when
    it repeats itself, and not when media came in between (None: a stream)."""
    engines = capture_engines.CaptureEngines("native", ffmpeg=flv_source.FFMPEG, clock=capture.unix_ms)
    kinds = ""
    for number, answer in enumerate(answers):
        script = Script(tags=TAGS) if answer is None else Script(handshake=answer)
        async with rtmp_server.serving(script) as server:
            spec = capture.CaptureSpec(address=server.address(), path=tmp_path / f"{number}.flv", mode="02")
            running = engines.make(spec, "t/anna/1", lambda _: None)
            await running.start()
            ended = await asyncio.wait_for(running.wait(), waiting.limit_s(20))
        assert (ended.progress.media_ms > 0) == (answer is None), ended
        assert ended.reason == (Reason.EOF if answer is None else Reason.ERROR if answer else Reason.REFUSED)
        following = engines.make(spec, "t/anna/1", lambda _: None)
        kinds += "n" if isinstance(following, native_capture.NativeCapture) else "f"
    assert kinds == engines_after


async def test_a_slow_disk_pauses_the_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the writer cannot keep up, the reading pauses, memory stays bounded, no stall is reported, and every tag arrives."""
    monkeypatch.setattr(native_capture, "MOST_WAITING_BYTES", 200_000)
    monkeypatch.setattr(native_capture, "_RESUME_BYTES", 100_000)
    gate, written, waits = asyncio.Event(), segment_writer.SegmentWriter.flush, []

    def slow(self: segment_writer.SegmentWriter, now_s: float) -> None:
        waits.append(self.waiting_bytes)
        if gate.is_set():
            written(self, now_s)

    monkeypatch.setattr(segment_writer.SegmentWriter, "flush", slow)
    script = Script(tags=tuple(flv_source.sound(n * 10, os.urandom(8_000)) for n in range(1_000)))
    async with rtmp_server.serving(script) as server:
        limits = {"stall_after_s": 0.5, "first_media_s": 0.5}
        spec = capture.CaptureSpec(address=server.address(), path=tmp_path / "a.flv", mode="00", **limits)
        running = native_capture.NativeCapture(spec)
        await running.start()
        await waiting.until(lambda: len(waits) > 50)
        assert not running.ended
        assert max(waits) < 1_000_000
        gate.set()
        ended = await asyncio.wait_for(running.wait(), waiting.limit_s(20))
    assert (ended.reason, _written(tmp_path / "a.flv")) == (Reason.EOF, _sent(script))


async def test_the_first_media_is_written_at_once(source: LiveSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first packet of a segment is on disk, and reported, without waiting for the writer's next tick."""
    monkeypatch.setattr(segment_writer, "TICK_S", 3_600.0)
    source.streams["anna"] = Stream(tags=flv_source.content())
    seen: list[capture_progress.CaptureProgress] = []
    spec = capture.CaptureSpec(address=source.address("anna"), path=tmp_path / "a.flv", mode="02")
    running = native_capture.NativeCapture(spec, on_media=seen.append)
    await running.start()
    await waiting.until(lambda: seen, 20)
    # Otherwise the end of the stream would have written all of it.
    assert seen[0].media_ms < 5_000
    assert segment_scan.scan(tmp_path / "a.flv", "02").media_ms > 0
    running.stop()
    await running.wait()


@pytest.mark.alone
async def test_a_kill_loses_a_tenth_of_a_second(source: LiveSource, tmp_path: Path) -> None:
    """After SIGKILL the segment has everything that arrived but the last 0.1 s, and the index agrees with it."""
    stream = source.streams["anna"] = Stream(tags=flv_source.content())
    program = (
        "import asyncio, sys; from pathlib import Path; from media import capture, native_capture\n"
        "async def main():\n"
        "    spec = capture.CaptureSpec(address=sys.argv[1], path=Path(sys.argv[2]), mode='02')\n"
        "    running = native_capture.NativeCapture(spec); await running.start(); await running.wait()\n"
        "asyncio.run(main())\n"
    )
    path = tmp_path / "a.flv"
    service = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, source.address("anna"), str(path)),
        cwd=Path(__file__).parents[2],
        stdout=subprocess.DEVNULL,
    )
    await waiting.until(lambda: segment_scan.scan(path, "02").media_ms > 2_000)
    service.kill()
    killed = time.time()
    await service.wait()
    # The packet at the end may be up to 67 ms old.
    assert segment_scan.scan(path, "02").media_ms >= (killed - stream.first_sent) * 1000 - 100 * waiting.patience()
    records = list(arrival_index.read(path))
    assert 0 <= len(flv_source.read(path)) - len(records) <= 10


async def test_a_transport_of_another_event_loop_is_used() -> None:
    """A transport needs no base class of asyncio, as uvloop's has none: the handshake is sent over it."""

    class Transport:
        sent = b""

        def write(self, data: bytes) -> None:
            self.sent += data

    transport = Transport()
    connection = rtmp_client._Connection(rtmp_client.target("rtmp://127.0.0.1/pull/42"), lambda *_: None)
    connection.connection_made(cast(asyncio.BaseTransport, transport))
    assert (len(transport.sent), transport.sent[:1]) == (1_537, b"\x03")


@pytest.mark.parametrize("by_reset", [True, False])
async def test_an_end_before_the_answer_keeps_the_native_reader(by_reset: bool, tmp_path: Path) -> None:
    """A server that ends the connection before its HTTP answer, as in a restart, was reached but not misunderstood."""

    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        linger = struct.pack("ii", by_reset, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.close()

    misunderstood: list[bool] = []
    async with await asyncio.start_server(reset, "127.0.0.1", 0) as server:
        address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/a.flv"
        spec = capture.CaptureSpec(address=address, path=tmp_path / "a.flv", mode="02")
        running = native_capture.NativeCapture(spec, on_misunderstood=misunderstood.append)
        await running.start()
        ended = await asyncio.wait_for(running.wait(), waiting.limit_s(20))
    assert (ended.reason, misunderstood) == (Reason.REFUSED, [])


@pytest.mark.parametrize("stood_s", [1.05, 1.6, 4.0])
async def test_a_process_that_stood_still_heard_no_silence(stood_s: float, tmp_path: Path, source: LiveSource) -> None:
    """It stands still for as long as a stream may be silent, or longer: what came meanwhile is read before anything is judged."""
    source.streams["anna"] = Stream(tags=flv_source.content(duration_s=20), then="hold")
    began = asyncio.Event()
    spec = capture.CaptureSpec(address=source.address("anna"), path=tmp_path / "a.flv", mode="02", stall_after_s=1)
    running = native_capture.NativeCapture(spec, on_media=lambda _: began.set())
    await running.start()
    async with waiting.at_most(20):
        await began.wait()
    threading.Event().wait(stood_s)  # the event loop stands still, as in a frozen process
    media_ms = running.progress.media_ms
    await waiting.until(lambda: running.ended or running.progress.media_ms > media_ms + 300, 20, "media behind the pause")
    running.stop()
    assert (await running.wait()).reason == Reason.STOPPED
