"""The end of a growing segment for a live view: where it begins, what is in it, and where it ends."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from media import arrival_index, flv, live_tail
from tests import flv_source

AVC = flv_source.configuration(flv.VIDEO, flv_source.AVC_HEADER)
LARGER = flv_source.configuration(flv.VIDEO, flv_source.LARGER_AVC_HEADER)
AAC = flv_source.configuration(flv.AUDIO, flv_source.AAC_HEADER)
GOP_MS = 2_000


def both(begin_ms: int, end_ms: int, *, picture_bytes: int = 5) -> list[flv.Tag]:
    """Sound and pictures of this time, with a key frame every two seconds."""
    tags = [flv_source.sound(at) for at in range(begin_ms, end_ms, 23)]
    tags += [flv_source.picture(at, key=at % GOP_MS == 0, payload=bytes(picture_bytes)) for at in range(begin_ms, end_ms, 40)]
    return sorted(tags, key=lambda tag: tag.timestamp_ms)


class Segment:
    """A segment that a test writes, with its arrival index."""

    def __init__(self, path: Path, tags: Iterable[flv.Tag], *, index: bool = True) -> None:
        self.path = path
        self._index = index
        path.write_bytes(flv.header(audio=True, video=True))
        if index:
            arrival_index.path_of(path).write_bytes(arrival_index.header(1))
        self.add(tags)

    def add(self, tags: Iterable[flv.Tag]) -> None:
        """Write these tags to its end."""
        tags = list(tags)
        self.add_bytes(b"".join(flv.encode(tag.kind, tag.timestamp_ms, tag.payload) for tag in tags))
        if self._index:
            with arrival_index.path_of(self.path).open("ab") as index:
                index.write(b"".join(arrival_index.record(0, tag.kind, len(tag.payload)) for tag in tags))

    def add_bytes(self, data: bytes) -> None:
        """Write bytes to its end."""
        with self.path.open("ab") as file:
            file.write(data)


def first(data: bytes) -> tuple[int, Sequence[flv.Tag]]:
    """The tracks that the first bytes of a view declare, and its tags."""
    return data[4], list(flv.tags(data[flv.FIRST_TAG_BYTES :]))


def times(data: bytes) -> list[tuple[int, int]]:
    """Kind and time of the tags of later bytes."""
    return [(tag.kind, tag.timestamp_ms) for tag in flv.tags(data)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "00000001.flv"


def test_a_view_begins_at_the_newest_key_frame(path: Path) -> None:
    """The headers come first; then everything from the key frame on, also what is written later, as soon as it is whole."""
    segment = Segment(path, [AAC, AVC, *both(0, 11_000)])
    tail = live_tail.LiveTail(path, "02")
    flags, tags = first(tail.read())
    assert (flags, [tag.payload for tag in tags[:2]]) == (5, [AAC.payload, AVC.payload])
    assert (tags[2].kind, tags[2].is_key, tags[2].timestamp_ms) == (flv.VIDEO, True, 10_000)
    assert tags[-1].timestamp_ms == both(0, 11_000)[-1].timestamp_ms
    assert tail.read() == b""
    more = both(11_000, 11_100)
    whole = flv.encode(more[-1].kind, more[-1].timestamp_ms, more[-1].payload)
    segment.add(more[:-1])
    segment.add_bytes(whole[:-1])
    assert times(tail.read()) == [(tag.kind, tag.timestamp_ms) for tag in more[:-1]]
    segment.add_bytes(whole[-1:])
    assert times(tail.read()) == [(more[-1].kind, more[-1].timestamp_ms)]
    assert not tail.over
    tail.close()


@pytest.mark.parametrize("index", [True, False])
def test_a_view_of_a_long_segment(path: Path, index: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads the end only, and finds the headers that hold there: with an index those of the last change, else the first."""
    monkeypatch.setattr(live_tail, "WINDOW_BYTES", 100_000)
    monkeypatch.setattr(live_tail, "LARGEST_WINDOW_BYTES", 200_000)
    before, after = both(0, 30_000, picture_bytes=400), both(30_000, 60_000, picture_bytes=400)
    Segment(path, [AAC, AVC, *before, *([LARGER] if index else []), *after], index=index)
    assert path.stat().st_size > 300_000
    tail = live_tail.LiveTail(path, "02")
    _, tags = first(tail.read())
    assert [tag.payload for tag in tags[:2]] == [AAC.payload, (LARGER if index else AVC).payload]
    assert (tags[2].is_key, tags[2].timestamp_ms) == (True, 58_000)
    tail.close()


def test_a_view_waits_for_a_key_frame(path: Path) -> None:
    """Pictures without one are not shown."""
    segment = Segment(path, [AAC, AVC, *both(1_000, 1_880)])
    tail = live_tail.LiveTail(path, "02")
    assert tail.read() == b""
    segment.add(both(1_880, 2_100))
    _, tags = first(tail.read())
    assert tags[2].timestamp_ms == 2_000
    tail.close()


@pytest.mark.parametrize(("mode", "flags"), [("00", 4), ("01", 1)])
def test_only_the_tracks_of_the_mode(path: Path, mode: str, flags: int) -> None:
    """Sound alone begins a second back."""
    Segment(path, [AAC, AVC, *both(0, 5_000)])
    tail = live_tail.LiveTail(path, mode)
    found, tags = first(tail.read())
    assert found == flags
    assert {tag.kind for tag in tags} == {flv.AUDIO if mode == "00" else flv.VIDEO}
    assert 3_900 <= tags[1].timestamp_ms <= 4_050
    tail.close()


def test_a_silent_track_is_left_out(path: Path) -> None:
    """A camera that is off for some time would hold the sound back in every player."""
    Segment(path, [AAC, AVC, *both(0, 3_000), *(flv_source.sound(at) for at in range(3_000, 9_000, 23))])
    tail = live_tail.LiveTail(path, "02")
    flags, tags = first(tail.read())
    assert (flags, {tag.kind for tag in tags}) == (4, {flv.AUDIO})
    tail.close()


CHANGES = {
    "another size": [LARGER, *both(10_000, 10_100)],
    "a jump forward": both(20_000, 20_100),
    "a jump back": both(1_000, 1_100),
    "a track that falls silent": [flv_source.sound(at) for at in range(10_000, 17_000, 23)],
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_view_ends_where_the_stream_changes(path: Path, change: str) -> None:
    """Nothing of what follows is in it; the next view begins behind the change."""
    segment = Segment(path, [AAC, AVC, *both(0, 10_000)])
    tail = live_tail.LiveTail(path, "02")
    tail.read()
    segment.add(CHANGES[change])
    told = tail.read()
    assert tail.over
    shown = len(list(itertools.takewhile(lambda tag: tag.timestamp_ms < 16_000, CHANGES[change])))
    assert len(times(told)) <= (shown if change.startswith("a track") else 0)
    assert tail.read() == b""
    tail.close()


def test_a_view_ends_where_a_track_begins(path: Path) -> None:
    """The camera is switched on: the next view has it."""
    segment = Segment(path, [AAC, *(flv_source.sound(at) for at in range(0, 5_000, 23))])
    tail = live_tail.LiveTail(path, "02")
    assert first(tail.read())[0] == 4
    segment.add([AVC, *both(5_000, 5_100)])
    segment.add([flv_source.picture(6_000, key=True)])
    tail.read()
    assert tail.over
    tail.close()
    again = live_tail.LiveTail(path, "02")
    assert first(again.read())[0] == 5
    again.close()
