"""Coverage: whether a speaker's files cover the time that was live, from the speaker's first frame to the end of the room.

All times are counted in frames of the speaker's stream. A frame that was sent must be in a file or inside a reported gap, with
two exceptions. A kill may lose up to `Events.lost_s` before it. After the last picture of a recording no gap can be reported
where nobody pulled, so the time of a takeover may be missing there. A reported gap over existing pictures is a fault. So is time
without a pull when nothing had happened.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chaos import media, plans

LOST_S = {plans.NATIVE: 0.1, plans.FFMPEG: 1.0}
"""What a kill may cost of the media that was sent before it, by the kind of capture."""
# A busy simulator may notice this late that a kill ended a connection, even one that it had not answered yet.
LATE_S = 2.0
# Frames that may be missing at a seam. An undisturbed ffmpeg writes all that was sent: at a load of 12, at most two pictures were
# missing. The rest of the limit is for a machine on which ffmpeg lags or the end of a connection is noticed late.
EDGE_S = 0.5
# Less is not told at the beginning (machine/coverage.EDGE_MS), and a picture lasts as long as this.
HEAD_S = 0.5 + 1 / media.RATE
# Media that may be shown twice, or reported as a gap although it exists: a server begins at its last key frame, up to a second
# back, and a busy machine is late.
SEAM_S = 2.5


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """The pictures of a finished file (frames counted from the stream's beginning) and its gaps as the result reports them: (at s
    of the file, s)."""

    shown: Sequence[media.Picture]
    gaps: Sequence[tuple[float, float]] = ()

    def gap_frames(self) -> list[range]:
        """The frames of each gap: those after the picture before it. At the beginning of the file, those before the first
        picture."""
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
    """Events of a speaker's captures (monotonic s): the end of the room, the kills that took a capture along, all strikes, the
    time after a strike in which no node may pull, and what a kill may cost."""

    ended_s: float
    kills: Sequence[float] = ()
    strikes: Sequence[float] = ()
    take_over_s: float = 0.0
    lost_s: float = LOST_S[plans.FFMPEG]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cover:
    """Unexplained seconds: missing at the head, at the tail or in between without a reported gap; reported as a gap although
    present; shown twice; without a pull although nothing had happened."""

    head_s: float
    tail_s: float
    unreported_s: float
    invented_s: float
    doubled_s: float
    unpulled_s: float

    @property
    def faults(self) -> list[str]:
        """A sentence for each figure above its limit."""
        limits = {
            "are missing before the first picture": (self.head_s, HEAD_S),
            "are missing after the last picture": (self.tail_s, EDGE_S),
            "are missing in between and not reported": (self.unreported_s, EDGE_S),
            "are reported as missing and are there": (self.invented_s, SEAM_S),
            "are shown twice": (self.doubled_s, SEAM_S),
            "nobody pulled, and nothing had happened": (self.unpulled_s, EDGE_S),
        }
        return [f"{each_s:.1f} s {what}" for what, (each_s, limit_s) in limits.items() if each_s > limit_s]


def judge(files: Sequence[File], speaker: media.Live, events: Events) -> Cover:
    """Compare all files of a speaker with the frames that were sent. `speaker` has been pulled at least once."""
    first_pull = speaker.frame_at(min(begun_s for begun_s, _ in speaker.pulls))
    live = range(speaker.frame_at(events.ended_s) + 1)
    shown = {picture.frame for file in files for picture in file.shown}
    first, last = (min(shown), max(shown)) if shown else (live.stop, live.stop)
    reported = [gap for file in files for gap in file.gap_frames()]
    lost = _frames(speaker, [(moment_s - events.lost_s, moment_s) for moment_s in events.kills])
    pulled = _frames(speaker, [(begun_s, _until_s(begun_s, ended_s, events)) for begun_s, ended_s in speaker.pulls])
    struck = _frames(speaker, [(moment_s, moment_s + events.take_over_s) for moment_s in events.strikes])
    # A capture may outlast the stop of its session, and may report a gap in that time.
    known = range(0, max(live.stop, last) + 1)
    missing = set(live) - shown
    wrong = missing - set().union(*reported) - lost
    edges = wrong - (struck - pulled)
    return Cover(
        head_s=_seconds(frame for frame in wrong if frame < first),
        tail_s=_seconds(frame for frame in edges if frame > last),
        unreported_s=_seconds(frame for frame in wrong if first < frame < last),
        invented_s=_seconds(frame for gap in reported for frame in gap if frame in shown or frame not in known),
        doubled_s=media.doubled_s([picture.frame for file in files for picture in file.shown]),
        unpulled_s=_seconds(missing - pulled - struck - set(range(first_pull))),
    )


def kills(struck: Iterable[Mapping[str, Any]]) -> dict[str, list[float]]:
    """When (monotonic s) a kill took a capture along, by recording: `speaker_n`, the name of its spool folder and of its object.
    The other captures of the room went on. `struck`: the records of the strikes."""
    found: dict[str, list[float]] = {}
    for strike in struck:
        if strike["Act"] == plans.KILL:
            for file in strike["Captures"]:
                found.setdefault(Path(file).parent.name, []).append(strike["MonotonicS"])
    return found


def _until_s(begun_s: float, ended_s: float, events: Events) -> float:
    """The last moment at which a pull could receive media: its end, the kill that ended it, or the end of the room."""
    ending = [each_s for each_s in events.kills if begun_s - LATE_S <= each_s <= ended_s <= each_s + LATE_S]
    return min([ended_s, events.ended_s, *ending])


def _frames(speaker: media.Live, spans_s: Iterable[tuple[float, float]]) -> set[int]:
    """The frames that were sent in any of these spans."""
    frame_at = speaker.frame_at
    return {frame for begin_s, end_s in spans_s for frame in range(frame_at(begin_s), frame_at(end_s) + 1)}


def _seconds(frames: Iterable[int]) -> float:
    return sum(1 for _ in frames) / media.RATE
