"""The content of a finished or crashed segment, read from its tags.

Rule: the file is authoritative. The wall time of its last packet is the file's modification time (the capture flushes every
packet and writes no trailer), minus the media written after the last packet of a wanted track.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from media import flv, timeline


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentScan:
    """`media_ms` counts only the tracks that the mode records; `has_audio`/`has_video` cover all tracks in the file.

    `first_packet_ms` and `last_packet_ms` are Unix milliseconds, None without media; the first is derived from the last. `torn`:
    bytes of an unfinished tag follow. `exists`: there was a file to read.
    """

    media_ms: int = 0
    size_bytes: int = 0
    has_audio: bool = False
    has_video: bool = False
    first_packet_ms: int | None = None
    last_packet_ms: int | None = None
    torn: bool = False
    exists: bool = False


# Read in a tenth of a second: three minutes of 1.5 Mbit/s.
LARGE_BYTES = 32 << 20


def scan(path: Path, mode: str, known_ms: int = 0) -> SegmentScan:
    """Read a whole segment, a megabyte at a time. Blocking: some seconds per hour of video, so use a thread. For a large segment
    with `known_ms` of recorded media, return only that and the size: the transcode finds the rest, and no caller has to wait for
    it.

    A missing file gives an empty scan. Raises OSError if an existing file cannot be read.
    """
    try:
        reader = flv.TagReader(path)
    except FileNotFoundError:
        return SegmentScan()
    try:
        size_bytes = reader.stat().st_size
        if known_ms and size_bytes > LARGE_BYTES:
            return SegmentScan(media_ms=known_ms, size_bytes=size_bytes, exists=True)
        return _scan(reader, mode)
    finally:
        reader.close()


def _scan(reader: flv.TagReader, mode: str) -> SegmentScan:
    line = timeline.Timeline(timeline.wanted(mode))
    present: set[int] = set()
    latest_ms = latest_wanted_ms = 0
    while tags := reader.read():
        for tag in tags:
            if tag.after_damage:
                line.note_damage()
            if tag.is_media:
                present.add(tag.kind)
                latest_ms = tag.timestamp_ms
                if line.place(tag) is not None:
                    latest_wanted_ms = tag.timestamp_ms
    stat: os.stat_result = reader.stat()
    last_ms = stat.st_mtime_ns // 1_000_000 - min(max(0, latest_ms - latest_wanted_ms), timeline.JUMP_MS)
    return SegmentScan(
        media_ms=line.end_ms,
        size_bytes=stat.st_size,
        has_audio=flv.AUDIO in present,
        has_video=flv.VIDEO in present,
        first_packet_ms=last_ms - line.position_ms if line.tracks else None,
        last_packet_ms=last_ms if line.tracks else None,
        torn=reader.torn,
        exists=True,
    )
