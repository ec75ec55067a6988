"""Damaged FLV files: the reader continues behind the damage, and the lost media is a cut in media time."""

from __future__ import annotations

from pathlib import Path

import pytest

from media import flv, timeline
from tests import flv_source

PAGE = 4096


def _stream(seconds: int) -> list[flv.Tag]:
    """A stream with both tracks: 300 bytes of sound every 20 ms, 2,000 bytes of picture every 100 ms."""
    sounds = [flv_source.sound(ms, bytes((ms // 20 % 255 + 1,)) * 300) for ms in range(0, seconds * 1000, 20)]
    pictures = [
        flv_source.picture(ms, key=ms % 1000 == 0, payload=bytes((ms // 100 % 255 + 1,)) * 2000)
        for ms in range(0, seconds * 1000, 100)
    ]
    return list(flv_source.merged(pictures, sounds))


def _damaged(path: Path, change: dict[int, bytes], *, cut: int | None = None) -> list[flv.Tag]:
    """The tags that a reader finds after bytes were overwritten and the file was cut."""
    data = bytearray(flv_source.write(path, _stream(20)).read_bytes())
    for at, written in change.items():
        data[at : at + len(written)] = written
    path.write_bytes(data[:cut])
    return _read(path)


def _read(path: Path) -> list[flv.Tag]:
    reader = flv.TagReader(path)
    tags: list[flv.Tag] = []
    while more := reader.read(64 << 10):
        tags += more
    reader.close()
    return tags


def _ends(tags: list[flv.Tag]) -> list[int]:
    """Where each tag ends in an undamaged file."""
    ends, at = [], len(flv.header(audio=True, video=True))
    for tag in tags:
        at += 15 + len(tag.payload)
        ends.append(at)
    return ends


@pytest.mark.parametrize("page", [0, 1, 17, 60, -1])
def test_a_zeroed_page_costs_what_it_held(tmp_path: Path, page: int) -> None:
    """All tags outside a zeroed page are read, and the first one behind it is marked."""
    whole = _stream(20)
    size = _ends(whole)[-1]
    at = page * PAGE if page >= 0 else size // PAGE * PAGE
    tags = _damaged(tmp_path / "a.flv", {at: bytes(min(PAGE, size - at))})
    kept = [tag for tag, end in zip(whole, _ends(whole), strict=True) if end <= at or end - 15 - len(tag.payload) >= at + PAGE]
    found = [(tag.kind, tag.timestamp_ms, tag.payload) for tag in tags]
    assert [each for each in ((tag.kind, tag.timestamp_ms, tag.payload) for tag in kept) if each not in found] == []
    assert len(whole) - len(found) <= 12
    marked = [tag.timestamp_ms for tag in tags if tag.after_damage]
    assert len(marked) == (0 if page == -1 else 1)


@pytest.mark.parametrize("bit", range(8))
@pytest.mark.parametrize("byte", [0, 1, 2, 3])
def test_a_flipped_bit_costs_one_tag(tmp_path: Path, byte: int, bit: int) -> None:
    """A flipped bit in kind or size, also one that makes a tag longer than the file, costs that tag and no other."""
    whole = _stream(20)
    victim = 900
    at = _ends(whole)[victim - 1]
    begin = flv.encode(whole[victim].kind, whole[victim].timestamp_ms, whole[victim].payload)
    tags = _damaged(tmp_path / "a.flv", {at + byte: bytes((begin[byte] ^ 1 << bit,))})
    others = [(tag.timestamp_ms, tag.payload) for tag in [*whole[:victim], *whole[victim + 1 :]]]
    assert [(tag.timestamp_ms, tag.payload) for tag in tags if tag.payload != whole[victim].payload] == [
        other for other in others if other[1] != whole[victim].payload
    ]


def test_damage_in_a_growing_file_is_passed_as_soon_as_tags_follow(tmp_path: Path) -> None:
    """A reader that waits at damaged bytes continues when whole tags are written behind them."""
    path = tmp_path / "a.flv"
    whole = _stream(2)
    data = flv_source.write(path, whole).read_bytes()
    middle = _ends(whole)[50]
    path.write_bytes(data[:middle] + bytes(100))
    reader = flv.TagReader(path)
    assert len(reader.read()) == 51
    assert reader.read() == []
    assert reader.damaged
    with path.open("ab") as file:
        file.write(data[middle:])
    tags = reader.read()
    assert [tag.payload for tag in tags] == [tag.payload for tag in whole[51:]]
    assert [tag.after_damage for tag in tags[:2]] == [True, False]
    assert not reader.torn


def test_lost_media_is_cut_and_remembered(tmp_path: Path) -> None:
    """Three damaged stretches are three cuts; the media and the cuts are together as long as the whole."""
    whole = _stream(20)
    ends = _ends(whole)
    stretches = {ends[first]: bytes(ends[last] - ends[first]) for first, last in ((100, 160), (400, 430), (900, 1000))}
    line = timeline.Timeline(timeline.wanted("02"))
    for tag in _damaged(tmp_path / "a.flv", stretches):
        line.place(tag)
    assert [jump.damaged for jump in line.jumps] == [True] * 3
    assert [jump.missing_ms for jump in line.jumps] == pytest.approx([1_000, 500, 1_667], abs=120)
    assert line.end_ms + sum(jump.missing_ms for jump in line.jumps) == pytest.approx(20_000, abs=50)
