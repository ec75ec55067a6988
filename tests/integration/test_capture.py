"""Captures from live sources that behave as TRTC might: they end, stall, refuse or start a track late.

Rule: the native capture and the capture by ffmpeg pass the same tests.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from machine import capture_progress
from machine.reasons import Reason
from media import capture, ffmpeg_capture, flv, native_capture, segment_scan
from tests import flv_source, waiting
from tests.flv_source import FFMPEG, LiveSource, Stream


@pytest.fixture
async def source() -> AsyncIterator[LiveSource]:
    live = LiveSource()
    await live.start()
    yield live
    await live.stop()


_engine = ""


@pytest.fixture(params=["ffmpeg", "native"], autouse=True)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each test runs with both captures."""
    monkeypatch.setattr(sys.modules[__name__], "_engine", request.param)
    return str(request.param)


def _of(spec: capture.CaptureSpec, on_media: Callable[[capture_progress.CaptureProgress], None] | None = None) -> capture.Capture:
    if _engine == "native":
        return native_capture.NativeCapture(spec, on_media=on_media)
    return ffmpeg_capture.FfmpegCapture(spec, ffmpeg=FFMPEG, on_media=on_media)


def _capture(address: str, path: Path, mode: str = "02", **limits: float) -> capture.Capture:
    return _of(capture.CaptureSpec(address=address, path=path, mode=mode, **limits))


async def _run(address: str, path: Path, mode: str = "02", **limits: float) -> capture_progress.CaptureExit:
    running = _capture(address, path, mode, **limits)
    await running.start()
    return await asyncio.wait_for(running.wait(), waiting.limit_s(30))


def _gone(pid: int) -> bool:
    return pid == 0 or not Path(f"/proc/{pid}").exists()


def _of_process(pid: int, file: str) -> bytes:
    return Path(f"/proc/{pid}/{file}").read_bytes()


@pytest.mark.parametrize("then", ["close", "reset"])
async def test_a_stream_that_ends_midway_keeps_its_media(source: LiveSource, tmp_path: Path, then: str) -> None:
    """A clean close and a reset both end with "eof", every packet on disk, and wall times within 0.3 s of the server's."""
    tags = flv_source.shifted(flv_source.between(flv_source.content(), 0, 3_000), 1_000_000)
    stream = source.streams["anna"] = Stream(tags=tags, then=then)
    ended = await _run(source.address("anna"), tmp_path / "a.flv")
    assert ended.reason == Reason.EOF
    assert ended.progress.media_ms == pytest.approx(3_000, abs=100)
    assert ended.progress.first_packet_ms == pytest.approx(stream.first_sent * 1000, abs=300)
    assert ended.progress.last_packet_ms == pytest.approx(stream.last_sent * 1000, abs=300)
    seen = segment_scan.scan(tmp_path / "a.flv", "02")
    assert (seen.media_ms, seen.has_audio, seen.has_video) == (ended.progress.media_ms, True, True)
    assert seen.first_packet_ms == pytest.approx(stream.first_sent * 1000, abs=300)
    assert seen.last_packet_ms == pytest.approx(stream.last_sent * 1000, abs=300)


async def test_media_is_announced_once_with_its_time(source: LiveSource, tmp_path: Path) -> None:
    """on_media is called once in the capture with the first packet's wall time, although ffmpeg analyzes for a second first."""
    stream = source.streams["anna"] = Stream(tags=flv_source.content())
    seen: list[capture_progress.CaptureProgress] = []
    spec = capture.CaptureSpec(address=source.address("anna"), path=tmp_path / "a.flv", mode="02")
    running = _of(spec, seen.append)
    await running.start()
    await waiting.until(lambda: running.progress.media_ms > 2_500)
    running.stop()
    await running.wait()
    assert len(seen) == 1
    assert seen[0].first_packet_ms == pytest.approx(stream.first_sent * 1000, abs=300)


async def test_a_burst_at_the_beginning_does_not_move_the_first_packet_before_the_spawn(
    source: LiveSource, tmp_path: Path
) -> None:
    """If a server sends two seconds of media immediately, the recording begins when the capture did."""
    source.streams["anna"] = Stream(tags=flv_source.between(flv_source.content(), 0, 4_000), ahead_ms=2_000)
    before_ms = capture.unix_ms()
    ended = await _run(source.address("anna"), tmp_path / "a.flv")
    assert ended.progress.first_packet_ms == pytest.approx(before_ms, abs=300)
    assert ended.progress.media_ms == pytest.approx(4_000, abs=100)


