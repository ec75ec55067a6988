"""The index of an MP4 at its front: the same bytes on every file system, the same media, and offsets of 64 bits where needed."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest

from machine import errors
from media import flv, mp4_index
from tests import flv_source

OFFSETS = 40


def _box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content


def _file(path: Path, media: bytes, offset: int = OFFSETS + 8) -> Path:
    """A file as ffmpeg leaves it: one chunk of media, and the index behind it."""
    table = _box(b"stco", struct.pack(">III", 0, 1, offset))
    index = _box(b"moov", _box(b"trak", _box(b"mdia", _box(b"minf", _box(b"stbl", table)))))
    path.write_bytes(_box(b"ftyp", bytes(24)) + _box(b"free", b"") + _box(b"mdat", media) + index)
    return path


def _hashes(path: Path) -> bytes:
    """The decoded pictures and sounds, each with its time."""
    argv = [flv_source.FFMPEG, "-loglevel", "error", "-i", str(path), "-f", "framehash", "-"]
    return subprocess.run(argv, check=True, capture_output=True).stdout


@pytest.mark.parametrize("inserts", [True, False])
def test_the_index_moves_and_the_media_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, inserts: bool) -> None:
    """The offset finds the same media behind the index, whether the file system can insert space or not, and a second call
    changes nothing."""
    media = bytes(range(256)) * 40_000
    monkeypatch.setattr(mp4_index, "_MOVED_BYTES", 1 << 20)
    path = _file(tmp_path / "a.mp4", media)
    if not inserts:
        monkeypatch.setattr(mp4_index, "_INSERT_RANGE", 1 << 30)
    mp4_index.to_front(path)
    found = path.read_bytes()
    at = found.index(b"stco") + 12
    assert found.index(b"moov") < found.index(b"mdat")
    begin = struct.unpack_from(">I", found, at)[0]
    assert found[begin:] == media
    assert begin % 4096 == OFFSETS + 8
    mp4_index.to_front(path)
    assert path.read_bytes() == found


def test_boxes_behind_the_index_stay(tmp_path: Path) -> None:
    """A box that follows the index is still at the end, the media is found, and there is one index."""
    path = _file(tmp_path / "a.mp4", b"media" * 1_000)
    more = _box(b"free", b"x" * 5_000)
    path.write_bytes(path.read_bytes() + more)
    mp4_index.to_front(path)
    found = path.read_bytes()
    assert (found.count(b"moov"), found.endswith(more)) == (1, True)
    assert found[struct.unpack_from(">I", found, found.index(b"stco") + 12)[0] :].startswith(b"media" * 1_000)


def test_offsets_beyond_four_gigabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose offsets may exceed 32 bits behind its index gets offsets of 64 bits."""
    monkeypatch.setattr(mp4_index, "_NARROW_MOST", 10_000)
    path = _file(tmp_path / "a.mp4", b"media" * 1_000)
    mp4_index.to_front(path)
    found = path.read_bytes()
    at = found.index(b"co64") + 12
    assert found[struct.unpack_from(">Q", found, at)[0] :] == b"media" * 1_000


def test_a_real_file_keeps_its_content(tmp_path: Path) -> None:
    """A file by ffmpeg has the same pictures and sounds at the same times afterwards, and its index is in front."""
    source = flv_source.write(tmp_path / "a.flv", flv_source.content(duration_s=4))
    path = tmp_path / "a.mp4"
    argv = [flv_source.FFMPEG, "-loglevel", "error", "-i", str(source), "-c", "copy", str(path)]
    subprocess.run(argv, check=True)
    before = _hashes(path)
    mp4_index.to_front(path)
    assert _hashes(path) == before
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def _made(path: Path, *options: str) -> Path:
    """A file of 4 s by ffmpeg from a source with B-frames, its index in front."""
    source = flv_source.write(path.with_suffix(".flv"), flv_source.content(duration_s=4, bframes=2))
    argv = [flv_source.FFMPEG, "-loglevel", "error", "-i", str(source), *options, "-c", "copy", str(path)]
    subprocess.run(argv, check=True)
    mp4_index.to_front(path)
    return path


def test_the_index_tells_where_tracks_end(tmp_path: Path) -> None:
    """Each track ends after its last sample, also one that begins later."""
    ends_ms = mp4_index.track_ends_ms(_made(tmp_path / "a.mp4"))
    assert ends_ms == {flv.AUDIO: pytest.approx(4_000, abs=60), flv.VIDEO: pytest.approx(4_000, abs=40)}
    late = ("-itsoffset", "1.5", "-i", str(tmp_path / "a.flv"), "-map", "0:v", "-map", "1:a")
    ends_ms = mp4_index.track_ends_ms(_made(tmp_path / "b.mp4", *late))
    assert ends_ms == {flv.AUDIO: pytest.approx(5_500, abs=60), flv.VIDEO: pytest.approx(4_000, abs=40)}


@pytest.mark.parametrize(("kind", "at"), [(b"stsz", 16), (b"mdat", -4), (b"hdlr", 12), (b"moov", 0)])
def test_an_index_that_is_damaged(tmp_path: Path, kind: bytes, at: int) -> None:
    """A file whose index does not describe its media to the last byte fails, as one whose index cannot be read."""
    path = _made(tmp_path / "a.mp4")
    data = bytearray(path.read_bytes())
    data[data.index(kind) + at + 3] ^= 0x40
    path.write_bytes(data)
    with pytest.raises(errors.TranscodeFailed) as refused:
        mp4_index.track_ends_ms(path)
    assert refused.value.reason == "verify-failed"


@pytest.mark.parametrize("content", [b"", flv.header(audio=True, video=True), _box(b"ftyp", b"") + _box(b"mdat", b"")])
def test_a_file_without_an_index(tmp_path: Path, content: bytes) -> None:
    """A file that is no whole MP4 is refused."""
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    with pytest.raises(errors.TranscodeFailed) as refused:
        mp4_index.to_front(path)
    assert refused.value.reason == "verify-failed"
