"""Finished files in a browser: headless Chromium shows and plays them as their timeline says."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import playback
from media import arrival_index, flv, following, pieces
from media.transcode import SegmentFile, Transcoder
from tencent import cos
from tests import browser, untidy_streams
from tests.flv_source import FFMPEG
from tests.integration import scripted_cos
from tests.integration.test_bounded_spool import NOISE, Bounded, server, soon, uploader
from tests.integration.test_following import Growing, stream

__all__ = ["server", "soon", "uploader"]  # fixtures

BEGAN_MS = 1_790_000_000_000
NEAR_S = 0.1


def _segment(path: Path, stream: untidy_streams.Untidy) -> SegmentFile:
    """The segment that a native capture of the stream writes."""
    path.write_bytes(flv.header(audio=True, video=True) + b"".join(stream.encode(tag) for _, tag in stream.sent))
    records = (arrival_index.record(round(at), tag.kind, len(tag.payload)) for at, tag in stream.sent)
    arrival_index.path_of(path).write_bytes(arrival_index.header(BEGAN_MS) + b"".join(records))
    return SegmentFile(path=path)


@pytest.mark.parametrize("name", ["holes-of-300ms", "avc-then-hevc", "another-shape"])
async def test_chromium_shows_each_second_in_its_place(tmp_path: Path, name: str) -> None:
    """A copied track whose sound had holes, another codec in the middle, and another shape: each flash is seen and each beep
    heard at its second, and the sound is as long as the picture. Chromium plays AAC sample after sample."""
    stream = untidy_streams.streams()[name]
    made = await Transcoder(FFMPEG).transcode([_segment(tmp_path / "1.flv", stream)], "02", tmp_path / "finished.mp4")
    positions = [second + off for second in range(8) for off in (0.1, 0.5, 0.94)]
    shown = await browser.play(made.path, positions, tmp_path)
    assert shown.size == stream.size
    assert shown.duration_s == pytest.approx(made.duration_ms / 1000, abs=NEAR_S)
    flashes = [round(at - NEAR_S, 2) for at, bright in shown.bright.items() if bright > 128]
    assert flashes == list(range(8)), shown.bright
    assert shown.beeps == pytest.approx(range(8), abs=NEAR_S)
    assert shown.sound_s == pytest.approx(shown.duration_s, abs=NEAR_S)


async def test_chromium_seeks_in_the_files_of_a_bounded_spool(
    tmp_path: Path, soon: None, server: scripted_cos.Cos, uploader: cos.CosUploader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of fragments tell their duration, and a seek shows the second that is asked for: in a file that was followed to its
    end, and in one that a crash has ended. Second 3 of each ten is bright."""
    monkeypatch.setattr(following, "LAG_MS", 5_000)
    sent = stream(70, filters=f"{NOISE},drawbox=color=white:t=fill:enable='between(t,3,3.99)'")
    objects = []
    for name, grown_s in (("crashed", 60), ("whole", 73)):
        folder = tmp_path / name
        folder.mkdir()
        bounded = Bounded(folder, server, uploader)
        segment = Growing(folder / "00000001.flv", sent)
        bounded.follower.add(segment.path)
        await bounded.grow(segment, range(grown_s))
        if name == "whole":
            await bounded.follower.finish([segment.whole], folder / "unused")
        await bounded.follower.stop()
        await bounded.uploads.close()
        (piece,) = pieces.settled(folder)
        path = tmp_path / f"{name}.mp4"
        path.write_bytes(await bounded.upload(1, piece.path, piece.output))
        objects.append((path, piece.output.duration_ms / 1000))
    for path, duration_s in objects:
        assert duration_s > 40
        shown = await browser.play(path, [second + 0.5 for second in (43, 22, 23, 24, 3, 33, 34, 13)], tmp_path, sound=False)
        assert shown.duration_s == pytest.approx(duration_s, abs=NEAR_S)
        assert [at for at, bright in shown.bright.items() if bright > 128] == [43.5, 23.5, 3.5, 33.5, 13.5], path.name


async def test_playback_finds_files_that_a_browser_does_not_play(tmp_path: Path) -> None:
    """Chromium plays finished files with sound and picture or with sound alone, and finds fault with a file that is cut off and
    with one of another format."""
    segment = _segment(tmp_path / "1.flv", untidy_streams.streams()["plain"])
    good = [tmp_path / "good.mp4", tmp_path / "good.mp3"]
    for mode, path in zip(("02", "00"), good, strict=True):
        await Transcoder(FFMPEG).transcode([segment], mode, path)
    cut, other = tmp_path / "cut.mp4", tmp_path / "other.mp4"
    cut.write_bytes(good[0].read_bytes()[: good[0].stat().st_size * 2 // 3])
    other.write_bytes(b"no media at all" * 100)
    found = await playback.faults(tmp_path, [*good, cut, other])
    assert [bool(found[path]) for path in (*good, cut, other)] == [False, False, True, True], found
