"""Streams that change on a bounded spool: a late track, another codec, another size, before and after bytes were released."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from assembly import piece_work
from media import bounded_file, flv, following, fragments, holes, pieces, transcode
from tencent import cos
from tests import content, flv_source, untidy_streams, waiting
from tests.integration import scripted_cos
from tests.integration.test_bounded_spool import Bounded, server, soon, uploader
from tests.integration.test_following import Growing, Sent, stream

__all__ = ["server", "soon", "uploader"]  # fixtures

NOISE = "noise=alls=9:allf=t"
SECONDS, CHANGED_S, PERIOD_S = 44, 34, 10
Tags = Sequence[flv.Tag]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What the stream is like before and after it, and the sizes of the pictures in a file that has both."""

    before: Callable[[], Tags]
    after: Callable[[], Tags]
    sizes: set[tuple[int, int]]
    pictures_before: bool = True


def _noisy() -> Tags:
    return flv_source.content(filters=NOISE)


def _sound() -> Tags:
    return flv_source.only(flv_source.content(), flv.AUDIO)


CHANGES = {
    "a late picture": Change(before=_sound, after=flv_source.content, sizes={(320, 240)}, pictures_before=False),
    "another codec": Change(before=_noisy, after=lambda: flv_source.content(video=untidy_streams.HEVC), sizes={(320, 240)}),
    "another size": Change(before=_noisy, after=lambda: flv_source.content("160x120"), sizes={(320, 240)}),
}


