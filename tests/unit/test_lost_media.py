"""Media that captures noted and files no longer have: told as gaps at their place, and counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from media import flv, joiner, survey
from tests import flv_source

BEGAN_MS = 1_790_000_000_000
PAGE = 4096


def _segment(folder: Path, n: int, seconds: int, *, from_s: int = 0) -> joiner.SegmentFile:
    """A whole segment of sound, as its capture noted it."""
    tags = [flv_source.configuration(flv.AUDIO, flv_source.AAC_HEADER)]
    tags += [flv_source.sound(ms, bytes((ms // 20 % 255 + 1,)) * 120) for ms in range(0, seconds * 1000, 20)]
    first_ms = BEGAN_MS + from_s * 1000
    return joiner.SegmentFile(
        path=flv_source.write(folder / f"{n}.flv", tags),
        first_packet_ms=first_ms,
        last_packet_ms=first_ms + seconds * 1000 - 20,
        media_ms=seconds * 1000,
    )


def _gaps(found: survey.Survey) -> list[tuple[float, float]]:
    return [(gap.at_s, gap.duration_s) for gap in found.gaps]


@pytest.mark.parametrize("page", [3, 20, 55])
def test_a_zeroed_page_is_a_gap(tmp_path: Path, page: int) -> None:
    """A page of zeros in 60 s of sound costs the packets in it. They are a gap, and the rest is read."""
    segment = _segment(tmp_path, 1, 60)
    data = bytearray(segment.path.read_bytes())
    data[page * PAGE : (page + 1) * PAGE] = bytes(PAGE)
    segment.path.write_bytes(data)
    found = survey.survey([segment], "00")
    assert (found.lost_segments, found.duration_ms + found.lost_ms) == (1, 60_000)
    assert 500 < found.lost_ms < 800
    ((at_s, duration_s),) = _gaps(found)
    assert duration_s * 1000 == found.lost_ms
    assert at_s == pytest.approx(page * PAGE / (137 / 20) / 1000, abs=0.1)


@pytest.mark.parametrize("kept", [0.0, 0.2, 0.7])
def test_a_truncated_segment_is_a_gap_at_its_end(tmp_path: Path, kept: float) -> None:
    """A segment that lost its end, or all of it, leaves a gap there, before the time between it and its successor."""
    cut, after = _segment(tmp_path, 1, 20), _segment(tmp_path, 2, 10, from_s=25)
    size = cut.path.stat().st_size
    with cut.path.open("r+b") as file:
        file.truncate(int(size * kept))
    found = survey.survey([cut, after], "00")
    assert found.duration_ms + found.lost_ms == pytest.approx(30_000, abs=20)
    assert found.lost_segments == 1
    at_s, duration_s = _gaps(found)[0]
    assert (at_s, len(found.gaps)) == (pytest.approx(20 * kept, abs=0.2), 1)
    assert duration_s == pytest.approx(20 * (1 - kept) + (5 if kept else 0), abs=0.2)


def test_a_truncated_last_segment_is_a_gap_at_the_end_of_the_file(tmp_path: Path) -> None:
    """Nothing follows the lost media, and it is still told."""
    segment = _segment(tmp_path, 1, 30)
    with segment.path.open("r+b") as file:
        file.truncate(segment.path.stat().st_size // 2)
    found = survey.survey([segment], "00")
    assert _gaps(found) == [(found.duration_ms / 1000, found.lost_ms / 1000)]
    assert found.duration_ms + found.lost_ms == 30_000


def test_a_deleted_segment_is_lost_media(tmp_path: Path) -> None:
    """A segment whose file is gone counts with the media that its capture noted."""
    files = [_segment(tmp_path, n, 10, from_s=11 * n) for n in range(3)]
    files[1].path.unlink()
    found = survey.survey(files, "00")
    assert (found.duration_ms, found.lost_ms, found.lost_segments) == (20_000, 10_000, 1)
    assert sum(duration_s for _, duration_s in _gaps(found)) == pytest.approx(12, abs=0.1)


def test_whole_segments_lose_nothing(tmp_path: Path) -> None:
    """Also a segment whose last tag is unfinished has all media that was noted."""
    first, second = _segment(tmp_path, 1, 10), _segment(tmp_path, 2, 10, from_s=10)
    with first.path.open("ab") as file:
        file.write(b"\x08\x00\x00\x50")
    found = survey.survey([first, second], "00")
    assert (found.lost_ms, found.lost_segments, found.duration_ms) == (0, 0, 20_000)