async def test_the_address_is_in_no_process_list_and_no_message(source: LiveSource, tmp_path: Path) -> None:
    """The UserSig is neither in ffmpeg's command line or environment nor in the messages of the capture."""
    source.streams["anna"] = Stream(tags=flv_source.content())
    running = _capture(source.address("anna"), tmp_path / "a.flv")
    await running.start()
    await waiting.until(lambda: running.progress.media_ms > 0)
    assert not [file for file in ("cmdline", "environ") if b"SECRET" in _of_process(running.pid or os.getpid(), file)]
    running.stop()
    source.streams["bob"] = Stream(status=404)
    refused = await _run(source.address("bob"), tmp_path / "b.flv")
    assert "SECRET" not in repr(refused) + repr(await running.wait())
    assert "SECRET" not in repr(capture.CaptureSpec(address=source.address("bob"), path=tmp_path, mode="00"))


@pytest.mark.alone
async def test_stop_ends_at_once_and_may_be_repeated(source: LiveSource, tmp_path: Path) -> None:
    """A live capture stops within a second, keeps its last packet, leaves no process, and gives every waiter the same exit."""
    stream = source.streams["anna"] = Stream(tags=flv_source.content())
    running = _capture(source.address("anna"), tmp_path / "a.flv")
    await running.start()
    await running.start()
    await waiting.until(lambda: running.progress.media_ms > 2_000)
    began = time.monotonic()
    running.stop()
    running.stop()
    ended = await running.wait()
    assert time.monotonic() - began < 1 * waiting.patience()
    assert ended.reason == Reason.STOPPED
    assert ended.progress.last_packet_ms == pytest.approx(stream.last_sent * 1000, abs=300)
    assert await running.wait() == ended
    assert _gone(running.pid)
    running.kill()


@pytest.mark.alone
async def test_a_silent_server_is_a_stall(source: LiveSource, tmp_path: Path) -> None:
    """A file without growth for the limit is "stalled" within another 1.5 s, although ffmpeg ignores `q` then, and its media and
    times are right."""
    stream = source.streams["anna"] = Stream(tags=flv_source.between(flv_source.content(), 0, 2_000), then="hold")
    running = _capture(source.address("anna"), tmp_path / "a.flv", stall_after_s=2)
    await running.start()
    ended = await running.wait()
    assert ended.reason == Reason.STALLED
    assert 2 <= time.time() - stream.last_sent <= 2 + waiting.limit_s(2)
    assert ended.progress.media_ms == pytest.approx(2_000, abs=100)
    assert segment_scan.scan(tmp_path / "a.flv", "02").last_packet_ms == pytest.approx(stream.last_sent * 1000, abs=300)
    assert _gone(running.pid)


async def test_a_server_that_never_sends_is_no_media(source: LiveSource, tmp_path: Path) -> None:
    """An open connection without a packet ends after first_media_s without media, or within a second of a stop."""
    source.streams["anna"] = Stream(then="hold")
    ended = await _run(source.address("anna"), tmp_path / "a.flv", first_media_s=1)
    assert (ended.reason, ended.progress.media_ms) == (Reason.NO_MEDIA, 0)
    running = _capture(source.address("anna"), tmp_path / "b.flv")
    await running.start()
    running.stop()
    assert (await asyncio.wait_for(running.wait(), waiting.limit_s(1))).reason == Reason.STOPPED


async def test_refusals_are_distinguished(source: LiveSource, tmp_path: Path) -> None:
    """401 and 403 are permanent and name the likely cause; 404, 500 and a closed port may be retried."""
    reasons: dict[int | str, str] = {}
    for status in (401, 403, 404, 500):
        source.streams[str(status)] = Stream(status=status)
        ended = await _run(source.address(str(status)), tmp_path / f"{status}.flv")
        reasons[status] = ended.reason
        if ended.reason == Reason.REFUSED_FOR_GOOD:
            assert "UserSig" in ended.detail
            assert "package" in ended.detail
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        for scheme in ("rtmp", "http"):
            address = f"{scheme}://127.0.0.1:{closed.getsockname()[1]}/pull/1?usersig=SECRET"
            reasons[scheme] = (await _run(address, tmp_path / f"{scheme}.flv")).reason
    good, again = Reason.REFUSED_FOR_GOOD, Reason.REFUSED
    assert reasons == {401: good, 403: good, 404: again, 500: again, "rtmp": again, "http": again}