def changing(change: Change, at_s: int) -> Sent:
    """A stream that changes at a second, each packet arriving at its time."""
    sent: Sent = []
    for tags, begin_s, end_s in ((change.before(), 0, at_s), (change.after(), at_s, SECONDS)):
        sent += [(replace(tag, timestamp_ms=begin_s * 1_000), begin_s * 1_000.0) for tag in tags if tag.is_sequence_header]
        for repeat, tag in itertools.product(range(-(-SECONDS // PERIOD_S)), (tag for tag in tags if tag.is_media)):
            at_ms = repeat * PERIOD_S * 1_000 + tag.timestamp_ms
            if begin_s * 1_000 <= at_ms < end_s * 1_000:
                sent.append((replace(tag, timestamp_ms=at_ms), float(at_ms)))
    return sent


async def follow(bounded: Bounded, segment: Growing) -> int:
    """Follow the segment to its end. A follower that gives up has a successor; returns how many did."""
    gave_up = 0
    bounded.follower.add(segment.path)
    for second in range(SECONDS + 2):
        try:
            await bounded.grow(segment, range(second, second + 1), pause_s=0.02 * waiting.patience())
        except following.GaveUp:
            gave_up += 1
            await bounded.follower.stop()
            bounded.restart()
            bounded.follower.add(segment.path)
    await bounded.follower.stop()
    await bounded.uploads.close()
    return gave_up


@pytest.mark.parametrize("name", CHANGES)
async def test_a_change_after_a_release_makes_a_second_file(
    tmp_path: Path, soon: None, server: scripted_cos.Cos, uploader: cos.CosUploader, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The first file ends before the change, and the second one has the rest, with the change. Both show and sound each second
    once, and they follow each other."""
    monkeypatch.setattr(following, "LAG_MS", 5_000)
    monkeypatch.setattr(bounded_file, "_KEPT_BYTES", 8 << 10)
    change, folder = CHANGES[name], tmp_path / "bounded"
    folder.mkdir()
    bounded = Bounded(folder, server, uploader)
    segment = Growing(folder / "00000001.flv", changing(change, CHANGED_S))
    assert await follow(bounded, segment) >= 1
    (piece,) = pieces.of(folder)
    assert holes.used_bytes(segment.path) < 0.9 * segment.path.stat().st_size, "nothing was released"
    job = piece_work.Job(
        files=[segment.whole], mode="02", epoch=2, output=folder / "finished.00000002.mp4", target=bounded.target
    )
    made = await piece_work.finish(job, transcode.Transcoder(flv_source.FFMPEG).transcode)
    assert made is not None
    (first,) = made.earlier
    outputs, paths = (first.output, made), (tmp_path / "1.mp4", tmp_path / "2.mp4")
    for number, (path, source, output) in enumerate(zip(paths, (piece.path, job.output), outputs, strict=True), 1):
        path.write_bytes(await bounded.upload(number, source, output))
    assert outputs[0].end_ms == pytest.approx(outputs[1].start_ms, abs=100)
    assert sum(output.duration_ms for output in outputs) == pytest.approx(SECONDS * 1_000, abs=300)
    assert outputs[0].duration_ms <= CHANGED_S * 1_000 + 100
    _check(paths[0], outputs[0].duration_ms, range(0, CHANGED_S if change.pictures_before else 0), change.sizes)
    begin_s = outputs[0].duration_ms / 1_000
    _check(paths[1], outputs[1].duration_ms, range(0 if change.pictures_before else CHANGED_S, SECONDS), change.sizes, begin_s)


def _check(path: Path, duration_ms: int, flashes: range, sizes: set[tuple[int, int]], begin_s: float = 0.0) -> None:
    """A file that begins `begin_s` after the stream has a beep in each of its seconds, and a flash where it had pictures."""
    seen = content.look(path)
    assert seen.duration_s == pytest.approx(duration_ms / 1_000, abs=0.2)
    # Neither what a file begins with nor its last moment is judged.
    end_s = duration_ms / 1_000 - 0.3
    seconds = [second for second in range(SECONDS) if 0.2 < second - begin_s < end_s]
    assert [round(at + begin_s) for at in seen.beeps_s if 0.2 < at < end_s] == seconds
    assert [round(at + begin_s) for at in seen.flashes_s if 0.2 < at < end_s] == [each for each in seconds if each in flashes]
    assert not flashes or set(seen.sizes) == sizes


@pytest.mark.parametrize("name", CHANGES)
async def test_a_change_before_a_release_makes_one_file(
    tmp_path: Path, soon: None, server: scripted_cos.Cos, uploader: cos.CosUploader, name: str
) -> None:
    """Nothing was released yet, so the transcode from the segments makes the whole file, and nothing is left of the unfinished
    one."""
    change, folder = CHANGES[name], tmp_path / "bounded"
    folder.mkdir()
    bounded = Bounded(folder, server, uploader)
    segment = Growing(folder / "00000001.flv", changing(change, 3))
    assert await follow(bounded, segment) >= 1
    job = piece_work.Job(files=[segment.whole], mode="02", epoch=2, output=folder / "whole.mp4", target=bounded.target)
    transcoder = transcode.Transcoder(flv_source.FFMPEG)
    assert await piece_work.finish(job, transcoder.transcode) is None
    assert sorted(path.name for path in folder.iterdir()) == ["00000001.flv", "00000001.flv.arrivals"]
    made = await transcoder.transcode([segment.whole], "02", job.output)
    _check(made.path, made.duration_ms, range(0 if change.pictures_before else 3, SECONDS), change.sizes)
    assert not server.uploads


FIGURES: dict[str, tuple[object, str, int]] = {
    "a high bitrate": (bounded_file, "KEPT_BYTES", 1 << 20),  # holds little more than is decoded
    "a long recording": (fragments, "_MOST_ENTRIES", 8),  # has many more fragments than its index has room for
    "a late first picture": (bounded_file, "KEPT_BYTES", 2 << 20),
}


@pytest.mark.parametrize("name", FIGURES)
async def test_a_file_is_verified_by_what_is_left_of_it(
    tmp_path: Path, soon: None, server: scripted_cos.Cos, uploader: cos.CosUploader, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """At its end, the verification needs no byte that was released, whatever the bitrate and the length."""
    monkeypatch.setattr(following, "LAG_MS", 5_000)
    monkeypatch.setattr(*FIGURES[name])
    bounded = Bounded(tmp_path, server, uploader)
    # Fragments begin with a picture, and sound of the same time is up to so much earlier in the file.
    late_ms = 300 if name == "a late first picture" else 0
    sent = [
        (replace(tag, timestamp_ms=tag.timestamp_ms + late_ms * (tag.kind == flv.VIDEO)), at_ms)
        for tag, at_ms in stream(40, filters=NOISE)
    ]
    segment = Growing(tmp_path / "00000001.flv", sent)
    bounded.follower.add(segment.path)
    await bounded.grow(segment, range(43), pause_s=0.02 * waiting.patience())
    made = (await bounded.follower.finish([segment.whole], tmp_path / "unused")).made
    await bounded.follower.stop()
    (piece,) = pieces.of(tmp_path)
    assert holes.used_bytes(piece.path) < made.size_bytes / 2
    path = tmp_path / "object.mp4"
    path.write_bytes(await bounded.upload(1, piece.path, piece.output))
    assert content.look(path).duration_s == pytest.approx(made.duration_ms / 1_000, abs=0.2)
