"""Transcodes by the real ffmpeg, with checks of the finished files: beeps, flashes, sizes, black, silence, lengths, gaps."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest

from machine import errors
from machine.reasons import Reason
from media import capture, ffmpeg_capture, flv, transcode
from media.transcode import SegmentFile, Transcoder
from tests import flv_source, media_probe, waiting
from tests.flv_source import FFMPEG

SECOND = 0.12
OFFSET = 0.1


def _segment(path: Path, tags: Iterable[flv.Tag], first_ms: int | None = None, last_ms: int | None = None) -> SegmentFile:
    return SegmentFile(path=flv_source.write(path, tags), first_packet_ms=first_ms, last_packet_ms=last_ms)


def _cut(kind: int | None, from_ms: int, to_ms: int, size: str = "320x240", **options: int) -> tuple[flv.Tag, ...]:
    """A part of a stream, with both tracks or one, shifted to begin elsewhere, as segments do."""
    tags = flv_source.between(flv_source.content(size, **options), from_ms, to_ms)
    return flv_source.shifted(tags if kind is None else flv_source.only(tags, kind), 700_000)


async def _transcode(segments: list[SegmentFile], mode: str, folder: Path) -> transcode.TranscodeOutput:
    output = folder / ("finished.mp3" if mode == "00" else "finished.mp4")
    made = await Transcoder(FFMPEG).transcode(segments, mode, output)
    assert made.path == output
    assert made.size_bytes == output.stat().st_size
    assert _files(folder) == [output.name]
    return made


def _each_second(times: list[float], first: float, count: int) -> None:
    assert times == pytest.approx([first + index for index in range(count)], abs=SECOND)


def _one_gap(made: transcode.TranscodeOutput, *, at_s: float, duration_s: float) -> None:
    assert [gap.at_s for gap in made.gaps] == pytest.approx([at_s], abs=0.05)
    assert [gap.duration_s for gap in made.gaps] == [duration_s]


def _files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix in (".part", ".mp3", ".mp4"))


def _runs(pid_file: Path) -> bool:
    return Path(f"/proc/{int(pid_file.read_text())}").exists()


async def _failed(transcoder: Transcoder, segments: list[SegmentFile], output: Path) -> errors.TranscodeFailed:
    with pytest.raises(errors.TranscodeFailed) as failed:
        await transcoder.transcode(segments, "02", output)
    assert not output.with_name(output.name + ".part").exists()
    return failed.value


def _script(path: Path, body: str) -> str:
    path.write_text(f"#!/bin/bash\nreal={FFMPEG}\n{body}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("mode", ["00", "01", "02"])
async def test_two_segments_become_one_file_with_the_gap_cut(tmp_path: Path, mode: str) -> None:
    """Four and five seconds with six missing between give nine seconds with a beep and a flash in each, and the gap is reported
    at second four."""
    segments = [
        _segment(tmp_path / "1.flv", _cut(None, 0, 4_000), 1_000_000, 1_004_000),
        _segment(tmp_path / "2.flv", _cut(None, 3_000, 8_000), 1_010_000, 1_015_000),
    ]
    output = tmp_path / ("a.mp3" if mode == "00" else "a.mp4")
    made = await Transcoder(FFMPEG).transcode(segments, mode, output)
    assert made.duration_ms == pytest.approx(9_000, abs=100)
    _one_gap(made, at_s=4.0, duration_s=6.0)
    assert (made.start_ms, made.end_ms) == (1_000_000, 1_015_000)
    assert media_probe.tracks(output) == {"00": {"audio"}, "01": {"video"}, "02": {"audio", "video"}}[mode]
    if mode != "01":
        _each_second(media_probe.beeps(output), 0, 9)
    if mode != "00":
        _each_second(media_probe.flashes(output), 0, 9)
        data = output.read_bytes()
        assert data.index(b"moov") < data.index(b"mdat")


async def test_agreeing_segments_are_copied_packet_by_packet(tmp_path: Path) -> None:
    """Segments that agree are copied: the file has the source's own frames, B-frames included."""
    for bframes in (0, 2):
        tags = _cut(None, 0, 4_000, bframes=bframes)
        folder = tmp_path / str(bframes)
        folder.mkdir()
        made = await _transcode([_segment(folder / "1.flv", tags), _segment(folder / "2.flv", tags)], "02", folder)
        key = next(tag for tag in tags if tag.is_key and tag.is_media).payload[5:]
        assert made.path.read_bytes().count(key) == 2
        assert len(media_probe.frames(made.path)) == 120
        _each_second(media_probe.flashes(made.path), 0, 8)
        _each_second(media_probe.beeps(made.path), 0, 8)


