"""Following transcodes: the file that is written while its segments grow has the bytes of the one from the finished segments."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from assembly import live_uploads
from assembly import work as node_work
from bench import whole_file
from config import settings
from machine import due_work, errors, segments
from media import (
    arrival_index,
    ffmpeg_process,
    flv,
    followers,
    following,
    joiner,
    placement,
    spool,
    survey,
    timeline,
    track_clock,
    transcode,
    transcode_plan,
    verify,
)
from tencent import cos, credentials, file_parts
from tests import examples, flv_source, waiting
from tests.integration import scripted_cos

TASK = "01" + "F" * 24
BEGAN_MS = 1_790_000_000_000
Sent = list[tuple[flv.Tag, float]]


def stream(
    seconds: int, *, begin_ms: int = 0, size: str = "320x240", seed: int = 1, filters: str = "null", rate: int = 15
) -> Sent:
    """A stream with both tracks, whose packets arrive up to 0.9 s late now and then, in the order of their arrival."""
    noise = random.Random(seed)
    tags = flv_source.content(size, rate=rate, filters=filters)
    sent = [(replace(tag, timestamp_ms=begin_ms), float(begin_ms)) for tag in tags if tag.is_sequence_header]
    late_ms, last_ms = 0.0, 0.0
    for repeat in range(-(-seconds // 10)):
        for tag in (tag for tag in tags if tag.is_media):
            at_ms = begin_ms + tag.timestamp_ms + repeat * 10_000
            late_ms = noise.uniform(0, 900) if noise.random() < 0.002 else max(0.0, late_ms * 0.98 + noise.uniform(0, 4))
            last_ms = max(last_ms, at_ms + late_ms)
            if at_ms < begin_ms + seconds * 1000:
                sent.append((replace(tag, timestamp_ms=at_ms), last_ms))
    return sent


class Growing:
    """A segment that a native capture writes, up to a time."""

    def __init__(self, path: Path, sent: Sent, *, unrecorded: int = 0) -> None:
        """The records of so many tags are written later than the tags."""
        self.path = path
        self._sent = sent
        self._unrecorded = unrecorded
        self._written = self._recorded = 0

    def until(self, at_ms: float) -> None:
        """Write what arrived by then: the tags first, then their records."""
        arrived = sum(arrival_ms <= at_ms for _, arrival_ms in self._sent)
        fresh = self._sent[self._written : arrived]
        if not fresh:
            return
        recorded = arrived if arrived == len(self._sent) else max(self._recorded, arrived - self._unrecorded)
        with self.path.open("ab") as file:
            file.write(flv.header(audio=True, video=True) * (self._written == 0))
            file.write(b"".join(flv.encode(tag.kind, tag.timestamp_ms, tag.payload) for tag, _ in fresh))
        with arrival_index.path_of(self.path).open("ab") as file:
            file.write(arrival_index.header(BEGAN_MS) * (self._written == 0))
        self._written = arrived
        self.record(recorded)

    def record(self, until: int | None = None) -> None:
        """Write the records of the tags before this one, or of all that are written."""
        known = self._sent[self._recorded : self._written if until is None else until]
        with arrival_index.path_of(self.path).open("ab") as file:
            file.write(b"".join(arrival_index.record(round(at), tag.kind, len(tag.payload)) for tag, at in known))
        self._recorded += len(known)

    @property
    def ends_ms(self) -> float:
        """The last arrival."""
        return self._sent[-1][1]

    @property
    def whole(self) -> joiner.SegmentFile:
        """The segment with what its capture noted."""
        line = timeline.Timeline(timeline.wanted("02"))
        for tag, _ in self._sent:
            line.place(tag)
        first_ms, last_ms = (BEGAN_MS + round(self._sent[at][1]) for at in (0, -1))
        return joiner.SegmentFile(path=self.path, first_packet_ms=first_ms, last_packet_ms=last_ms, media_ms=line.end_ms)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packets are joined some seconds after their arrival, and not minutes."""
    monkeypatch.setattr(track_clock, "ENVELOPE_MS", 2_000.0)
    monkeypatch.setattr(track_clock, "SETTLED_MS", 2_000)
    monkeypatch.setattr(following, "LAG_MS", 5_000)
    monkeypatch.setattr(following, "PLACE_EVERY_MS", 1_000)


async def grow(recording: following.Following, growing: Iterable[Growing]) -> None:
    """Let the segments grow, one after the other, in steps of a second."""
    for segment in growing:
        recording.add(segment.path)
        for second in range(round(segment.ends_ms / 1000) + 2):
            segment.until(second * 1_000)
            await recording.look()


