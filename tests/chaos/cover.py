"""Whether the files of a speaker cover the time that was live: from the recorder's first pull to the room's end. Imports media.

All is counted in frames of the speaker's stream. Rules: what was sent in that time is in a file, or a gap is told of just there,
or it may be missing: what a kill took along, up to LOST_S before it, and, before a recording's first picture or after its last
one, where no gap can lie, the time of a take-over, in which nobody pulled. What was pulled is no take-over. A gap that is told
where there are pictures is a fault too, and so is a speaker whom nobody pulls although nothing has happened.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tests.chaos import media

LOST_S = 1.0
# So late a busy simulator may see that a kill has ended a connection, even one that it had not answered yet.
LATE_S = 2.0
# What is missing at a seam. An ffmpeg that nothing hinders writes all that was sent: two pictures were the most that was seen
# missing, at a load of 12. The rest is for a machine on which it lags, or on which a connection's end is noticed late.
EDGE_S = 0.5
# What is shown twice, or told as a gap and there: a server begins with the second since its last key frame, and a busy machine
# is late.
SEAM_S = 2.5


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """What a finished file shows (frames counted from the stream's beginning), and its gaps as the result tells them:
    (at s of the file, s)."""

    shown: Sequence[media.Picture]
    gaps: Sequence[tuple[float, float]] = ()

    def told(self) -> list[range]:
        """The frames that each gap is about: what follows the picture before it; at the file's beginning, what comes before."""
        found, behind = list[range](), Counter[int]()
        if not self.shown:
            return found
        for at_s, duration_s in sorted(self.gaps):
            length = round(duration_s * media.RATE)
            before = [picture.frame for picture in self.shown if picture.at_s < at_s - 0.5 / media.RATE]
            if before:
                begin = max(before) + 1 + behind[len(before)]
                behind[len(before)] += length
            else:
                begin = self.shown[0].frame - length
            found.append(range(begin, begin + length))
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Events:
    """What happened to a speaker's captures (monotonic s): when the room ended, which kills took one along, when anything
    struck, and how long after that nobody may pull."""

    ended_s: float
    kills: Sequence[float] = ()
    strikes: Sequence[float] = ()
    take_over_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cover:
    """In s, what is missing without a reason: at the head, at the tail, between; what gaps tell of and is there; what is shown
    twice; how long nobody pulled though nothing had happened."""

    head_s: float
    tail_s: float
    untold_s: float
    invented_s: float
    doubled_s: float
    neglected_s: float

    @property
    def faults(self) -> list[str]:
        """What is more than a seam costs, a sentence for each."""
        limits = {
            "are missing before the first picture": (self.head_s, EDGE_S),
            "are missing after the last picture": (self.tail_s, EDGE_S),
            "are missing in between and not told": (self.untold_s, EDGE_S),
            "are told as missing and are there": (self.invented_s, SEAM_S),
            "are shown twice": (self.doubled_s, SEAM_S),
            "nobody pulled, and nothing had happened": (self.neglected_s, EDGE_S),
        }
        return [f"{each_s:.1f} s {what}" for what, (each_s, limit_s) in limits.items() if each_s > limit_s]


def judge(files: Sequence[File], speaker: media.Live, events: Events) -> Cover:
    """Hold all files of a speaker against what was sent. `speaker` has been pulled at least once."""
    live = range(speaker.frame_at(min(begun_s for begun_s, _ in speaker.pulls)), speaker.frame_at(events.ended_s) + 1)
    shown = {picture.frame for file in files for picture in file.shown}
    first, last = (min(shown), max(shown)) if shown else (live.stop, live.stop)
    told = [gap for file in files for gap in file.told()]
    lost = _frames(speaker, [(moment_s - LOST_S, moment_s) for moment_s in events.kills])
    pulled = _frames(speaker, [(begun_s, _until_s(begun_s, ended_s, events)) for begun_s, ended_s in speaker.pulls])
    struck = _frames(speaker, [(moment_s, moment_s + events.take_over_s) for moment_s in events.strikes])
    # A session that is stopped may record on beside the stop, and tell of a gap there.
    known = range(live.start, max(live.stop, last) + 1)
    missing = set(live) - shown
    wrong = missing - set().union(*told) - lost
    edges = wrong - (struck - pulled)
    return Cover(
        head_s=_seconds(frame for frame in edges if frame < first),
        tail_s=_seconds(frame for frame in edges if frame > last),
        untold_s=_seconds(frame for frame in wrong if first < frame < last),
        invented_s=_seconds(frame for gap in told for frame in gap if frame in shown or frame not in known),
        doubled_s=media.doubled_s([picture.frame for file in files for picture in file.shown]),
        neglected_s=_seconds(missing - pulled - struck),
    )


def _until_s(begun_s: float, ended_s: float, events: Events) -> float:
    """Until when a pull could get anything: its end, the kill that ended it, the room's end."""
    ending = [each_s for each_s in events.kills if begun_s - LATE_S <= each_s <= ended_s <= each_s + LATE_S]
    return min([ended_s, events.ended_s, *ending])


def _frames(speaker: media.Live, spans_s: Iterable[tuple[float, float]]) -> set[int]:
    """The frames that were sent in any of these spans."""
    frame_at = speaker.frame_at
    return {frame for begin_s, end_s in spans_s for frame in range(frame_at(begin_s), frame_at(end_s) + 1)}


def _seconds(frames: Iterable[int]) -> float:
    return sum(1 for _ in frames) / media.RATE
