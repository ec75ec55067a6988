"""The notes of a recording's pieces on a bounded spool."""

from __future__ import annotations

from pathlib import Path

import pytest

from machine import model
from media import pieces


@pytest.fixture
def piece(tmp_path: Path) -> pieces.Piece:
    path = tmp_path / "00000001.p1.mp4"
    output = model.Output(duration_ms=5, size_bytes=9)
    made = pieces.Piece(
        number=1, path=path, size_bytes=9, spare_bytes=0, head_bytes=4, crc64=7, output=output, begin=None, settled=True
    )
    made.save()
    return made


def test_a_note_is_read_as_it_was_written(piece: pieces.Piece, tmp_path: Path) -> None:
    """And nothing else is left of writing it."""
    assert pieces.of(tmp_path) == [piece]
    assert list(tmp_path.glob("*.part")) == []


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"size_bytes": "many"}'])
def test_a_damaged_note_is_named(piece: pieces.Piece, tmp_path: Path, text: str) -> None:
    """As an error of the disk, which every reader of a spool expects: a live upload goes on to look, and a transcode tells it."""
    note = piece.path.with_name(piece.path.name + pieces.NOTE_SUFFIX)
    note.write_text(text, "utf-8")
    with pytest.raises(OSError, match="damaged") as caught:
        pieces.of(tmp_path)
    assert caught.value.filename == str(note)
