"""Bounded spools: a recording's disk stays small while COS takes its file, and nothing is lost where that cannot go on."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fastcrc
import pytest

from assembly import live_uploads, piece_uploads, piece_work
from assembly import work as node_work
from config import settings
from machine import due_work, internal_events, model, results, segments, states
from machine import recording as recording_module
from media import (
    flv,
    followers,
    following,
    free_space,
    holes,
    pieces,
    placed_pass,
    rest,
    spool,
    survey,
    track_clock,
    transcode,
)
from tencent import cos, credentials, file_parts
from tests import examples, flv_source, waiting
from tests.integration import scripted_cos
from tests.integration.test_following import BEGAN_MS, TASK, Growing, stream

NOISE = "noise=alls=9:allf=t"
MIB = scripted_cos.MIB


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packets are joined half a minute after their arrival, and not minutes."""
    monkeypatch.setattr(track_clock, "ENVELOPE_MS", 2_000.0)
    monkeypatch.setattr(track_clock, "SETTLED_MS", 2_000)
    monkeypatch.setattr(following, "LAG_MS", 32_000)
    monkeypatch.setattr(following, "PLACE_EVERY_MS", 1_000)


class Bounded:
    """One recording on a bounded spool: its folder, its follower, and the uploads of its pieces."""

    def __init__(self, folder: Path, server: scripted_cos.Cos, uploader: cos.CosUploader, mode: str = "02") -> None:
        self.folder = folder
        self.mode = mode
        self.peak_bytes = 0
        self._server = server
        self._uploader = uploader
        extension = "mp3" if mode == "00" else "mp4"
        self._first = folder / f"00000001.p1.{extension}"
        self.uploads = self._new_uploads()
        self.follower = self._new_follower()

    def target(self, number: int) -> cos.CosTarget:
        return replace(scripted_cos.target(self._server), key=f"room/al_1{'' if number == 1 else f'-{number}'}")

    def restart(self) -> None:
        """The follower and the node begin again, as after a kill."""
        self.follower, self.uploads = self._new_follower(), self._new_uploads()

    def _new_follower(self) -> following.Following:
        known = pieces.settled(self.folder)
        begin = known[-1].begin if known else None
        path = pieces.next_path(self._first, known)
        return following.Following(flv_source.FFMPEG, self.mode, path, bound_bytes=16 * MIB, begin=begin)

    def _new_uploads(self) -> piece_uploads.PieceUploads:
        async def connect(target: cos.CosTarget) -> Any:
            return self._uploader.connect(target, scripted_cos.KEYS)

        places = piece_uploads.Places(folder=self.folder, target=self.target, connect=connect)
        return piece_uploads.PieceUploads(self._uploader, places)

    async def grow(self, segment: Growing, seconds: range, *, upload: bool = True, pause_s: float = 0.0) -> None:
        """The segment grows by one second after the other; follower and uploads look each time. `pause_s` is for ffmpeg."""
        for second in seconds:
            segment.until(second * 1_000)
            await waiting.passed(pause_s)
            await self.follower.look()
            if upload:
                await self.uploads.look()
            self.peak_bytes = max(self.peak_bytes, used_bytes(self.folder))

    async def upload(self, number: int, path: Path, output: model.Output) -> bytes:
        """Complete the object of a file; returns its bytes."""
        place = path.with_name(path.name + pieces.UPLOAD_SUFFIX)
        target = self.target(number)
        state = piece_uploads.load(place, target)
        verified = file_parts.VerifiedFile(size_bytes=output.size_bytes, crc64=output.crc64)
        await self._uploader.upload(path, target, scripted_cos.KEYS, state=state, save=_unsaved, verified=verified)
        return self._server.objects[target.key]


async def _unsaved(_: object) -> None: ...


def used_bytes(folder: Path) -> int:
    """What a folder's files take on the disk; a file with two names counts once."""
    found = {path.stat().st_ino: holes.used_bytes(path) for path in folder.rglob("*") if path.is_file()}
    return sum(found.values())


def decoded(path: Path, kind: str) -> list[str]:
    """The hashes of all decoded pictures ("v") or sounds ("a") of a file, which must decode without an error."""
    play = [flv_source.FFMPEG, "-xerror", "-v", "error", "-i", str(path), "-map", f"0:{kind}", "-fps_mode", "passthrough"]
    made = subprocess.run([*play, "-f", "framemd5", "-"], check=True, capture_output=True, text=True)
    assert made.stderr == ""
    return [line.rsplit(",", 1)[1].strip() for line in made.stdout.splitlines() if not line.startswith("#")]


@pytest.fixture
async def server() -> AsyncIterator[scripted_cos.Cos]:
    async with scripted_cos.serving() as running:
        yield running


