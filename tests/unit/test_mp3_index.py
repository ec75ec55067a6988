"""The index of an MP3: the length that it states counts only if it describes the whole file."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from media import mp3_index
from tests import flv_source


def _made(path: Path, *options: str) -> Path:
    source = flv_source.write(path.with_suffix(".flv"), flv_source.content(duration_s=4))
    argv = [flv_source.FFMPEG, "-loglevel", "error", "-i", str(source), "-map", "0:a", *options, str(path)]
    subprocess.run(argv, check=True)
    return path


@pytest.mark.parametrize("options", [(), ("-ar", "22050"), ("-id3v2_version", "0"), ("-ac", "2")])
def test_the_index_tells_the_length(tmp_path: Path, options: tuple[str, ...]) -> None:
    """At each rate, with one channel and two, and with or without a tag in front."""
    path = _made(tmp_path / "a.mp3", *options)
    assert mp3_index.length_ms(path) == pytest.approx(4_000, abs=120)
    path.write_bytes(path.read_bytes()[:-1])
    assert mp3_index.length_ms(path) is None


def test_a_file_without_an_index(tmp_path: Path) -> None:
    """Nothing is known of a file whose first frame is sound, of another file, and of an empty one."""
    path = _made(tmp_path / "a.mp3", "-write_xing", "0")
    assert mp3_index.length_ms(path) is None
    for content in (b"", b"ID3", b"RIFF" + bytes(5_000)):
        path.write_bytes(content)
        assert mp3_index.length_ms(path) is None
