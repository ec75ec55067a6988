"""Transcodes by the real ffmpeg: pictures that browsers do not play, headers that hide inside key frames, codecs that change."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import av
import pytest

from media import arrival_index, flv, transcode
from media.transcode import SegmentFile, Transcoder
from tests import flv_source, media_probe
from tests.flv_source import FFMPEG

SECOND = 0.15
HEVC = "libx265 -preset ultrafast -pix_fmt yuv420p -x265-params log-level=none"
X264 = "libx264 -preset ultrafast -pix_fmt"


async def _transcode(
    folder: Path, *segments: Iterable[flv.Tag], mode: str = "02", indexed: bool = False
) -> transcode.TranscodeOutput:
    """`indexed`: the native capture wrote the segments, with the arrival of each tag."""
    files = [SegmentFile(path=flv_source.write(folder / f"{number}.flv", tags)) for number, tags in enumerate(segments)]
    began_ms = 1_790_000_000_000
    for file in files if indexed else ():
        tags = flv_source.read(file.path)
        records = [arrival_index.record(tag.timestamp_ms, tag.kind, len(tag.payload)) for tag in tags]
        arrival_index.path_of(file.path).write_bytes(arrival_index.header(began_ms) + b"".join(records))
        began_ms += tags[-1].timestamp_ms + 40
    output = folder / ("finished.mp3" if mode == "00" else "finished.mp4")
    return await Transcoder(FFMPEG).transcode(files, mode, output)


def _each_second(times: list[float], count: int, within_s: float = SECOND) -> None:
    assert times == pytest.approx(list(range(count)), abs=within_s)


def _picture(path: Path) -> tuple[str, str, str, tuple[int, int], float]:
    """Codec, profile, pixel format, size and pixel aspect of the video track."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        aspect = float(stream.sample_aspect_ratio or 1)
        return context.name, str(context.profile), str(context.pix_fmt), (context.width, context.height), aspect


@pytest.mark.parametrize(
    ("video", "size"),
    [
        (f"{X264} yuv444p", "320x240"),
        (f"{X264} yuv420p10le", "320x240"),
        (f"{X264} yuv422p", "320x240"),
        (HEVC, "180x320"),
        (HEVC, "1920x1080"),
        ("libsvtav1 -preset 12 -svtav1-params lp=1 -pix_fmt yuv420p", "320x180"),
    ],
    ids=["444", "10-bit", "422", "hevc-portrait", "hevc-1080", "av1"],
)
async def test_a_picture_that_browsers_do_not_play_is_encoded_in_its_size(tmp_path: Path, video: str, size: str) -> None:
    """Other chroma, depths and codecs become H.264 High 4:2:0 with 8 bits, in their own size and in step."""
    tags = flv_source.content(size, 3, video=video)
    made = await _transcode(tmp_path, tags)
    width, height = map(int, size.split("x"))
    assert _picture(made.path) == ("h264", "High", "yuv420p", (width, height), 1.0)
    _each_second(media_probe.flashes(made.path), 3)
    _each_second(media_probe.beeps(made.path), 3)


async def test_the_shape_of_pixels_is_kept_in_a_copy_and_becomes_square_in_an_encoding(tmp_path: Path) -> None:
    """Pixels twice as wide stay so if copied. Beside square ones they are stretched: no bars at the sides."""
    wide = flv_source.content("160x240", 3, filters="setsar=2")
    copied = await _transcode(tmp_path, wide)
    assert _picture(copied.path)[3:] == ((160, 240), 2.0)
    folder = tmp_path / "encoded"
    folder.mkdir()
    made = await _transcode(folder, wide, flv_source.content("320x240", 3))
    assert _picture(made.path)[2:] == ("yuv420p", (320, 240), 1.0)
    assert all(frame.edge > 30 for frame in media_probe.frames(made.path))
    _each_second(media_probe.flashes(made.path), 6)


@pytest.mark.parametrize("turned", [False, True], ids=["wide-first", "square-first"])
async def test_pixels_that_change_their_shape_fill_the_picture(tmp_path: Path, turned: bool) -> None:
    """Pixels twice as wide, then square ones, in one stream: both are shown in their shape, without bars at any side."""
    kinds = [flv_source.content("160x240", 3, filters="setsar=2"), flv_source.content("320x240", 3)]
    one, other = reversed(kinds) if turned else kinds
    made = await _transcode(tmp_path, one + flv_source.shifted(other, 3_000), indexed=True)
    assert _picture(made.path)[2:] == ("yuv420p", (320, 240), 1.0)
    frames = media_probe.frames(made.path)
    assert all(min(frame.edge, frame.top) > 30 for frame in frames)
    _each_second(media_probe.flashes(made.path), 6)


