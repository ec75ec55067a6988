"""Bounded spools whose cameras pause: the sound goes on, and so does the release of the segment's bytes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from media import bounded_file, flv, following, holes, pieces, transcode
from tencent import cos
from tests import flv_source, waiting
from tests.integration import scripted_cos
from tests.integration.test_bounded_spool import Bounded, decoded, server, soon, uploader
from tests.integration.test_following import Growing, Sent

__all__ = ["server", "soon", "uploader"]  # fixtures

SOUND = "aac -b:a 256k -af aeval=random(0)*0.2"  # noise, which takes as many bytes as the bitrate says
SECONDS, PAUSE_S = 215, (12, 200)
BOUND_BYTES = 3 * scripted_cos.MIB
ENDS_S = {"a camera that comes back": SECONDS, "a camera that stays off": PAUSE_S[1]}


@pytest.fixture
def small(soon: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Little is kept of the beginnings."""
    monkeypatch.setattr(bounded_file, "KEPT_BYTES", 512 << 10)
    monkeypatch.setattr(bounded_file, "_KEPT_BYTES", 8 << 10)


def paused(seconds: int) -> Sent:
    """A stream whose camera pauses, each packet arriving at its time."""

    def found() -> Iterator[flv.Tag]:
        for tag in flv_source.between(flv_source.content(duration_s=SECONDS, audio=SOUND), 0, seconds * 1_000):
            if tag.is_sequence_header or tag.kind == flv.AUDIO or not _pauses(tag):
                yield tag

    return [(tag, float(tag.timestamp_ms)) for tag in found()]


def _pauses(tag: flv.Tag) -> bool:
    return PAUSE_S[0] * 1_000 <= tag.timestamp_ms < PAUSE_S[1] * 1_000


def limited(folder: Path, server: scripted_cos.Cos, uploader: cos.CosUploader) -> Bounded:
    """A recording with a small bound."""
    folder.mkdir()
    bounded = Bounded(folder, server, uploader)
    path = folder / "00000001.p1.mp4"
    bounded.follower = following.Following(flv_source.FFMPEG, "02", path, bound_bytes=BOUND_BYTES)
    return bounded


@pytest.mark.parametrize("name", ENDS_S)
async def test_sound_is_released_while_the_camera_pauses(
    tmp_path: Path, small: None, server: scripted_cos.Cos, uploader: cos.CosUploader, name: str
) -> None:
    """The segment stays small in a pause that is longer than the bound holds. The finished file decodes to the same as that of a
    spool that keeps everything, also if it ends in the pause."""
    folder, seconds = tmp_path / "bounded", ENDS_S[name]
    bounded, sent = limited(folder, server, uploader), paused(seconds)
    segment, kept = Growing(folder / "00000001.flv", sent), Growing(tmp_path / "00000001.flv", sent)
    bounded.follower.add(segment.path)
    try:
        await bounded.grow(segment, range(PAUSE_S[1]), pause_s=0.02 * waiting.patience())
        (piece,) = pieces.of(folder)
        assert piece.output.duration_ms > 100_000
        assert holes.used_bytes(segment.path) < BOUND_BYTES < segment.path.stat().st_size
        await bounded.grow(segment, range(PAUSE_S[1], seconds + 3), pause_s=0.02 * waiting.patience())
        made = (await bounded.follower.finish([segment.whole], folder / "unused")).made
    finally:
        await bounded.follower.stop()
    kept.until(kept.ends_ms)
    whole = await transcode.Transcoder(flv_source.FFMPEG).transcode([kept.whole], "02", tmp_path / "whole.mp4")
    path = tmp_path / "object.mp4"
    path.write_bytes(await bounded.upload(1, made.path, made.stored(1)))
    for kind in "av":  # the last packet of sound may be cut
        assert decoded(path, kind)[:-1] == decoded(whole.path, kind)[:-1]


async def test_a_file_that_ends_in_a_pause_leaves_each_packet_once(
    tmp_path: Path, small: None, server: scripted_cos.Cos, uploader: cos.CosUploader
) -> None:
    """A follower that dies in the pause leaves a file with all pictures before it; the rest begins with the next sound."""
    bounded, sent = limited(tmp_path / "bounded", server, uploader), paused(SECONDS)
    segment = Growing(tmp_path / "bounded" / "00000001.flv", sent)
    bounded.follower.add(segment.path)
    try:
        await bounded.grow(segment, range(160), upload=False, pause_s=0.02 * waiting.patience())
    finally:
        await bounded.follower.stop()
    (piece,) = pieces.settled(tmp_path / "bounded")
    assert piece.begin is not None
    assert piece.output.duration_ms > 40_000
    segment.until(SECONDS * 1_000)
    offset, left = len(flv.header(audio=True, video=True)), {flv.AUDIO: 0, flv.VIDEO: 0}
    for tag, _ in sent:
        left[tag.kind] += tag.is_media and offset >= piece.begin.kinds[tag.kind]
        offset += len(flv.encode(tag.kind, tag.timestamp_ms, tag.payload))
    for kind, letter in ((flv.AUDIO, "a"), (flv.VIDEO, "v")):
        packets = sum(tag.kind == kind and tag.is_media for tag, _ in sent)
        assert len(decoded(piece.path, letter)) + left[kind] == packets