async def test_a_camera_switched_on_later_is_black_before_and_sound_is_whole(tmp_path: Path) -> None:
    """Eight seconds of sound alone and then both tracks give sound from the start, exactly eight seconds of black, and then the
    picture in sync."""
    segments = [
        _segment(tmp_path / "1.flv", _cut(flv.AUDIO, 0, 8_000), 1_000_000, 1_008_000),
        _segment(tmp_path / "2.flv", _cut(None, 0, 4_000), 1_008_500, 1_012_500),
    ]
    made = await _transcode(segments, "02", tmp_path)
    frames = media_probe.frames(made.path)
    assert made.duration_ms == pytest.approx(12_000, abs=100)
    _one_gap(made, at_s=8.0, duration_s=0.5)
    assert frames[0].time_s == 0
    assert all(frame.centre < 25 for frame in frames if frame.time_s < 7.95)
    assert all(frame.centre > 30 for frame in frames if frame.time_s > 8.15)
    _each_second(media_probe.beeps(made.path), 0, 12)
    flashes = media_probe.flashes(made.path)
    _each_second(flashes, 8, 4)
    assert flashes == pytest.approx(media_probe.beeps(made.path)[8:], abs=OFFSET)


async def test_a_silent_segment_is_silence_at_its_place(tmp_path: Path) -> None:
    """Pictures without sound, then both, then pictures again give silence where sound is missing, beeps in sync with flashes, and
    copied pictures."""
    tags = _cut(None, 0, 5_000)
    segments = [
        _segment(tmp_path / "1.flv", _cut(flv.VIDEO, 0, 5_000)),
        _segment(tmp_path / "2.flv", tags),
        _segment(tmp_path / "3.flv", _cut(flv.VIDEO, 0, 3_000)),
    ]
    made = await _transcode(segments, "02", tmp_path)
    assert made.duration_ms == pytest.approx(13_000, abs=100)
    _each_second(media_probe.flashes(made.path), 0, 13)
    _each_second(media_probe.beeps(made.path), 5, 5)
    assert media_probe.beeps(made.path) == pytest.approx(media_probe.flashes(made.path)[5:10], abs=OFFSET)
    assert media_probe.sound_span(made.path) == pytest.approx((0.0, 13.0), abs=0.1)
    key = next(tag for tag in tags if tag.is_key and tag.is_media).payload[5:]
    assert made.path.read_bytes().count(key) == 3


async def test_another_picture_size_inside_a_segment_gives_frames_of_one_size(tmp_path: Path) -> None:
    """A picture that turns to portrait after three seconds and is larger in the next segment has one size, bars at the sides,
    frames that all decode, and stays in sync."""
    turned = flv_source.shifted(_cut(None, 0, 3_000, "240x320"), 3_000)
    segments = [
        _segment(tmp_path / "1.flv", _cut(None, 0, 3_000) + turned),
        _segment(tmp_path / "2.flv", _cut(None, 0, 3_000, "480x360")),
    ]
    made = await _transcode(segments, "02", tmp_path)
    frames = media_probe.frames(made.path)
    assert {frame.size for frame in frames} == {(480, 360)}
    assert len(frames) == pytest.approx(135, abs=3)
    assert all(frame.edge < 25 for frame in frames if 3.3 < frame.time_s < 5.9)
    assert all(frame.edge > 30 for frame in frames if frame.time_s < 2.9 or frame.time_s > 6.2)
    _each_second(media_probe.flashes(made.path), 0, 9)
    assert media_probe.flashes(made.path) == pytest.approx(media_probe.beeps(made.path), abs=OFFSET)


async def test_another_sampling_rate_keeps_the_time(tmp_path: Path) -> None:
    """44.1 kHz and then 48 kHz become one track with beeps a second apart, as MP4 and as MP3."""
    segments = [
        _segment(tmp_path / "1.flv", _cut(None, 0, 3_000)),
        _segment(tmp_path / "2.flv", _cut(None, 0, 3_000, samples=48_000)),
    ]
    for mode in ("02", "00"):
        made = await Transcoder(FFMPEG).transcode(segments, mode, tmp_path / f"{mode}.out")
        _each_second(media_probe.beeps(made.path), 0, 6)


async def test_a_torn_segment_is_used_from_its_first_key_frame_to_its_last_tag(tmp_path: Path) -> None:
    """Pictures before the first key frame and a torn tail are dropped, and sound and picture stay in sync across the seam."""
    first = _segment(tmp_path / "1.flv", _cut(None, 0, 3_000))
    first.path.write_bytes(first.path.read_bytes()[:-7])
    middle = flv_source.between(flv_source.content(gop=30), 1_200, 5_000)
    made = await _transcode([first, _segment(tmp_path / "2.flv", middle)], "02", tmp_path)
    assert made.duration_ms == pytest.approx(6_800, abs=100)
    beeps, flashes = media_probe.beeps(made.path), media_probe.flashes(made.path)
    assert beeps == pytest.approx([0, 1, 2, 3.8, 4.8, 5.8], abs=SECOND)
    assert flashes == pytest.approx(beeps, abs=OFFSET)


