"""Bounded spools whose captures were interrupted: what is released of one segment takes nothing from the next one."""

from __future__ import annotations

from pathlib import Path

import pytest

from media import following, transcode
from tests import flv_source
from tests.integration.test_bounded_spool import NOISE, decoded, soon
from tests.integration.test_following import Growing, grow, stream

SOON = soon


@pytest.mark.parametrize("lasted_s", [(20, 40), (40, 20), (41, 40)])
async def test_a_second_segment_keeps_what_is_in_no_piece(tmp_path: Path, soon: None, lasted_s: tuple[int, int]) -> None:
    """Packets of the second segment are fed while the note still names a place in the first, which is longer or shorter. The
    file has every picture and sample of both."""
    begins_ms = (0, lasted_s[0] * 1_000 + 2_000)
    sent = [
        stream(lasts_s, begin_ms=begin_ms, filters=NOISE, seed=begin_ms)
        for lasts_s, begin_ms in zip(lasted_s, begins_ms, strict=True)
    ]
    live, kept = tmp_path / "live", tmp_path / "kept"
    for folder in (live, kept):
        folder.mkdir()
    growing, again = (
        [Growing(folder / f"{number:08d}.flv", each) for number, each in enumerate(sent, 1)] for folder in (live, kept)
    )
    for each in again:
        each.until(each.ends_ms)
    part = live / "00000001.p1.mp4"
    recording = following.Following(flv_source.FFMPEG, "02", part, bound_bytes=64 << 20)
    try:
        await grow(recording, growing)
        finished = await recording.finish([each.whole for each in growing], live / "finished.mp4")
    finally:
        await recording.stop()
    output = tmp_path / "afterwards.mp4"
    made = await transcode.Transcoder(flv_source.FFMPEG).transcode([each.whole for each in again], "02", output)
    for kind in ("v", "a"):  # the last packet of sound may be cut
        assert decoded(finished.made.path, kind)[:-1] == decoded(made.path, kind)[:-1]