async def test_a_declared_track_that_never_arrives_delays_nothing(source: LiveSource, tmp_path: Path) -> None:
    """When the header declares both tracks and only sound arrives, the sound is on disk within two seconds, from its first
    packet."""
    sounds = flv_source.between(flv_source.only(flv_source.content(), flv.AUDIO), 0, 4_000)
    stream = source.streams["anna"] = Stream(tags=sounds)
    running = _capture(source.address("anna"), tmp_path / "a.flv")
    await running.start()
    await waiting.until(lambda: running.progress.media_ms > 0, timeout_s=2)
    ended = await running.wait()
    assert ended.progress.media_ms == pytest.approx(4_000, abs=100)
    assert ended.progress.first_packet_ms == pytest.approx(stream.first_sent * 1000, abs=300)


async def test_in_mode_00_pictures_only_prevent_a_stall(source: LiveSource, tmp_path: Path) -> None:
    """With the camera on, a muted microphone is no stall, later sound goes into the same segment, and hardly any picture is
    stored."""
    whole = flv_source.content()
    sound = flv_source.only(whole, flv.AUDIO)
    parts = (flv_source.between(sound, 0, 1_500), flv_source.between(sound, 5_500, 7_000)[1:])
    tags = flv_source.merged(flv_source.between(flv_source.only(whole, flv.VIDEO), 0, 7_000), *parts)
    source.streams["anna"] = Stream(tags=tags)
    ended = await _run(source.address("anna"), tmp_path / "a.flv", "00", stall_after_s=3)
    assert ended.reason == Reason.EOF
    stored = flv_source.read(tmp_path / "a.flv")
    assert [tag.timestamp_ms for tag in flv_source.only(stored, flv.AUDIO)][-1] > 6_900
    assert len([tag for tag in stored if tag.kind == flv.VIDEO and tag.is_media]) < 8


async def test_pictures_alone_are_no_media_in_mode_00(source: LiveSource, tmp_path: Path) -> None:
    """A speaker without sound gives mode 00 no media, and mode 01 all pictures."""
    pictures = flv_source.between(flv_source.only(flv_source.content(), flv.VIDEO), 0, 3_000)
    source.streams["anna"] = Stream(tags=pictures)
    sound, picture = await asyncio.gather(
        _run(source.address("anna"), tmp_path / "00.flv", "00"), _run(source.address("anna"), tmp_path / "01.flv", "01")
    )
    assert (sound.progress.media_ms, sound.progress.first_packet_ms) == (0, None)
    assert picture.progress.media_ms == pytest.approx(3_000, abs=100)


async def test_a_full_disk_has_its_reason(source: LiveSource, tmp_path: Path) -> None:
    """A write without space ends the capture with "disk-full"."""
    source.streams["anna"] = Stream(tags=flv_source.content())
    (tmp_path / "a.flv").symlink_to("/dev/full")
    assert (await _run(source.address("anna"), tmp_path / "a.flv")).reason == Reason.DISK_FULL


async def test_a_lost_spool_has_its_reason(source: LiveSource, tmp_path: Path) -> None:
    """A folder deleted under a running capture, and a missing one, are "spool-lost"; ffmpeg alone would write to the deleted
    file."""
    source.streams["anna"] = Stream(tags=flv_source.content())
    folder = tmp_path / "spool"
    folder.mkdir()
    running = _capture(source.address("anna"), folder / "a.flv")
    await running.start()
    await waiting.until(lambda: running.progress.media_ms > 0)
    shutil.rmtree(folder)
    assert (await asyncio.wait_for(running.wait(), waiting.limit_s(5))).reason == Reason.SPOOL_LOST
    assert _gone(running.pid)
    assert (await _run(source.address("anna"), folder / "b.flv")).reason == Reason.SPOOL_LOST