@pytest.fixture
async def uploader() -> AsyncIterator[cos.CosUploader]:
    one = cos.CosUploader(threads=2, pauses_s=(0, 0, 0), silence_timeout_s=5)
    await one.start()
    yield one
    await one.stop()


@pytest.mark.parametrize("mode", ["00", "02"])
async def test_the_spool_stays_small_and_the_object_is_whole(
    tmp_path: Path, soon: None, server: scripted_cos.Cos, uploader: cos.CosUploader, mode: str
) -> None:
    """What COS has is released, from the segments and from the file. The object decodes to the same as the file of a spool that
    keeps everything, and its index is in front."""
    folder = tmp_path / "bounded"
    folder.mkdir()
    bounded = Bounded(folder, server, uploader, mode)
    sent = stream(130, filters=NOISE)
    segment, kept = Growing(folder / "00000001.flv", sent), Growing(tmp_path / "00000001.flv", sent)
    bounded.follower.add(segment.path)
    await bounded.grow(segment, range(133))
    made = (await bounded.follower.finish([segment.whole], folder / "unused")).made
    await bounded.follower.stop()
    kept.until(133_000)
    whole = await transcode.Transcoder(flv_source.FFMPEG).transcode([kept.whole], mode, tmp_path / f"a{made.path.suffix}")
    if mode == "02":
        assert bounded.peak_bytes < 20 * MIB < 40 * MIB < kept.path.stat().st_size
        assert holes.used_bytes(segment.path) < segment.path.stat().st_size / 4
    data = await bounded.upload(1, made.path, made.stored(1))
    assert (len(data), str(fastcrc.crc64.xz(data))) == (made.size_bytes, made.crc64)
    path = tmp_path / f"object{made.path.suffix}"
    path.write_bytes(data)
    for kind in "av" if mode == "02" else "a":  # the last packet of sound may be cut
        assert decoded(path, kind)[:-1] == decoded(whole.path, kind)[:-1]
    told = replace(made.stored(1), size_bytes=0, crc64="", duration_ms=whole.duration_ms)
    assert told == replace(whole.stored(1), size_bytes=0, crc64="")
    assert made.duration_ms == pytest.approx(whole.duration_ms, abs=50)  # ffmpeg reads another index
    if mode == "02":
        assert data.index(b"moov") < data.index(b"sidx") < data.index(b"moof")


class Crash(Exception):
    """The process is gone."""


STEPS = {
    "before the note": "media.pieces.Piece.save",
    "before the release of segments": "media.bounded_file.BoundedFile._release",
    "before the state of the upload": "assembly.piece_uploads.save",
    "before the release of parts": "media.holes.punch",
}


@pytest.mark.parametrize(("mode", "step"), [*(("02", step) for step in STEPS), ("00", "before the release of segments")])
async def test_a_crash_cuts_the_file_in_two(
    tmp_path: Path,
    soon: None,
    server: scripted_cos.Cos,
    uploader: cos.CosUploader,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    step: str,
) -> None:
    """After a crash at any step of a release, what was written is a file of its own, and what follows is in a second one: both
    play, and together they have each packet of the recording once."""
    monkeypatch.setattr(following, "LAG_MS", 5_000)
    folder = tmp_path / "bounded"
    folder.mkdir()
    bounded = Bounded(folder, server, uploader, mode)
    sent = stream(70, filters=NOISE)
    segment, kept = Growing(folder / "00000001.flv", sent), Growing(tmp_path / "00000001.flv", sent)
    bounded.follower.add(segment.path)
    await bounded.grow(segment, range(50))
    with monkeypatch.context() as broken:
        broken.setattr(STEPS[step], _crash)
        with pytest.raises(Crash):
            await bounded.grow(segment, range(50, 64), pause_s=0.1 * waiting.patience())
    await bounded.follower.stop()
    bounded.restart()
    bounded.follower.add(segment.path)
    await bounded.grow(segment, range(64, 66))
    kept.until(72_000)
    segment.until(72_000)
    await bounded.follower.stop()
    await bounded.uploads.close()
    transcoder = transcode.Transcoder(flv_source.FFMPEG)
    extension = "mp3" if mode == "00" else "mp4"
    job = piece_work.Job(
        files=[segment.whole], mode=mode, epoch=2, output=folder / f"finished.00000002.{extension}", target=bounded.target
    )
    made = await piece_work.finish(job, transcoder.transcode)
    assert made is not None
    outputs = [*(file.output for file in made.earlier), made]
    assert len(outputs) > 1
    names = [*(piece.path for piece in pieces.of(folder)), job.output]
    paths = [tmp_path / f"{number}.{extension}" for number in range(1, len(outputs) + 1)]
    for number, (path, name, output) in enumerate(zip(paths, names, outputs, strict=True), 1):
        path.write_bytes(await bounded.upload(number, name, output))
    whole = await transcoder.transcode([kept.whole], mode, tmp_path / f"whole.{extension}")
    for one, other in itertools.pairwise(outputs):
        assert one.end_ms == pytest.approx(other.start_ms, abs=100)
    assert sum(output.duration_ms for output in outputs) == pytest.approx(whole.duration_ms, abs=50 * len(outputs))
    if mode == "02":
        assert [picture for path in paths for picture in decoded(path, "v")] == decoded(whole.path, "v")
    sounds = [len(decoded(path, "a")) for path in (*paths, whole.path)]
    assert sum(sounds[:-1]) == pytest.approx(sounds[-1], abs=2 * len(paths))


