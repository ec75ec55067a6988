"""Finished segments that grow once more, for a follower: the bytes that had arrived by each time, in steps of a second.

Rule: as a capture writes them: the tags first, then their records in the arrival index.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import imageio_ffmpeg

from machine import errors
from media import arrival_index, following, joiner, transcode

STEP_MS = 500.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """The file that a follower made, and how often it began again; or why it gave up."""

    made: transcode.TranscodeOutput | None = None
    restarts: int = 0
    why: str = ""


async def followed(whole: Sequence[joiner.SegmentFile], mode: str, folder: Path) -> Followed:
    """Follow the segments while they grow in `folder`, which is empty."""
    extension = "mp3" if mode == "00" else "mp4"
    recording = following.Following(imageio_ffmpeg.get_ffmpeg_exe(), mode, folder / f"finished.{extension}.part")
    copies = [replace(segment, path=folder / segment.path.name) for segment in whole]
    try:
        for segment, copy in zip(whole, copies, strict=True):
            recording.add(copy.path)
            for _ in _grown(segment.path, copy.path):
                await recording.look()
        finished = await recording.finish(copies, folder / f"followed.{extension}")
    except following.GaveUp as error:
        return Followed(why=str(error), restarts=recording.restarts)
    except errors.TranscodeFailed as error:
        return Followed(why=error.detail, restarts=recording.restarts)
    finally:
        await recording.stop()
    return Followed(made=finished.made, restarts=recording.restarts)


def _grown(source: Path, path: Path) -> Iterator[float]:
    """Write a segment step by step; yields the time (Unix ms) that each step has reached."""
    tags, index = source.read_bytes(), arrival_index.path_of(source).read_bytes()
    reader = arrival_index.ArrivalReader(source)
    records = list(reader.read())
    reader.close()
    head_bytes = len(index) - len(records) * arrival_index.RECORD_BYTES
    written = [0, 0]
    until_ms = records[0].arrival_ms if records else 0.0
    with path.open("wb") as file, arrival_index.path_of(path).open("wb") as beside:
        while written[0] < len(tags):
            arrived = sum(record.arrival_ms <= until_ms for record in records)
            ends = [len(tags), len(index)]
            if arrived < len(records):
                ends = [records[arrived].offset, head_bytes + arrived * arrival_index.RECORD_BYTES]
            for output, data, begin, end in ((file, tags, written[0], ends[0]), (beside, index, written[1], ends[1])):
                output.write(data[begin:end])
                output.flush()
            written = ends
            yield until_ms
            until_ms += STEP_MS