async def test_one_track_alone_is_accepted_in_mode_02_and_none_is_no_media(tmp_path: Path) -> None:
    """Sound alone and pictures alone make an MP4 each; pictures alone in mode 00, and no file at all, are "no-media" without a
    retry."""
    for kind, name in ((flv.AUDIO, "audio"), (flv.VIDEO, "video")):
        made = await Transcoder(FFMPEG).transcode(
            [_segment(tmp_path / name, _cut(kind, 0, 2_000))], "02", tmp_path / f"{name}.mp4"
        )
        assert media_probe.tracks(made.path) == {name}
    for segments in ([SegmentFile(path=tmp_path / "video")], [SegmentFile(path=tmp_path / "never")], []):
        with pytest.raises(errors.TranscodeFailed) as failed:
            await Transcoder(FFMPEG).transcode(segments, "00", tmp_path / "a.mp3")
        assert (failed.value.reason, failed.value.retry) == ("no-media", False)


async def test_a_live_room_with_a_late_camera_is_recorded_completely(tmp_path: Path) -> None:
    """A live capture that the new track ends, continued and joined, loses no sound before the camera except that of the handover,
    which is a gap."""
    whole = flv_source.content()
    pictures = flv_source.shifted(flv_source.between(flv_source.only(whole, flv.VIDEO), 0, 4_000), 4_000)
    tags = flv_source.merged(flv_source.between(flv_source.only(whole, flv.AUDIO), 0, 8_000), pictures)
    live = flv_source.LiveSource()
    await live.start()
    live.streams["anna"] = flv_source.Stream(tags=tags, declares=(True, False))
    live.streams["again"] = flv_source.Stream(tags=flv_source.shifted(flv_source.between(tags, 5_000, 8_000), -5_000))
    ended = []
    for name in ("anna", "again"):
        spec = capture.CaptureSpec(address=live.address(name), path=tmp_path / f"{name}.flv", mode="02")
        running = ffmpeg_capture.FfmpegCapture(spec, ffmpeg=FFMPEG)
        await running.start()
        ended.append(await asyncio.wait_for(running.wait(), waiting.limit_s(20)))
    await live.stop()
    assert [exit_.reason for exit_ in ended] == [Reason.NEW_TRACK, Reason.EOF]
    segments = [
        SegmentFile(
            path=tmp_path / f"{name}.flv",
            first_packet_ms=exit_.progress.first_packet_ms,
            last_packet_ms=exit_.progress.last_packet_ms,
        )
        for name, exit_ in zip(("anna", "again"), ended, strict=True)
    ]
    made = await _transcode(segments, "02", tmp_path)
    assert made.duration_ms == pytest.approx(sum(exit_.progress.media_ms for exit_ in ended), abs=200)
    assert made.gaps[0].duration_s == pytest.approx(0.3, abs=0.4)
    assert media_probe.beeps(made.path)[:4] == pytest.approx([0, 1, 2, 3], abs=SECOND)
    assert media_probe.frames(made.path)[0].centre < 25
    assert media_probe.frames(made.path)[-1].centre > 30


