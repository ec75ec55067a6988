"""The FLV reader and media time: whole, growing, torn and damaged files, and the definition of media."""

from __future__ import annotations

from pathlib import Path

import pytest

from media import flv, segment_scan, timeline
from tests import flv_source

TAGS = (
    flv_source.configuration(flv.VIDEO, flv_source.AVC_HEADER),
    flv_source.configuration(flv.AUDIO, flv_source.AAC_HEADER),
    flv_source.picture(0, key=True),
    flv_source.sound(10),
    flv_source.sound(0x01_23_45_67),
)


def _read_all(reader: flv.TagReader) -> list[flv.Tag]:
    tags: list[flv.Tag] = []
    while more := reader.read():
        tags += more
    return tags


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    """Kinds, times beyond 24 bits and payloads survive a round through a file."""
    reader = flv.TagReader(flv_source.write(tmp_path / "a.flv", TAGS))
    assert tuple(_read_all(reader)) == TAGS
    assert not reader.torn
    reader.close()
    reader.close()


def test_a_growing_file_gives_each_tag_once_when_it_is_whole(tmp_path: Path) -> None:
    """Fed one byte at a time, the reader returns every tag exactly when its last byte is there."""
    data = flv_source.write(tmp_path / "a.flv", TAGS).read_bytes()
    growing = tmp_path / "b.flv"
    growing.touch()
    reader = flv.TagReader(growing)
    seen: list[flv.Tag] = []
    with growing.open("ab", buffering=0) as file:
        for at in range(len(data)):
            file.write(data[at : at + 1])
            seen += reader.read()
            assert not reader.damaged
    assert tuple(seen) == TAGS
    assert not reader.torn


@pytest.mark.parametrize("cut", [1, 5, 12, 20])
def test_a_torn_tail_is_where_the_file_ends(tmp_path: Path, cut: int) -> None:
    """A file cut inside its last tag gives all tags before it, and is marked torn."""
    path = flv_source.write(tmp_path / "a.flv", TAGS)
    path.write_bytes(path.read_bytes()[:-cut])
    reader = flv.TagReader(path)
    assert tuple(_read_all(reader)) == (TAGS[:-1] if cut < 19 else TAGS[:-2])
    assert reader.torn


def test_zeros_after_a_crash_are_damage_not_tags(tmp_path: Path) -> None:
    """A tail of zeros, which a file system leaves after a power cut, ends the file and never counts as media."""
    path = flv_source.write(tmp_path / "a.flv", TAGS)
    path.write_bytes(path.read_bytes() + bytes(4096))
    reader = flv.TagReader(path)
    assert tuple(_read_all(reader)) == TAGS
    assert reader.damaged
    assert reader.read() == []


def test_what_is_no_flv_holds_nothing(tmp_path: Path) -> None:
    """Another kind of file is damaged from the start."""
    path = tmp_path / "a.flv"
    path.write_bytes(b"<html>" * 100)
    reader = flv.TagReader(path)
    assert reader.read() == []
    assert reader.damaged


def test_configuration_and_end_markers_are_no_media() -> None:
    """Sequence headers, AVC's end of sequence and metadata do not count as packets; AAC, AVC and extended frames do."""
    end = flv.Tag(kind=flv.VIDEO, timestamp_ms=0, payload=b"\x17\x02\x00\x00\x00")
    hevc_start = flv.Tag(kind=flv.VIDEO, timestamp_ms=0, payload=b"\x90hvc1...")
    hevc_frame = flv.Tag(kind=flv.VIDEO, timestamp_ms=0, payload=b"\x91hvc1...")
    script = flv.Tag(kind=flv.SCRIPT, timestamp_ms=0, payload=b"\x02\x00\x0aonMetaData")
    assert [tag.is_media for tag in (*TAGS, end, hevc_start, hevc_frame, script)] == [
        False,
        False,
        True,
        True,
        True,
        False,
        False,
        True,
        False,
    ]
    assert [tag.is_sequence_header for tag in (*TAGS[:3], hevc_start, script)] == [True, True, False, True, False]
    assert hevc_frame.is_key
    assert not flv_source.picture(0).is_key


def test_media_time_counts_wanted_tracks_only() -> None:
    """In mode 00 video has no position, in mode 01 audio has none, and the end is the last packet's end."""
    for mode, expected in (("00", [None, 0, 23]), ("01", [0, None, None]), ("02", [0, 10, 33])):
        line = timeline.Timeline(timeline.wanted(mode))
        places = [line.place(tag) for tag in (flv_source.picture(0, key=True), flv_source.sound(10), flv_source.sound(33))]
        assert places == expected
    assert line.end_ms == 33 + 23


def test_pictures_count_from_the_first_key_frame() -> None:
    """Video that cannot be decoded is not media, and the offset between audio and video stays."""
    line = timeline.Timeline(timeline.wanted("02"))
    tags = [flv_source.picture(1000), flv_source.sound(1020), flv_source.picture(1040), flv_source.picture(1100, key=True)]
    assert [line.place(tag) for tag in tags] == [None, 0, None, 80]


