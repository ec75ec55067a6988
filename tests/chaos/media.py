"""Media checks: which frames of a speaker's stream a file shows, by the bar code in its pictures.

Frame numbers follow the clock: frame n was sent `n / 15` s after the stream began. The loss of a kill is the time between the
last frame in the file before the kill and the last frame that the simulator had really sent by then. It is measured only for
captures that the kill took along.
`cover.py` judges whether a file holds all that it should.
"""

from __future__ import annotations

import bisect
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import av

from simulator import barcode, live

LOOP = 960
RATE = barcode.FRAMES_PER_SECOND
# A frame's number repeats after a loop. A seam goes back by a few seconds at most; a gap may be almost a loop long.
MOST_BACK = 10 * RATE


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A picture of a file: its frame and its position in the file."""

    frame: int
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """The begin of a speaker's stream (monotonic s), the first frame of its loop, its pulls as [from, to], and (when, the last
    frame sent by then), because a busy simulator is late."""

    began_s: float
    first_frame: int
    pulls: list[list[float]] = field(default_factory=list)
    sent: list[tuple[float, int]] = field(default_factory=list)

    def watch(self, stream: live.Stream) -> None:
        """From now on, note when pulls begin and end and when frames are sent."""
        join, leave, advance, begun = stream.join, stream.leave, stream.advance, dict[live.Viewer, list[float]]()

        def joined(viewer: live.Viewer) -> None:
            begun[viewer] = [time.monotonic(), math.inf]
            self.pulls.append(begun[viewer])
            join(viewer)

        def left(viewer: live.Viewer) -> None:
            begun[viewer][1] = time.monotonic()
            leave(viewer)

        def advanced(now_s: float) -> None:
            advance(now_s)
            frame = self.frame_at(now_s)
            if not self.sent or self.sent[-1][1] != frame:
                self.sent.append((time.monotonic(), frame))

        stream.join, stream.leave, stream.advance = joined, left, advanced  # type: ignore[method-assign]

    def copied(self) -> Live:
        """As it is now."""
        return replace(self, pulls=[[*each] for each in self.pulls], sent=[*self.sent])

    def frame_at(self, moment_s: float) -> int:
        """The last frame that had been sent at a moment, counted from the beginning of the stream."""
        return int((moment_s - self.began_s) * RATE)

    def sent_at(self, moment_s: float) -> int:
        """The last frame that was really sent at a moment; the last due one if nothing is known."""
        before = bisect.bisect_right(self.sent, moment_s, key=lambda each: each[0])
        return self.sent[before - 1][1] if before else self.frame_at(moment_s)


def pictures(path: Path) -> list[Picture]:
    """The pictures of a file in order, by frames of the loop; pictures with an unreadable bar code are left out."""
    found = []
    with av.open(str(path)) as container:
        for picture in container.decode(video=0):
            plane = picture.reformat(format="gray").planes[0]
            read = barcode.read(bytes(plane), picture.width, picture.height, stride=plane.line_size)
            if read is not None:
                found.append(Picture(frame=read.frame, at_s=float(picture.time or 0)))
    return found


def sent(shown: Sequence[Picture], speaker: Live, before: int | None = None) -> list[Picture]:
    """The same pictures, with frames counted from the beginning of the stream: each relative to the one before it, the first
    relative to the last one `before` it, or to the first pull."""
    counted = []
    latest = speaker.frame_at(min(begun_s for begun_s, _ in speaker.pulls)) if before is None else before
    for picture in shown:
        since = (picture.frame - speaker.first_frame - latest + MOST_BACK) % LOOP - MOST_BACK
        latest += since
        counted.append(Picture(frame=latest, at_s=picture.at_s))
    return counted


def lost_s(counted: Sequence[int], speaker: Live, moment_s: float) -> float | None:
    """Seconds of media that had been sent before a kill and are not in the file; None if nobody pulled the speaker then."""
    pulling = [begun_s for begun_s, ended_s in speaker.pulls if begun_s <= moment_s < ended_s]
    if not pulling:
        return None
    wanted = speaker.sent_at(moment_s)
    last_in_file = max((frame for frame in counted if frame <= wanted), default=0)
    return max(0, wanted - max(last_in_file, speaker.frame_at(max(pulling)))) / RATE


def followed(log: Path) -> list[bool]:
    """For each transcode of a followed recording in a node's log, whether its follower made the file."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines() if '"transcode.followed"' in line]
    return [line["done"] for line in lines]


def doubled_s(counted: Sequence[int]) -> float:
    """Seconds of media that the file shows more than once."""
    return (len(counted) - len(set(counted))) / RATE
