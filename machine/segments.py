"""Segments of recordings, and the files on spools that may be deleted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from machine import alignment, job_key

WRITTEN_HEADER = "x-written-ms"
"""HTTP header of a segment fetched from another node: when its file was last written (Unix ms)."""
ARRIVALS_SUFFIX = ".arrivals"
"""What a segment's file name is followed by in the name of its arrival index."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One FLV file of a recording, named by the epoch of its capture. It is on the spool of `node`. Times are Unix ms."""

    epoch: int
    node: str
    first_packet_ms: int | None
    last_packet_ms: int | None
    media_ms: int
    registered_ms: int
    reason: str  # how its capture ended; "" until an outcome arrives
    anchors: alignment.Anchors = alignment.NO_ANCHORS  # when its media was live


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenUpFiles:
    """Files on one node's spool of a recording that gave them up: everything that epochs up to `until_epoch` wrote."""

    until_epoch: int
    segments: tuple[int, ...]  # epochs of its segments there


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftovers:
    """Files of a recording that may be deleted from any spool.

    If `given_up`: everything that epochs up to `epoch` wrote. Otherwise: outputs of transcodes before `epoch`, except the
    verified file of `output_epoch` (None: there is no such file, and nothing may be deleted)."""

    recording: job_key.RecordingKey
    epoch: int
    given_up: bool
    output_epoch: int | None


class Pause(NamedTuple):
    """A time without media (Unix ms), and the Reason why the pull before it ended or brought none."""

    from_ms: int
    to_ms: int
    reason: str


MOST_PAUSES = 20


def pauses(parts: Sequence[Segment]) -> tuple[Pause, ...]:
    """The longest times between the media of these segments, which are in the order of their epochs. Pulls in a row that ended
    for the same reason are one."""
    found: list[Pause] = []
    for part, following in zip(parts, [*parts[1:], None], strict=False):
        from_ms = (part.last_packet_ms if part.media_ms else None) or part.registered_ms
        to_ms = max(from_ms, following.registered_ms) if following else from_ms
        if found and not part.media_ms and found[-1].reason == part.reason:
            found[-1] = found[-1]._replace(to_ms=to_ms)
        elif part.reason:
            found.append(Pause(from_ms, to_ms, part.reason))
    longest = sorted(found, key=lambda pause: pause.from_ms - pause.to_ms)[:MOST_PAUSES]
    return tuple(sorted(longest))
