"""What only the capture by ffmpeg does: ffmpeg is a process of its own, and it does not store a late track or a jump."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from machine import capture_progress
from machine.reasons import Reason
from media import capture, ffmpeg_capture, flv, segment_scan
from tests import flv_source, waiting
from tests.flv_source import FFMPEG, LiveSource, Stream


@pytest.fixture
async def source() -> AsyncIterator[LiveSource]:
    live = LiveSource()
    await live.start()
    yield live
    await live.stop()


def _capture(address: str, path: Path, mode: str = "02") -> ffmpeg_capture.FfmpegCapture:
    return ffmpeg_capture.FfmpegCapture(capture.CaptureSpec(address=address, path=path, mode=mode), ffmpeg=FFMPEG)


async def _run(address: str, path: Path, mode: str = "02") -> capture_progress.CaptureExit:
    running = _capture(address, path, mode)
    await running.start()
    return await asyncio.wait_for(running.wait(), waiting.limit_s(30))


def _gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


async def test_a_camera_switched_on_later_ends_the_segment(source: LiveSource, tmp_path: Path) -> None:
    """A picture that begins after three seconds ends the segment immediately in mode 02, but not in mode 00, which needs none."""
    whole = flv_source.content()
    late = flv_source.shifted(flv_source.between(flv_source.only(whole, flv.VIDEO), 0, 2_000), 3_000)
    tags = flv_source.merged(flv_source.between(flv_source.only(whole, flv.AUDIO), 0, 5_000), late)
    stream = source.streams["anna"] = Stream(tags=tags, declares=(True, False))
    both, sound = await asyncio.gather(
        _run(source.address("anna"), tmp_path / "02.flv"), _run(source.address("anna"), tmp_path / "00.flv", "00")
    )
    assert both.reason == Reason.NEW_TRACK
    assert both.progress.media_ms == pytest.approx(3_000, abs=400)
    assert sound.reason == Reason.EOF
    assert sound.progress.media_ms == pytest.approx(5_000, abs=100)
    assert stream.requests == 2


@pytest.mark.parametrize("back_to_ms", [0, 101_000])
async def test_a_clock_set_back_ends_the_segment(source: LiveSource, tmp_path: Path, back_to_ms: int) -> None:
    """Timestamps that run backwards, below the beginning of the stream or above it, end the segment."""
    whole = flv_source.content()
    before = flv_source.shifted(flv_source.between(whole, 0, 4_000), 100_000)
    after = flv_source.shifted(flv_source.between(whole, 0, 3_000), back_to_ms)
    source.streams["anna"] = Stream(tags=before + after)
    ended = await _run(source.address("anna"), tmp_path / "a.flv")
    assert ended.reason == Reason.ERROR
    assert "jumped" in ended.detail


@pytest.mark.alone
async def test_ffmpeg_killed_from_outside_keeps_its_media(source: LiveSource, tmp_path: Path) -> None:
    """A SIGKILL from outside ends as an error, and the media received before is on disk."""
    stream = source.streams["anna"] = Stream(tags=flv_source.content())
    running = _capture(source.address("anna"), tmp_path / "a.flv")
    await running.start()
    await waiting.until(lambda: running.progress.media_ms > 1_500)
    os.kill(running.pid, signal.SIGKILL)
    killed = time.time()
    ended = await running.wait()
    assert ended.reason == Reason.ERROR
    assert ended.progress.media_ms == pytest.approx((killed - stream.first_sent) * 1000, abs=300)


@pytest.mark.alone
async def test_ffmpeg_dies_with_the_service(source: LiveSource, tmp_path: Path) -> None:
    """The ffmpeg of a service killed with -9 ends too, and the segment has everything but the last second."""
    stream = source.streams["anna"] = Stream(tags=flv_source.content())
    program = (
        "import asyncio, sys; from pathlib import Path; from media import capture, ffmpeg_capture\n"
        "async def main():\n"
        "    spec = capture.CaptureSpec(address=sys.argv[1], path=Path(sys.argv[2]), mode='02')\n"
        "    running = ffmpeg_capture.FfmpegCapture(spec, ffmpeg=sys.argv[3]); await running.start()\n"
        "    print(running.pid, flush=True); await running.wait()\n"
        "asyncio.run(main())\n"
    )
    path = tmp_path / "a.flv"
    service = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, source.address("anna"), str(path), FFMPEG),
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert service.stdout is not None
    await waiting.until(lambda: segment_scan.scan(path, "02").media_ms > 2_000)
    output = (await service.stdout.read(4096)).decode()
    pid = int(next(line for line in output.splitlines() if line.isdigit()))
    service.kill()
    killed = time.time()
    await service.wait()
    await waiting.until(lambda: _gone(pid), timeout_s=2)
    assert segment_scan.scan(path, "02").media_ms == pytest.approx((killed - stream.first_sent) * 1000, abs=1_000)