async def followed(
    growing: Sequence[Growing], mode: str, folder: Path, encoders: asyncio.Semaphore | None = None
) -> tuple[transcode.TranscodeOutput, following.Following]:
    """Follow the segments while they grow."""
    extension = "mp3" if mode == "00" else "mp4"
    recording = following.Following(flv_source.FFMPEG, mode, folder / f"finished.{extension}.part", encoders=encoders)
    try:
        await grow(recording, growing)
        finished = await recording.finish([segment.whole for segment in growing], folder / f"followed.{extension}")
    finally:
        await recording.stop()
    return finished.made, recording


async def check_same(made: transcode.TranscodeOutput, growing: Iterable[Growing], mode: str, folder: Path) -> None:
    """The file and all that is reported about it equal those of the transcode from the segments."""
    output = folder / f"afterwards{made.path.suffix}"
    again = await transcode.Transcoder(flv_source.FFMPEG).transcode([segment.whole for segment in growing], mode, output)
    assert replace(made, path=output) == again
    assert made.path.read_bytes() == output.read_bytes()


def parts(folder: Path) -> list[str]:
    return [path.name for path in folder.glob("*.part")]


@pytest.mark.parametrize("mode", ["00", "01", "02"])
async def test_a_followed_file_has_the_same_bytes(tmp_path: Path, soon: None, mode: str) -> None:
    """Two segments with a pause between them, of packets that jitter: the file is the same in every mode."""
    growing = [
        Growing(tmp_path / "00000001.flv", stream(20)),
        Growing(tmp_path / "00000002.flv", stream(12, begin_ms=26_000, seed=2)),
    ]
    made, recording = await followed(growing, mode, tmp_path)
    assert recording.restarts == 0
    assert made.duration_ms == pytest.approx(32_000, abs=1_000)
    await check_same(made, growing, mode, tmp_path)


async def test_records_that_come_later_than_their_tags(tmp_path: Path, soon: None) -> None:
    """A look between a tag and the record of its arrival waits for the record."""
    growing = [Growing(tmp_path / "00000001.flv", stream(20), unrecorded=5)]
    made, _ = await followed(growing, "02", tmp_path)
    await check_same(made, growing, "02", tmp_path)