def test_a_jump_is_cut_and_remembered() -> None:
    """After an hour missing, or a clock set back, media time continues where the media ended; a pause of seconds stays."""
    line = timeline.Timeline(timeline.wanted("00"))
    at = [0, 23, 4_000, 3_604_000, 3_604_023, 50, 73]
    assert [line.place(flv_source.sound(ms)) for ms in at] == [0, 23, 4_000, 4_023, 4_046, 4_069, 4_092]
    assert line.jumps == [timeline.Jump(at_ms=4_023, missing_ms=3_599_977), timeline.Jump(at_ms=4_069, missing_ms=0)]


def test_a_scan_says_what_a_crashed_segment_holds(tmp_path: Path) -> None:
    """A scan gives length by mode, tracks, and times from the file's modification time; a missing file is empty."""
    sounds = [flv_source.sound(5_000 + 20 * index) for index in range(51)]
    path = flv_source.write(tmp_path / "a.flv", [*TAGS[:3], *sounds])
    path.write_bytes(path.read_bytes() + b"\x08\x00\x00")
    seen = segment_scan.scan(path, "00")
    assert (seen.media_ms, seen.has_audio, seen.has_video, seen.torn) == (1_020, True, True, True)
    written_ms = path.stat().st_mtime_ns // 1_000_000
    assert seen.last_packet_ms == written_ms
    assert seen.first_packet_ms == written_ms - 1_000
    assert segment_scan.scan(path, "01").media_ms == 40
    missing = segment_scan.scan(tmp_path / "none.flv", "02")
    assert not missing.exists
    assert (missing.media_ms, missing.last_packet_ms) == (0, None)


@pytest.mark.parametrize("payload", [b"\xdf\x01zz", b"\xcf\x01zz", b"\xff\x01zz", b"\x91zzzzzz"])
def test_sound_that_nothing_reads_is_no_media(payload: bytes) -> None:
    """Packets of an unknown codec have no position, and the codec is remembered; AAC next to them counts."""
    line = timeline.Timeline(timeline.wanted("00"))
    assert line.place(flv.Tag(kind=flv.AUDIO, timestamp_ms=0, payload=payload)) is None
    assert line.end_ms == 0
    assert list(line.unreadable) == [flv.AUDIO]
    assert line.place(flv_source.sound(20)) == 0


@pytest.mark.parametrize("payload", [b"\x18\x01zz", b"\x1d\x01zz", b"\x91zzzzzz"])
def test_pictures_that_nothing_reads_are_no_media(payload: bytes) -> None:
    """The same for video, also with an unknown FourCC; HEVC, AV1 and VP9 count."""
    line = timeline.Timeline(timeline.wanted("01"))
    assert line.place(flv.Tag(kind=flv.VIDEO, timestamp_ms=0, payload=payload)) is None
    assert line.unreadable[flv.VIDEO].startswith("video codec ")
    for number, codec in enumerate((b"hvc1", b"av01", b"vp09")):
        packet = flv.Tag(kind=flv.VIDEO, timestamp_ms=number * 40, payload=b"\x91" + codec + b"zz")
        assert line.place(packet) == number * 40


UNITS = [b"\x09\xf0", b"\x67\x42\x00\x1e\x00\x03\x01", b"\x65\x88\x84"]
LENGTHS = b"".join(len(unit).to_bytes(4, "big") + unit for unit in UNITS)


@pytest.mark.parametrize("head", [b"\x17\x01\x00\x00\x00", b"\x91hvc1\x00\x00\x00", b"\x93hvc1"], ids=["avc", "hevc", "hevc-x"])
@pytest.mark.parametrize("code", [b"\x00\x00\x01", b"\x00\x00\x00\x01"], ids=["3 bytes", "4 bytes"])
def test_start_codes_become_lengths(tmp_path: Path, head: bytes, code: bytes) -> None:
    """Some publishers write pictures with start codes, which no MP4 player reads."""
    tag = flv.Tag(kind=flv.VIDEO, timestamp_ms=0, payload=head + b"".join(code + unit for unit in UNITS))
    (found,) = flv_source.read(flv_source.write(tmp_path / "1.flv", [tag]))
    assert found.payload == head + LENGTHS


@pytest.mark.parametrize(
    "payload",
    [
        b"\x17\x01\x00\x00\x00" + LENGTHS,
        b"\x17\x01\x00\x00\x00" + b"\x00\x00\x00\x01\x0a" + LENGTHS,  # a length of 1 looks like a start code
        b"\x17\x00\x00\x00\x00\x00\x00\x00\x01\x01",
        b"\x90av01\x00\x00\x01",
    ],
)
def test_other_pictures_stay_as_they_are(payload: bytes) -> None:
    """Lengths that lead to the end are lengths; headers and other codecs have neither."""
    assert flv.usual_payload(flv.VIDEO, payload) == payload
