"""How much of what was live is missing in a file, told by the bar code in its pictures. Imports the bar code's reader.

A speaker's frame numbers follow the clock: frame n was sent `n / 15` s after the stream began. What a kill lost is the time
between the last frame that is in the file before it and the last one that had been sent by then.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from pathlib import Path

import av

from simulator import barcode

LOOP = 960
RATE = barcode.FRAMES_PER_SECOND


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """When a speaker's stream began (monotonic s), and with which frame of the loop."""

    began_s: float
    first_frame: int

    def frame_at(self, moment_s: float) -> int:
        """The last frame that had been sent at a moment, counted from the stream's beginning."""
        return int((moment_s - self.began_s) * RATE)


def frames(path: Path) -> list[int]:
    """The loop's frames that a file shows, in order; pictures whose bar code cannot be read are left out."""
    found = []
    with av.open(str(path)) as container:
        for picture in container.decode(video=0):
            plane = picture.reformat(format="gray").planes[0]
            read = barcode.read(bytes(plane), picture.width, picture.height, stride=plane.line_size)
            if read is not None:
                found.append(read.frame)
    return found


def sent(shown: list[int], live: Live) -> list[int]:
    """The same frames counted from the stream's beginning; a stream is younger than one loop."""
    return [(frame - live.first_frame) % LOOP for frame in shown]


def lost_s(counted: list[int], live: Live, moment_s: float) -> float | None:
    """What is missing of the second before a kill, in s; None if the speaker was not being captured then."""
    wanted = live.frame_at(moment_s)
    there = sorted(counted)
    place = bisect.bisect_right(there, wanted)
    if place in (0, len(there)):
        return None
    return (wanted - there[place - 1]) / RATE


def missing_s(counted: list[int]) -> float:
    """What is missing between the first and the last picture, in s."""
    return (max(counted) - min(counted) + 1 - len(set(counted))) / RATE if counted else 0.0


def doubled_s(counted: list[int]) -> float:
    """What is shown more than once, in s."""
    return (len(counted) - len(set(counted))) / RATE
