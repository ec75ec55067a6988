"""The segment writer: what counts as media while it arrives, by the same rules as in the finished segment."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from media import flv, segment_writer, survey
from media.joiner import SegmentFile

IDR = b"\x00\x00\x00\x06\x65\x88\x80\x10\x00\x01"
HEVC_IDR = b"\x00\x00\x00\x06\x26\x01\xaf\x10\x00\x01"


def _media_ms(path: Path, payloads: list[bytes]) -> int:
    """The media that a capture in mode 01 notes for pictures 40 ms apart."""
    loop = asyncio.new_event_loop()
    try:
        writer = segment_writer.SegmentWriter(path, "01", base_ms=1_790_000_000_000, on_change=bool, loop=loop)
        for number, payload in enumerate(payloads):
            writer.add(number * 40, flv.VIDEO, number * 40, payload)
        writer.close()
        writer.flush(0.0)
    finally:
        loop.close()
    assert writer.fault is None
    return writer.progress.media_ms


@pytest.mark.parametrize(
    "payload",
    [b"\x17\x01\x00\x00\x00" + IDR, b"\x27\x01\x00\x00\x00" + IDR, b"\x1c\x01\x00\x00\x00" + HEVC_IDR],
    ids=["usual", "never flagged as a key frame", "HEVC by the id of Chinese CDNs"],
)
def test_pictures_count_as_media(tmp_path: Path, payload: bytes) -> None:
    """What the transcode can read is media while it arrives: else the recording would have none."""
    assert _media_ms(tmp_path / "1.flv", [payload] * 25) == 1_000


def test_pictures_before_the_first_whole_one_do_not_count(tmp_path: Path) -> None:
    """Nothing can be shown before."""
    later = b"\x27\x01\x00\x00\x00\x00\x00\x00\x06\x41\x9a\x80\x10\x00\x01"
    assert _media_ms(tmp_path / "1.flv", [later] * 25) == 0
    assert survey.survey([SegmentFile(path=tmp_path / "1.flv")], "01").kinds == frozenset()