async def test_a_cancelled_wait_leaves_no_process(source: LiveSource, tmp_path: Path) -> None:
    """A cancelled wait ends and reaps ffmpeg, and its media stays."""
    source.streams["anna"] = Stream(tags=flv_source.content())
    running = _capture(source.address("anna"), tmp_path / "a.flv")
    await running.start()
    waiter = asyncio.create_task(running.wait())
    await waiting.until(lambda: running.progress.media_ms > 0)
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    await waiting.until(lambda: _gone(running.pid), timeout_s=2)
    assert (await running.wait()).progress.media_ms > 0


async def test_a_segment_is_never_overwritten(source: LiveSource, tmp_path: Path) -> None:
    """A path with existing media is refused before the spawn and stays unchanged."""
    source.streams["anna"] = Stream(tags=flv_source.content())
    content = flv_source.write(tmp_path / "a.flv", flv_source.content()).read_bytes()
    ended = await _run(source.address("anna"), tmp_path / "a.flv")
    assert ended.reason == Reason.ERROR
    assert (tmp_path / "a.flv").read_bytes() == content
    assert source.streams["anna"].requests == 0


async def test_nothing_is_left_after_the_end(tmp_path: Path) -> None:
    """After wait() has returned, the capture has left no task and no file descriptor."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"rtmp://127.0.0.1:{closed.getsockname()[1]}/pull/1?usersig=SECRET"
        await _run(address, tmp_path / "first.flv")
        before = (len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd")))
        for index in range(3):
            await _run(address, tmp_path / f"{index}.flv")
        assert (len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd"))) == before


async def test_rtmp_is_captured_until_it_ends(tmp_path: Path) -> None:
    """An RTMP source is recorded from its first packet, stops on request, and ends with "eof" when the server closes."""
    file = flv_source.write(tmp_path / "source.flv", flv_source.content())
    for stop in (True, False):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"rtmp://127.0.0.1:{free.getsockname()[1]}/pull/42?userid=recorder&usersig=SECRET-SIGNATURE"
        arguments = (FFMPEG, "-loglevel", "error", "-re", "-i", str(file), "-c", "copy", "-f", "flv", "-listen", "1", address)
        server = await asyncio.create_subprocess_exec(*arguments, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            ended = await _rtmp(address, tmp_path / f"{stop}.flv", server, stop)
        finally:
            if server.returncode is None:
                server.kill()
            await server.wait()
        assert ended.reason == (Reason.STOPPED if stop else Reason.EOF)
        assert 1_500 < ended.progress.media_ms < 6_000
        assert "SECRET" not in repr(ended)


async def _begun(running: capture.Capture) -> bool:
    await running.start()
    await waiting.until(lambda: running.progress.media_ms > 0 or running.ended)
    return not running.ended


async def _rtmp(address: str, path: Path, server: asyncio.subprocess.Process, stop: bool) -> capture_progress.CaptureExit:
    running = _capture(address, path)
    for _ in range(500):  # a pull fails within some 20 ms until the server listens
        if await _begun(running):
            break
        running = _capture(address, path)
    await waiting.until(lambda: running.progress.media_ms > 1_500)
    if stop:
        running.stop()
    else:
        server.kill()
    return await asyncio.wait_for(running.wait(), waiting.limit_s(10))


@pytest.mark.alone
@pytest.mark.parametrize("silent", [flv.AUDIO, flv.VIDEO])
async def test_a_muted_track_does_not_delay_the_other(source: LiveSource, tmp_path: Path, silent: int) -> None:
    """When one of two tracks stops, the other still reaches the disk within a second, so a crash loses no more."""
    whole = flv_source.content()
    goes_on = flv.VIDEO if silent == flv.AUDIO else flv.AUDIO
    tags = flv_source.merged(flv_source.between(flv_source.only(whole, silent), 0, 1_500), flv_source.only(whole, goes_on))
    stream = source.streams["anna"] = Stream(tags=tags)
    running = _capture(source.address("anna"), tmp_path / "a.flv")
    await running.start()
    await waiting.until(lambda: stream.first_sent and time.time() - stream.first_sent > 4)
    running.kill()
    killed_ms = (time.time() - stream.first_sent) * 1000
    assert (await running.wait()).progress.media_ms == pytest.approx(killed_ms, abs=1_000)