async def test_a_cancelled_transcode_leaves_neither_process_nor_part(tmp_path: Path) -> None:
    """A cancelled transcode ends only after its process has ended and the partial file is removed. While it runs, captures have
    the higher priority."""
    pid_file = tmp_path / "pid"
    binary = _script(tmp_path / "ffmpeg", f"echo $$ > {pid_file}; exec sleep 60")
    segments = [_segment(tmp_path / "1.flv", _cut(None, 0, 2_000))]
    task = asyncio.create_task(Transcoder(binary).transcode(segments, "02", tmp_path / "a.mp4"))
    await waiting.until(lambda: pid_file.exists() and pid_file.read_text().strip())
    niceness = [os.getpriority(os.PRIO_PROCESS, pid) for pid in (0, int(pid_file.read_text()))]
    assert niceness[1] == min(19, niceness[0] + 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not _runs(pid_file)
    assert not (tmp_path / "a.mp4.part").exists()
    assert len(asyncio.all_tasks()) == 1


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("cat > /dev/null; echo it broke >&2; exit 3", "ffmpeg-failed"),
        ("exit 3", "ffmpeg-failed"),
        ("kill -9 $$", "killed"),
        ("exec sleep 60", "ffmpeg-failed"),
        ('echo "[out#0/mp4 @ 0x1] [error] Error writing trailer: No space left on device" >&2; exit 228', "disk-full"),
        ('for a; do [[ $a == *.part ]] && out=$a; done; cat > /dev/null; echo short > "$out"', "verify-failed"),
        (
            'case "$*" in *pipe:0*) cat > /dev/null; for a; do [[ $a == *.part ]] && out=$a; done\n'
            'exec $real -loglevel error -f lavfi -i sine=d=1 -f lavfi -i color=d=1 -f mp4 -y "$out";; *) exec $real "$@";; esac',
            "verify-failed",
        ),
    ],
)
async def test_each_failure_has_its_reason_and_leaves_the_segments(tmp_path: Path, body: str, reason: str) -> None:
    """An ffmpeg that fails, dies, stalls or writes too little has its own reason each, and no output appears and the segments
    stay."""
    segments = [_segment(tmp_path / "1.flv", _cut(None, 0, 4_000))]
    before = segments[0].path.read_bytes()
    failed = await _failed(Transcoder(_script(tmp_path / "ffmpeg", body), stuck_after_s=1), segments, tmp_path / "a.mp4")
    assert (failed.reason, failed.retry) == (reason, True)
    assert not (tmp_path / "a.mp4").exists()
    assert segments[0].path.read_bytes() == before


async def test_a_full_disk_and_a_lost_folder_are_distinguished(tmp_path: Path) -> None:
    """The real ffmpeg on a full device and with a missing folder gives two reasons."""
    segments = [_segment(tmp_path / "1.flv", _cut(None, 0, 4_000))]
    (tmp_path / "a.mp4.part").symlink_to("/dev/full")
    assert (await _failed(Transcoder(FFMPEG), segments, tmp_path / "a.mp4")).reason == "disk-full"
    assert (await _failed(Transcoder(FFMPEG), segments, tmp_path / "gone" / "a.mp4")).reason == "spool-lost"
    shutil.copytree(tmp_path, tmp_path / "copy")
    lost = [SegmentFile(path=tmp_path / "nowhere" / "1.flv")]
    assert (await _failed(Transcoder(FFMPEG), lost, tmp_path / "a.mp4")).reason == "spool-lost"


async def test_an_unreadable_segment_is_a_fault_of_the_spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When reading fails during a transcode, as on a lost network disk, ffmpeg is killed and the reason is the spool."""
    segment = _segment(tmp_path / "1.flv", _cut(None, 0, 4_000))
    read, calls = flv.TagReader.read, iter(range(10))

    def fail_later(reader: flv.TagReader, max_bytes: int = 1 << 20) -> list[flv.Tag]:
        if next(calls) > 1:
            raise OSError(errno.ESTALE, "Stale file handle")
        return read(reader, max_bytes)

    monkeypatch.setattr(flv.TagReader, "read", fail_later)
    failed = await _failed(Transcoder(FFMPEG), [segment], tmp_path / "a.mp4")
    assert (failed.reason, failed.retry) == ("spool-lost", True)


async def test_a_copy_that_does_not_verify_is_encoded_instead(tmp_path: Path) -> None:
    """When verification refuses the copied file, everything is encoded and verified again."""
    binary = _script(tmp_path / "ffmpeg", 'case "$*" in *"-c:v copy"*) cat > /dev/null; exit 1;; *) exec $real "$@";; esac')
    made = await Transcoder(binary).transcode([_segment(tmp_path / "1.flv", _cut(None, 0, 4_000))], "02", tmp_path / "a.mp4")
    _each_second(media_probe.flashes(made.path), 0, 4)
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".part")]


@pytest.mark.parametrize(("kind", "tracks"), [(flv.AUDIO, {"video"}), (flv.VIDEO, {"audio"})])
async def test_a_track_that_nothing_reads_costs_no_other_track(tmp_path: Path, kind: int, tracks: set[str]) -> None:
    """An unknown codec in one track leaves a file with the other one, and is named."""
    unknown = {flv.AUDIO: 0xD0, flv.VIDEO: 0x1D}[kind]
    tags = [
        dataclasses.replace(tag, payload=bytes((unknown,)) + tag.payload[1:]) if tag.kind == kind else tag
        for tag in _cut(None, 0, 5_000)
    ]
    made = await _transcode([_segment(tmp_path / "1.flv", tags, 1_000_000, 1_005_000)], "02", tmp_path)
    assert media_probe.tracks(made.path) == tracks
    assert made.duration_ms == pytest.approx(5_000, abs=150)
    assert [codec.split()[:2] for codec in made.unreadable] == [["audio" if kind == flv.AUDIO else "video", "codec"]]
