"""The pieces of a recording on a bounded spool: files that grow while it runs, and what is left of its segments.

    <folder>/<epoch>.p<number>.mp4          a piece; holes are bytes that COS has confirmed
    <folder>/<epoch>.p<number>.mp4.json     its note: how much of it counts, and where the rest of the recording begins
    <folder>/<epoch>.p<number>.mp4.upload   its upload in COS (assembly/piece_uploads.py)

Rules: a note is durable before any byte that it replaces is released. A piece without a note does not count. Usually a recording
has one piece, its whole file. Where following could not go on, the piece ends as its note says, and the next file begins there.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fastcrc

from machine import model
from media import crc64, fragments, joiner, rest, transcode

NOTE_SUFFIX, UPLOAD_SUFFIX = ".json", ".upload"
_NAME = re.compile(r"\d{8,}\.p(\d+)\.mp[34](?:\.json)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One piece. `size_bytes` of its file count, and the first `spare_bytes` are not needed once COS has them. `crc64` is that of
    the bytes behind the first `head_bytes`, which may still change, and of all once it is `settled`. `begin`: where the rest of
    the recording begins, None if the piece is the whole rest."""

    number: int
    path: Path
    size_bytes: int
    spare_bytes: int
    head_bytes: int
    crc64: int
    output: model.Output
    begin: rest.Begin | None
    settled: bool = False

    @property
    def upload_path(self) -> Path:
        """Where the state of its upload is."""
        return self.path.with_name(self.path.name + UPLOAD_SUFFIX)

    def save(self) -> None:
        """Write its note durably (blocking). Raises OSError."""
        body: dict[str, Any] = {
            "size_bytes": self.size_bytes,
            "spare_bytes": self.spare_bytes,
            "head_bytes": self.head_bytes,
            "crc64": self.crc64,
            "output": self.output.to_json(),
            "begin": self.begin and self.begin.to_json(),
            "settled": self.settled,
        }
        write_durably(self.path.with_name(self.path.name + NOTE_SUFFIX), json.dumps(body))


def of(folder: Path) -> list[Piece]:
    """The pieces in a recording's folder, in their order (blocking). Raises OSError, for a damaged note too."""
    names = os.listdir(folder) if folder.is_dir() else []
    found = [_noted(folder / name) for name in names if name.endswith(NOTE_SUFFIX) and _NAME.fullmatch(name)]
    return sorted(found, key=lambda piece: piece.number)


def _noted(note: Path) -> Piece:
    try:
        read = json.loads(note.read_text("utf-8"))
        return Piece(
            number=number_of(note),
            path=note.with_name(note.name.removesuffix(NOTE_SUFFIX)),
            size_bytes=int(read["size_bytes"]),
            spare_bytes=int(read["spare_bytes"]),
            head_bytes=int(read["head_bytes"]),
            crc64=int(read["crc64"]),
            output=model.Output.from_json(read["output"]),
            begin=rest.Begin.from_json(read["begin"]) if read["begin"] else None,
            settled=bool(read["settled"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise OSError(errno.EIO, f"The note of a piece is damaged ({error!r})", str(note)) from error


def settled(folder: Path) -> list[Piece]:
    """The pieces, each as a whole file (blocking). Nobody may write them any more; a file that does not count is removed. Raises
    the errors of `of`."""
    found = [piece if piece.settled else _settled(piece) for piece in of(folder)]
    for path in folder.iterdir() if folder.is_dir() else ():
        if _NAME.fullmatch(path.name) and path.suffix != NOTE_SUFFIX and path not in {piece.path for piece in found}:
            path.unlink()
    return found


def _settled(piece: Piece) -> Piece:
    """End a piece where its note says. It may be repeated."""
    with piece.path.open("r+b") as file:
        file.truncate(piece.size_bytes)
        head = file.read(piece.head_bytes)
        if piece.path.suffix == ".mp4":
            head = fragments.settled_head(head, piece.output.duration_ms)
            file.seek(0)
            file.write(head)
        file.flush()
        os.fsync(file.fileno())
    crc = crc64.combined(fastcrc.crc64.xz(head), piece.crc64, piece.size_bytes - len(head))
    output = replace(piece.output, size_bytes=piece.size_bytes, crc64=str(crc))
    done = replace(piece, crc64=crc, output=output, settled=True)
    done.save()
    return done


def next_path(first: Path, known: Sequence[Piece]) -> Path:
    """The path of the piece that follows these; `first`: of the first one."""
    epoch, extension = first.name.partition(".")[0], first.suffix
    return first.with_name(f"{epoch}.p{known[-1].number + 1 if known else 1}{extension}")


def left(segments: Sequence[joiner.SegmentFile], begin: rest.Begin | None) -> list[joiner.SegmentFile]:
    """What of these segments is not in a piece."""
    if begin is None:
        return list(segments)
    found = [segment for segment in segments if epoch_of(segment.path) >= begin.epoch]
    # What its capture noted is no longer in the file alone.
    return [
        replace(each, begin=begin, media_ms=None, first_packet_ms=round(begin.live_ms))
        if epoch_of(each.path) == begin.epoch
        else each
        for each in found
    ]


def number_of(path: Path) -> int:
    """The number in the name of a piece, from 1. Raises ValueError for another name."""
    if (matched := _NAME.fullmatch(path.name)) is None:
        raise ValueError(path.name)
    return int(matched[1])


def epoch_of(segment: Path) -> int:
    """The epoch in the name of a segment's file."""
    return int(segment.name.partition(".")[0])


def write_durably(path: Path, text: str) -> None:
    """Replace a small file, so that it survives a power cut (blocking). Raises OSError."""
    fresh = path.with_name(f"{path.name}.part")
    with fresh.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    transcode.give_name(fresh, path)


def begin_of(begin: rest.Begin | None, path: Path) -> rest.Begin | None:
    """Where a segment begins, if it is the first one of the rest."""
    return begin if begin is not None and epoch_of(path) == begin.epoch else None