async def test_records_that_are_written_during_a_look(tmp_path: Path, soon: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that was missing a moment ago may be there when the look asks which one is."""
    growing = Growing(tmp_path / "00000001.flv", stream(20), unrecorded=5)
    asked = placement.Placement.covers
    missing: list[bool] = []

    def covers(self: placement.Placement, tag: flv.Tag) -> bool:
        found = asked(self, tag)
        if not found:
            missing.append(True)
            growing.record()
        return found

    monkeypatch.setattr(placement.Placement, "covers", covers)
    made, _ = await followed([growing], "02", tmp_path)
    assert missing
    await check_same(made, [growing], "02", tmp_path)


@pytest.mark.parametrize("empty", [1, 2])
async def test_a_pull_that_brought_no_media(tmp_path: Path, soon: None, empty: int) -> None:
    """A segment of configurations only, before or between others, changes nothing."""
    sent = [stream(20), stream(12, begin_ms=26_000, seed=2)]
    at_ms = sent[empty - 1][0][1] - 1_000 if empty > 1 else 0.0
    sent.insert(empty - 1, [(tag, at_ms) for tag, _ in stream(1) if tag.is_sequence_header])
    growing = [Growing(tmp_path / f"{number:08d}.flv", each) for number, each in enumerate(sent, 1)]
    made, recording = await followed(growing, "02", tmp_path)
    assert recording.restarts == 0
    await check_same(made, growing, "02", tmp_path)


async def test_a_superseded_capture_that_writes_a_while_longer(tmp_path: Path, soon: None) -> None:
    """What it adds behind the end that was read is in the transcode's file: the follower gives up."""
    first, second = (
        Growing(tmp_path / "00000001.flv", stream(20)),
        Growing(tmp_path / "00000002.flv", stream(20, begin_ms=15_000)),
    )
    recording = following.Following(flv_source.FFMPEG, "02", tmp_path / "finished.mp4.part")
    recording.add(first.path)
    recording.add(second.path)
    for second_s in range(15):
        first.until(second_s * 1_000)
        await recording.look()
    second.until(30_000)
    await recording.look()
    first.until(16_000)
    second.until(40_000)
    with pytest.raises(following.GaveUp, match="grew behind its end"):
        await recording.finish([first.whole, second.whole], tmp_path / "followed.mp4")
    await recording.stop()


async def test_packets_that_do_not_move_are_joined_soon(tmp_path: Path, soon: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """If packets arrive as their tags say, the file is soon a part of LAG_MS behind them only, and it is the same."""
    monkeypatch.setattr(following, "LAG_MS", 20_000)
    sent = [(tag, float(tag.timestamp_ms)) for tag in flv_source.content(duration_s=40)]
    growing = [Growing(tmp_path / "00000001.flv", sent)]
    made, recording = await followed(growing, "02", tmp_path)
    assert recording.lag_ms <= following.LAG_MS / 2
    assert recording.restarts == 0
    await check_same(made, growing, "02", tmp_path)


async def test_a_late_track_begins_the_file_again(tmp_path: Path, soon: None) -> None:
    """Sound that begins after the file has begun changes its plan: the file begins again with both tracks, once."""
    sent = [(tag, at) for tag, at in stream(30) if tag.kind == flv.VIDEO or at > 14_901]
    heads = [(tag, 14_901.0) for tag, _ in stream(1) if tag.kind == flv.AUDIO and tag.is_sequence_header]
    growing = [Growing(tmp_path / "00000001.flv", sorted((*sent, *heads), key=lambda each: each[1]))]
    made, recording = await followed(growing, "02", tmp_path)
    assert recording.restarts == 1
    await check_same(made, growing, "02", tmp_path)


async def test_pictures_that_turn_out_to_be_late_begin_the_file_again(
    tmp_path: Path, soon: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If arrivals say later that joined packets were live at another time, the file begins again with the right times."""
    monkeypatch.setattr(track_clock, "ENVELOPE_MS", 20_000.0)
    monkeypatch.setattr(following, "MOST_RESTARTS", 30)
    sent = [(tag, at + 400 if tag.kind == flv.VIDEO and at < 10_000 else at) for tag, at in stream(20)]
    growing = [Growing(tmp_path / "00000001.flv", sorted(sent, key=lambda each: each[1]))]
    made, recording = await followed(growing, "02", tmp_path)
    assert recording.restarts > 0
    assert recording.lag_ms == following.LAG_MS
    await check_same(made, growing, "02", tmp_path)


async def test_a_muted_track_changes_nothing(tmp_path: Path, soon: None) -> None:
    """Sound that is missing for seconds becomes silence, as in the transcode from the segments."""
    sent = [(tag, at) for tag, at in stream(30) if tag.kind == flv.VIDEO or tag.is_sequence_header or not 9_000 < at < 16_000]
    growing = [Growing(tmp_path / "00000001.flv", sent)]
    made, _ = await followed(growing, "02", tmp_path)
    await check_same(made, growing, "02", tmp_path)


@pytest.mark.parametrize("by_index", [True, False])
async def test_a_track_that_ends_too_early_fails_the_verification(tmp_path: Path, by_index: bool) -> None:
    """Each track's length is compared, also where only the last seconds are demuxed."""
    growing = Growing(tmp_path / "00000001.flv", stream(40))
    growing.until(41_000)
    found = survey.survey([growing.whole], "02")
    chosen = transcode_plan.plan(found, "02")
    made = await transcode.Transcoder(flv_source.FFMPEG).transcode([growing.whole], "02", tmp_path / "a.mp4")
    seen = await verify.verify(flv_source.FFMPEG, made.path, found, chosen, by_index=by_index)
    assert seen.duration_ms == made.duration_ms
    for kind, name in ((flv.AUDIO, "a"), (flv.VIDEO, "v")):
        found.ends_ms[kind] += 1_000
        with pytest.raises(errors.TranscodeFailed, match=f"track {name}"):
            await verify.verify(flv_source.FFMPEG, made.path, found, chosen, by_index=by_index)
        found.ends_ms[kind] -= 1_000


async def test_files_that_end_together_are_decoded_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that wait for their verification share an ffmpeg. One whose last pictures are damaged fails, and no other does."""
    growing = Growing(tmp_path / "00000001.flv", stream(12))
    growing.until(13_000)
    found = survey.survey([growing.whole], "02")
    chosen = transcode_plan.plan(found, "02")
    made = await transcode.Transcoder(flv_source.FFMPEG).transcode([growing.whole], "02", tmp_path / "a.mp4")
    files = [tmp_path / f"{number}.mp4" for number in range(5)]
    whole = made.path.read_bytes()
    for number, file in enumerate(files):
        file.write_bytes(whole if number != 2 else whole[:-6_000] + b"\xff" * 6_000)
    runs, start = list[int](), ffmpeg_process.Child.start

    async def counted(self: ffmpeg_process.Child) -> None:
        runs.append(self.argv.count("-i"))
        await start(self)

    monkeypatch.setattr(ffmpeg_process.Child, "start", counted)
    decoder = verify.Decoder()
    checks = [verify.verify(flv_source.FFMPEG, file, found, chosen, by_index=True, decoder=decoder) for file in files]
    async with decoder._turn:
        ending = asyncio.gather(*checks, return_exceptions=True)
        await waiting.until(lambda: len(decoder._waiting) == len(files), what="the files to wait")
    seen = await ending
    assert [each.duration_ms for each in seen if isinstance(each, verify.Seen)] == [made.duration_ms] * 4
    assert isinstance(seen[2], errors.TranscodeFailed)
    assert seen[2].reason == "verify-failed"
    assert max(runs) == 8


async def test_a_node_writes_and_uploads_while_the_recording_runs(tmp_path: Path) -> None:
    """A node with FOLLOW writes the file in a process of its own, and sends its parts, while the recording runs. The transcode
    takes the file over and gives what it would have made. The upload sends the rest, and the object is the file: it begins with
    its index, decodes without a complaint, and Chromium plays and seeks it. A follower that is dropped leaves nothing behind, in
    the bucket neither, unless the upload was saved: another node may complete it."""
    folder = spool.Spool(tmp_path / "spool")
    folder.start()
    async with scripted_cos.serving() as server:
        environ = {"HOME": str(tmp_path), "FOLLOW": "true", "COS_ENDPOINT": f"http://127.0.0.1:{server.port}"}
        chain = credentials.CredentialChain({}, clock=lambda: 0, home=tmp_path, system_profile=tmp_path / "none")
        work = node_work.NodeWork(settings.load(environ), folder, chain)
        work.followers = followers.Followers(flv_source.FFMPEG, after_s=0)
        work.live_uploads = live_uploads.LiveUploads(look_every_s=0.05)
        work.uploader = cos.CosUploader(2, first_part_bytes=scripted_cos.MIB)
        await work.uploader.start()
        try:
            await _record(work, folder, server)
        finally:
            await work.live_uploads.stop()
            await work.followers.stop()
            await work.uploader.stop()
            folder.stop()


async def _record(work: node_work.NodeWork, folder: spool.Spool, server: scripted_cos.Cos) -> None:
    recording = examples.recording(TASK, mode="02")
    job = due_work.Assignment(session=examples.session(TASK), recording=recording, secrets=examples.SECRETS)
    growing = Growing(folder.segment_path(TASK, "al", 1, 1), stream(250, filters="noise=alls=8:allf=t"))
    part = folder.output_path(TASK, "al", 1, "02", 1).with_suffix(".mp4.part")
    growing.until(245_000)
    work.capture(job, 1, lambda _: None)
    await waiting.until(lambda: server.operations.count("part") >= 2, 30)
    growing.until(250_000 + 1_000)
    known = growing.whole
    told = segments.Segment(
        epoch=1, node="n1", first_packet_ms=known.first_packet_ms, last_packet_ms=known.last_packet_ms,
        media_ms=known.media_ms or 0, registered_ms=BEGAN_MS, reason="eof",
    )  # fmt: skip
    made = await work.transcode(job, 2, [told])
    assert not part.exists()

    async def save(_: dict[str, Any]) -> None:
        return

    done = await work.upload(replace(job, recording=replace(recording, output=made)), None, save)
    data = folder.output_path(TASK, "al", 1, "02", 2).read_bytes()
    assert (server.objects.popitem()[1], done.crc64) == (data, made.crc64)
    # The first part holds the index too. None is sent twice, except one that was on its way when the end began.
    parts = len(list(file_parts.layout(scripted_cos.MIB, data.index(b"mdat") - 44, len(data))))
    assert parts <= server.operations.count("part") <= parts + 1
    assert "parts" not in server.operations
    assert replace(made, epoch=3) == await work.transcode(job, 3, [told])
    both = [folder.output_path(TASK, "al", 1, "02", epoch) for epoch in (2, 3)]
    assert await asyncio.to_thread(whole_file.faults, *both, folder.root) == []
    for number, saved in ((2, True), (3, False)):
        work.capture(job, 1, lambda _: None)
        await waiting.until(lambda number=number: server.operations.count("create") == number, 30)  # type: ignore[misc]
        (upload_id,) = server.uploads
        await work.unfollow(recording.key, {"upload_id": upload_id} if saved else None)
        assert (part.exists(), work.followed(), list(server.uploads)) == (False, [], [upload_id] * saved)