def _crash(*_: object) -> None:
    raise Crash


@contextlib.asynccontextmanager
async def node(home: Path, server: scripted_cos.Cos, folder: Path) -> AsyncIterator[node_work.NodeWork]:
    """The work of a node with a bounded spool in this folder, which looks often."""
    place = spool.Spool(folder)
    place.start()
    environ = {"HOME": str(home), "SPOOL_POLICY": "bounded", "COS_ENDPOINT": f"http://127.0.0.1:{server.port}"}
    chain = credentials.CredentialChain({}, clock=lambda: 0, home=home, system_profile=home / "none")
    made = node_work.NodeWork(settings.load(environ), place, chain)
    made.followers = followers.Followers(flv_source.FFMPEG, after_s=0, look_every_s=0.2)
    made.live_uploads = live_uploads.LiveUploads(look_every_s=0.05)
    await made.uploader.start()
    space = free_space.FreeSpace(place)
    await space.measure()
    await made.bound_spool(space)
    assert made.bound_bytes == 64 * MIB
    try:
        yield made
    finally:
        await made.live_uploads.stop()
        await made.followers.stop()
        await made.uploader.stop()
        place.stop()


def _job(speaker: str, output: model.Output | None = None) -> due_work.Assignment:
    recording = examples.recording(TASK, speaker, mode="02", state=states.UPLOADING, output=output)
    return due_work.Assignment(session=examples.session(TASK), recording=recording, secrets=examples.SECRETS)


def _told(growing: Growing) -> segments.Segment:
    known = growing.whole
    return segments.Segment(
        epoch=1, node="n1", first_packet_ms=known.first_packet_ms, last_packet_ms=known.last_packet_ms,
        media_ms=known.media_ms or 0, registered_ms=BEGAN_MS, reason="eof",
    )  # fmt: skip


async def test_a_killed_follower_leaves_two_objects(tmp_path: Path, server: scripted_cos.Cos) -> None:
    """A follower that is killed has a successor, which writes the rest: the recording is Done with two objects, each with an
    entry of its own, and between them nothing is missing."""
    folder = tmp_path / "spool" / TASK / "al_1"
    folder.mkdir(parents=True)
    growing = Growing(folder / "00000001.flv", stream(250, filters="noise=alls=8:allf=t"))
    growing.until(245_000)
    async with node(tmp_path, server, tmp_path / "spool") as work:
        job = _job("al")
        work.capture(job, 1, lambda _: None)
        await waiting.until(lambda: server.operations.count("part") >= 2, 30)
        (pid,) = work.followers.pids()
        os.kill(pid, signal.SIGKILL)
        growing.until(251_000)
        made = await work.transcode(job, 2, [_told(growing)])
        assert await work.transcode(job, 3, [_told(growing)]) == replace(made, epoch=3)
        job = _job("al", made)
        done = await work.upload(job, None, _nothing)
        await work.remove(job.recording.key, 9)
    assert not folder.exists()
    names = [f"p/{TASK}/al_1.mp4", f"p/{TASK}/al_1-2.mp4"]
    assert sorted(server.objects) == sorted(names)
    assert server.uploads == {}
    leased = model.changed(job.recording, job=model.Job(kind="upload", state="leased"))
    event = internal_events.UploadFinished(epoch=1, size_bytes=done.size_bytes, crc64=done.crc64, url=done.url)
    facts = recording_module.RecordingFacts(now_ms=BEGAN_MS + 300_000, outcome=event)
    entries = results.file_entries(recording_module.decide(leased, "upload-finished", facts).recording)
    assert [(entry["Status"], entry["Code"], entry["Missing"]) for entry in entries] == [(1, "Success", 0)] * 2
    assert [entry["RecordFile"].rpartition("/")[2] for entry in entries] == ["al_1.mp4", "al_1-2.mp4"]
    for name, entry in zip(names, entries, strict=True):
        assert (len(server.objects[name]), entry["Crc64"]) == (entry["Size"], str(fastcrc.crc64.xz(server.objects[name])))
    assert sum(entry["Duration"] for entry in entries) == pytest.approx(250, abs=1)


