"""One segment of a recording that is followed, which may still grow."""

from __future__ import annotations

import bisect
from pathlib import Path

from media import flv, placed_pass, rest, survey

_READ_BYTES = 1 << 16


class GaveUp(Exception):
    """Following ended; the transcode from the segments makes the file."""


class FollowedSegment:
    """The two readings of one segment that may still grow."""

    def __init__(self, path: Path, kinds: frozenset[int], begin: rest.Begin | None) -> None:
        """`begin`: what precedes it is in another file. Raises OSError."""
        self.path = path
        self.begin = begin
        self.first = placed_pass.PlacedPass(path, kinds, begin)
        self.begun_ms = self.arrived_ms = 0.0
        self._reader = rest.tags(path, begin)
        self._size_bytes = 0  # when its end was read
        self._unknown: list[flv.Tag] = []  # read, and their arrival is still to be written
        # By when the bytes before an offset had arrived.
        self._marks: list[tuple[float, int]] = []

    def read(self, found: survey.Survey, *, growing: bool) -> bool:
        """Take some of the tags that were written since; returns whether more may follow at once. Raises GaveUp for a damaged
        segment."""
        size_bytes = 0 if growing else self.path.stat().st_size
        tags = self._unknown or self._reader.read(_READ_BYTES, growing=growing)
        if not tags:
            if not growing:
                self._size_bytes = size_bytes
                self.close()
            return False
        taken = len(tags)
        if growing and not self.first.placement.covers(tags[-1]):
            # All may be known by now: their records are written meanwhile.
            unknown = (index for index, tag in enumerate(tags) if not self.first.placement.covers(tag))
            taken = next(unknown, len(tags))
        if self._reader.damaged or any(tag.after_damage for tag in tags):
            raise GaveUp("a segment is damaged")
        self.first.add(found, tags[:taken])
        if self.first.placement.packets.missed:
            raise GaveUp("a configuration came after its packets")
        if tags[:taken]:
            self._note(tags[taken].offset if taken < len(tags) else self._reader.position_bytes)
        self._unknown = tags[taken:]
        return not self._unknown

    @property
    def grown(self) -> bool:
        """Whether there is more than what was read as its end (blocking): a superseded capture may write a while longer."""
        return self.path.stat().st_size > self._size_bytes

    def close(self) -> None:
        """Close the files; safe to call twice."""
        self._reader.close()
        self.first.placement.close()

    def until(self, arrived_ms: float) -> int:
        """The offset before which all bytes had arrived by then."""
        index = bisect.bisect_right(self._marks, (arrived_ms, 1 << 62))
        return self._marks[index - 1][1] if index else 0

    def _note(self, offset: int) -> None:
        arrived_ms = self.first.placement.arrived_ms
        if arrived_ms is None:
            return
        self.begun_ms = self.begun_ms or arrived_ms
        self.arrived_ms = max(self.arrived_ms, arrived_ms)
        self._marks.append((self.arrived_ms, offset))