async def test_start_codes_are_copied_as_lengths(tmp_path: Path) -> None:
    """Pictures with start codes instead of lengths become a copy that players read: every unit has its length."""
    tags = [
        replace(tag, payload=tag.payload[:5] + b"".join(b"\x00\x00\x00\x01" + unit for unit in flv_source.units(tag.payload)))
        if tag.kind == flv.VIDEO and tag.is_media
        else tag
        for tag in flv_source.content(duration_s=3)
    ]
    made = await _transcode(tmp_path, tags, indexed=True)
    with av.open(str(made.path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.dts is not None]
    assert len(packets) == 45
    for packet in packets:
        at = 0
        while at < len(packet):
            at += 4 + int.from_bytes(packet[at : at + 4], "big")
        assert at == len(packet)
    _each_second(media_probe.flashes(made.path), 3)


async def test_a_codec_that_begins_with_an_open_group_of_pictures_is_seen(tmp_path: Path) -> None:
    """After a reconnection the picture is HEVC, and its first key frame is no IDR picture: no more is black than the pictures
    that need what came before the connection."""
    open_groups = f"{HEVC}:open-gop=1:keyint=15:min-keyint=15:bframes=2"
    later = flv_source.content("320x240", 6, video=open_groups)
    keys = [tag.timestamp_ms for tag in later if tag.is_key and tag.is_media]
    second = flv_source.shifted(flv_source.between(later, keys[2], 6_000), -keys[2])
    made = await _transcode(tmp_path, flv_source.content(duration_s=3), second, indexed=True)
    assert len([frame for frame in media_probe.frames(made.path) if frame.centre <= 25]) <= 3


async def test_no_two_pictures_have_one_time(tmp_path: Path) -> None:
    """The last pictures of a track that changes its codec are shown after their tags, behind the end of the file: each has a time
    of its own."""
    later = flv_source.shifted(flv_source.content("320x240", 3, video=f"{HEVC}:bframes=3"), 3_040)
    made = await _transcode(tmp_path, flv_source.content(duration_s=3) + later, indexed=True)
    times = [frame.time_s for frame in media_probe.frames(made.path)]
    assert len(set(times)) == len(times)


async def test_another_size_that_only_key_frames_tell_is_encoded(tmp_path: Path) -> None:
    """Parameter sets inside a key frame change the size as a header would: one size in the file, every flash seen."""
    whole = flv_source.content("320x240", 3)
    larger = flv_source.shifted(flv_source.inband(flv_source.only(flv_source.content("480x360", 3), flv.VIDEO)), 3_000)
    sound = flv_source.only(flv_source.content(duration_s=6), flv.AUDIO)
    made = await _transcode(tmp_path, flv_source.merged(flv_source.only(whole, flv.VIDEO), larger, sound))
    assert {frame.size for frame in media_probe.frames(made.path)} == {(480, 360)}
    _each_second(media_probe.flashes(made.path), 6)
    _each_second(media_probe.beeps(made.path), 6)


async def test_h264_without_a_header_brings_its_own(tmp_path: Path) -> None:
    """A stream that tells its parameter sets inside key frames alone is copied as if it had a header."""
    made = await _transcode(tmp_path, flv_source.inband(flv_source.content(duration_s=3)))
    assert media_probe.tracks(made.path) == {"audio", "video"}
    assert len(media_probe.frames(made.path)) == 45
    _each_second(media_probe.flashes(made.path), 3)


WAYS = [(False, False), (True, False), (False, True), (True, True)]
SOUNDS = {
    "aac": ("aac -b:a 64k", 44_100),
    "opus": ("libopus -b:a 48k", 48_000),
    "mp3": ("libmp3lame", 44_100),
    "alaw": ("pcm_alaw", 8_000),
    "mulaw": ("pcm_mulaw", 8_000),
}


def _sound(codec: str, seconds: int = 10) -> tuple[flv.Tag, ...]:
    encoder, samples = SOUNDS[codec]
    return flv_source.content(duration_s=seconds, samples=samples, audio=encoder)


@pytest.mark.parametrize("mode", ["00", "02"])
@pytest.mark.parametrize(("split", "indexed"), WAYS, ids=["in-one-segment", "in-the-next-segment", "indexed", "both"])
@pytest.mark.parametrize(
    ("before", "after"), [("aac", "alaw"), ("aac", "opus"), ("aac", "mp3"), ("opus", "aac"), ("mulaw", "aac"), ("mp3", "alaw")]
)
async def test_sound_whose_codec_changes_is_one_track(
    tmp_path: Path, before: str, after: str, split: bool, indexed: bool, mode: str
) -> None:
    """Four seconds of one codec and four of another are eight seconds of sound, each beep in its place and in step with the
    pictures."""
    first = flv_source.between(_sound(before), 0, 4_000)
    second = flv_source.shifted(flv_source.between(_sound(after), 0, 4_000), 0 if split else 4_000)
    parts = (first, second) if split else (first + second,)
    made = await _transcode(tmp_path, *parts, mode=mode, indexed=indexed)
    assert made.duration_ms == pytest.approx(8_000, abs=250)  # a packet of G.711 may last 128 ms
    assert made.unreadable == ()
    _each_second(media_probe.beeps(made.path), 8)
    assert media_probe.sound_span(made.path) == pytest.approx((0, 8), abs=0.25)
    if mode == "02":
        _each_second(media_probe.flashes(made.path), 8)


@pytest.mark.parametrize(("split", "indexed"), WAYS, ids=["in-one-segment", "in-the-next-segment", "indexed", "both"])
@pytest.mark.parametrize("turned", [False, True], ids=["avc-hevc", "hevc-avc"])
async def test_a_picture_whose_codec_changes_is_one_track(tmp_path: Path, turned: bool, split: bool, indexed: bool) -> None:
    """H.264 and HEVC one after the other, and the first again, are one picture: every flash is seen, in step with the beeps, and
    no frame is black."""
    kinds = [flv_source.content(duration_s=4), flv_source.content("480x360", 4, video=HEVC)]
    one, other = reversed(kinds) if turned else kinds
    again = flv_source.shifted(one, 8_000)
    second = flv_source.shifted(other, 4_000)
    parts = (one, other, one) if split else (one + second + again,)
    made = await _transcode(tmp_path, *parts, indexed=indexed)
    frames = media_probe.frames(made.path)
    assert made.duration_ms == pytest.approx(12_000, abs=200)
    assert {frame.size for frame in frames} == {(480, 360)}
    assert all(frame.centre > 25 for frame in frames)
    _each_second(media_probe.flashes(made.path), 12, 0.25)  # the sound of each part is a little longer than its pictures
    assert media_probe.flashes(made.path) == pytest.approx(media_probe.beeps(made.path), abs=SECOND)


async def test_a_header_of_a_codec_that_is_no_more_costs_nothing(tmp_path: Path) -> None:
    """A server that still sends the header of the old codec, and packets of the new one, gives the sound of the new one."""
    stale = next(tag for tag in _sound("aac") if tag.kind == flv.AUDIO and tag.is_sequence_header)
    made = await _transcode(tmp_path, (stale, *flv_source.between(_sound("alaw"), 0, 4_000)))
    _each_second(media_probe.beeps(made.path), 4)
    _each_second(media_probe.flashes(made.path), 4)


@pytest.mark.parametrize("indexed", [False, True], ids=["plain", "indexed"])
async def test_hevc_by_the_id_of_chinese_cdns_is_read(tmp_path: Path, indexed: bool) -> None:
    """HEVC with the codec id 12 is a picture like HEVC by the enhanced header, in its own size and in step."""

    def by_id(tag: flv.Tag) -> flv.Tag:
        if tag.kind == flv.AUDIO:
            return tag
        frame, packet = tag.payload[0] & 0x70 | 12, tag.payload[0] & 0x0F
        head = bytes((frame, 0, 0, 0, 0)) if packet == 0 else bytes((frame, 1)) + (b"" if packet == 1 else bytes(3))
        return replace(tag, payload=head + tag.payload[5:])

    tags = flv_source.content("180x320", 3, video=HEVC)
    made = await _transcode(tmp_path, [by_id(tag) for tag in tags if tag.is_media or tag.is_sequence_header], indexed=indexed)
    assert made.unreadable == ()
    assert _picture(made.path)[3] == (180, 320)
    _each_second(media_probe.flashes(made.path), 3)
    _each_second(media_probe.beeps(made.path), 3)