async def _nothing(_: dict[str, Any]) -> None: ...


async def test_a_slow_cos_never_stops_a_capture(
    tmp_path: Path, soon: None, server: scripted_cos.Cos, uploader: cos.CosUploader
) -> None:
    """While COS is away, the file waits at its limit and the segment grows on, undoubled. When COS is back, all of it follows."""
    folder = tmp_path / "bounded"
    folder.mkdir()
    bounded = Bounded(folder, server, uploader)
    segment = Growing(folder / "00000001.flv", stream(150, filters=NOISE))
    bounded.follower.add(segment.path)
    await bounded.grow(segment, range(120), upload=False)
    piece = pieces.of(folder)[0]
    assert 16 * MIB < holes.used_bytes(piece.path) < 26 * MIB
    assert used_bytes(folder) < segment.path.stat().st_size + 8 * MIB
    await bounded.grow(segment, range(120, 153))
    assert holes.used_bytes(piece.path) < 10 * MIB
    made = (await bounded.follower.finish([segment.whole], folder / "unused")).made
    await bounded.follower.stop()
    assert len(await bounded.upload(1, made.path, made.stored(1))) == made.size_bytes


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder, on a disk of 100 MB of its own where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m", "none", str(folder)], check=False, capture_output=True)
    yield folder
    if mount.returncode == 0:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


async def test_two_speakers_on_a_small_disk(tmp_path: Path, server: scripted_cos.Cos, small_disk: Path) -> None:
    """Two recordings whose packets come late now and then fit on a disk of 100 MB, although it has to hold their last minutes.
    Both objects are whole."""
    async with node(tmp_path, server, small_disk / "spool") as work:
        growing = {}
        for speaker in ("al", "bo"):
            folder = small_disk / "spool" / TASK / f"{speaker}_1"
            folder.mkdir(parents=True)
            growing[speaker] = Growing(folder / "00000001.flv", stream(260, filters="noise=alls=5:allf=t"))
            growing[speaker].until(205_000)
            work.capture(_job(speaker), 1, lambda _: None)
        peak_bytes = 0
        for second in range(210, 265, 10):
            for each in growing.values():
                each.until(second * 1_000)
            until_ms = BEGAN_MS + second * 1_000 - following.LAG_MS - 25_000
            await waiting.until(lambda until_ms=until_ms: all(_joined_ms(each) >= until_ms for each in growing.values()), 30)
            peak_bytes = max(peak_bytes, used_bytes(small_disk))
        made = await asyncio.gather(*(work.transcode(_job(name), 2, [_told(each)]) for name, each in growing.items()))
        peak_bytes = max(peak_bytes, used_bytes(small_disk))
        assert peak_bytes < 100 * MIB
        for speaker, output in zip(growing, made, strict=True):
            assert not output.earlier
            await work.upload(_job(speaker, output), None, _nothing)
            data = server.objects[f"p/{TASK}/{speaker}_1.mp4"]
            assert (len(data), str(fastcrc.crc64.xz(data))) == (output.size_bytes, output.crc64)
            assert output.duration_ms == pytest.approx(260_000, abs=1_000)


def _joined_ms(growing: Growing) -> float:
    """Up to when the media of a segment is in the file (Unix ms)."""
    known = pieces.of(growing.path.parent)
    return known[-1].begin.live_ms if known and known[-1].begin else float(BEGAN_MS)


def test_the_rest_of_a_segment_begins_with_each_track(tmp_path: Path) -> None:
    """A reading from the middle of a segment takes the packets of each kind that are in no piece, and no other ones."""
    growing = Growing(tmp_path / "00000001.flv", stream(10))
    growing.until(12_000)
    reader = flv.TagReader(growing.path)
    tags = [tag for _ in range(100) for tag in reader.read()]
    reader.close()
    picture = next(tag for tag in tags if tag.is_key and tag.is_media and tag.timestamp_ms > 4_000)
    sound = [tag for tag in tags if tag.kind == flv.AUDIO and tag.offset > picture.offset][3]
    kinds = {flv.VIDEO: picture.offset, flv.AUDIO: sound.offset}
    begin = rest.Begin(epoch=1, offset=picture.offset, record=tags.index(picture), kinds=kinds, live_ms=0.0)
    placed = placed_pass.read(survey.Survey(), growing.path, frozenset(kinds), begin)
    assert placed is not None
    left = {kind: sum(tag.kind == kind and tag.offset >= from_ for tag in tags) for kind, from_ in kinds.items()}
    assert {kind: track.packets for kind, track in placed.placement.tracks.items()} == left
    assert placed.placement.begins_ms == pytest.approx(BEGAN_MS + picture.timestamp_ms, abs=100)
