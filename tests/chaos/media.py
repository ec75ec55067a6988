"""What a file shows of what was live, told by the bar code in its pictures. Imports the bar code's reader.

A speaker's frame numbers follow the clock: frame n was sent `n / 15` s after the stream began. What a kill lost is the time
between the last frame that is in the file before it and the last one that had been sent by then; asked only of captures that the
kill took along. Whether a file holds all it should is judged in cover.py.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import av

from simulator import barcode, live

LOOP = 960
RATE = barcode.FRAMES_PER_SECOND
# A frame's number comes again after a loop. What a seam shows twice goes back by a few seconds, a gap may be almost a loop long.
MOST_BACK = 10 * RATE


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A picture of a file: its frame, and its place in the file."""

    frame: int
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """When a speaker's stream began (monotonic s), with which frame of the loop, and who pulled it when: [from, to]."""

    began_s: float
    first_frame: int
    pulls: list[list[float]] = field(default_factory=list)

    def watch(self, stream: live.Stream) -> None:
        """Note from now on when pulls begin and end."""
        join, leave, begun = stream.join, stream.leave, dict[live.Viewer, list[float]]()

        def joined(viewer: live.Viewer) -> None:
            begun[viewer] = [time.monotonic(), math.inf]
            self.pulls.append(begun[viewer])
            join(viewer)

        def left(viewer: live.Viewer) -> None:
            begun[viewer][1] = time.monotonic()
            leave(viewer)

        stream.join, stream.leave = joined, left  # type: ignore[method-assign]

    def frame_at(self, moment_s: float) -> int:
        """The last frame that had been sent at a moment, counted from the stream's beginning."""
        return int((moment_s - self.began_s) * RATE)


def pictures(path: Path) -> list[Picture]:
    """What a file shows, in its order, by the loop's frames; pictures whose bar code cannot be read are left out."""
    found = []
    with av.open(str(path)) as container:
        for picture in container.decode(video=0):
            plane = picture.reformat(format="gray").planes[0]
            read = barcode.read(bytes(plane), picture.width, picture.height, stride=plane.line_size)
            if read is not None:
                found.append(Picture(frame=read.frame, at_s=float(picture.time or 0)))
    return found


def sent(shown: Sequence[Picture], speaker: Live) -> list[Picture]:
    """The same, their frames counted from the stream's beginning: each by the one before it, the first by the first pull."""
    counted = []
    latest = speaker.frame_at(min(begun_s for begun_s, _ in speaker.pulls))
    for picture in shown:
        since = (picture.frame - speaker.first_frame - latest + MOST_BACK) % LOOP - MOST_BACK
        latest += since
        counted.append(Picture(frame=latest, at_s=picture.at_s))
    return counted


def lost_s(counted: Sequence[int], speaker: Live, moment_s: float) -> float | None:
    """What had been sent before a kill and is not in the file, in s; None if the speaker was not being pulled then."""
    pulling = [begun_s for begun_s, ended_s in speaker.pulls if begun_s <= moment_s < ended_s]
    if not pulling:
        return None
    wanted = speaker.frame_at(moment_s)
    kept = max((frame for frame in counted if frame <= wanted), default=0)
    return max(0, wanted - max(kept, speaker.frame_at(max(pulling)))) / RATE


def doubled_s(counted: Sequence[int]) -> float:
    """What is shown more than once, in s."""
    return (len(counted) - len(set(counted))) / RATE
