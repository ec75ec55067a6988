"""Live view of a growing segment: real ffmpeg makes fragmented MP4 of it, and every end leaves nothing behind."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from machine import errors
from media import flv, live_view
from tests import content, flv_source, waiting

# An HEVC packet by its FourCC; the configuration itself is not read.
HEVC = flv_source.configuration(flv.VIDEO, b"\x90hvc1\x01")
HEVC_KEY = flv.Tag(kind=flv.VIDEO, timestamp_ms=0, payload=b"\x91hvc1\x00\x00\x00\x00\x00\x00\x01\x28")


def _encoded(*tags: flv.Tag) -> bytes:
    return b"".join(flv.encode(tag.kind, tag.timestamp_ms, tag.payload) for tag in tags)


async def _never() -> bool:
    return False


async def test_a_growing_segment_becomes_mp4(tmp_path: Path) -> None:
    """What is written later is in it, until the segment ends; it begins at the newest key frame, and plays from 0."""
    tags = flv_source.content(gop=30)
    middle = next(place for place, tag in enumerate(tags) if tag.timestamp_ms >= 5_000)
    path, over = tmp_path / "1.flv", asyncio.Event()
    path.write_bytes(flv.header(audio=True, video=True) + _encoded(*tags[:middle]))

    async def is_over() -> bool:
        return over.is_set()

    view = live_view.LiveView(flv_source.FFMPEG, live_view.segment(path, "02", is_over))
    await view.start()
    mp4 = await view.read()
    assert b"ftyp" in mp4[:12]
    with path.open("ab") as file:
        file.write(_encoded(*tags[middle:]))
    over.set()
    async with waiting.at_most(20):
        while data := await view.read():
            mp4 += data
    await view.close()
    shown = tmp_path / "shown.mp4"
    shown.write_bytes(mp4)
    found = await asyncio.to_thread(content.look, shown)
    assert (found.has_audio, found.has_video) == (True, True)
    assert found.duration_s == pytest.approx(6.0, abs=0.3)
    assert mp4.count(b"moof") > 5


async def test_a_codec_that_browsers_do_not_play_is_refused(tmp_path: Path) -> None:
    """The refusal names H.265, and no ffmpeg is started."""
    path = tmp_path / "1.flv"
    path.write_bytes(flv.header(audio=False, video=True) + _encoded(HEVC, HEVC_KEY))
    view = live_view.LiveView("/nowhere/ffmpeg", live_view.segment(path, "01", _never))
    with pytest.raises(errors.Refused, match=r"the picture as H\.265"):
        await view.start()
    await view.close()


async def _endless() -> AsyncGenerator[bytes, None]:
    """A stream that never waits for its viewer."""
    tags = flv_source.content()
    last_ms = tags[-1].timestamp_ms + 40
    yield flv.header(audio=True, video=True)
    for round_ in itertools.count():
        media = tags if round_ == 0 else [tag for tag in tags if tag.is_media]
        yield b"".join(flv.encode(tag.kind, tag.timestamp_ms + round_ * last_ms, tag.payload) for tag in media)


async def test_a_viewer_that_does_not_read_loses_its_view(monkeypatch: pytest.MonkeyPatch) -> None:
    """ffmpeg ends, so that a browser with a paused player holds nothing."""
    monkeypatch.setattr(live_view, "PATIENCE_S", 0.5 * waiting.pace())
    view = live_view.LiveView(flv_source.FFMPEG, _endless())
    await view.start()
    assert view.child is not None
    async with waiting.at_most(20):
        await view.child.ended()
    await view.close()
