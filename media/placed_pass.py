"""The first reading of one segment with an arrival index: its placement, its timeline and the formats of its tracks."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path

from media import flv, formats, placement, rest, timeline


class PlacedPass:
    """Takes the tags of a segment in file order."""

    def __init__(self, path: Path, kinds: frozenset[int], begin: rest.Begin | None = None) -> None:
        """Raises OSError if the segment or its index cannot be read."""
        self.line = timeline.Timeline(kinds)
        self.placement = placement.Placement(path, kinds, begin)
        self._frame_ms: int | None = None

    @property
    def superseded(self) -> bool:
        """Whether its successor replaces all of it."""
        return bool(self.line.tracks)

    def add(self, found: formats.Formats, tags: Iterable[flv.Tag]) -> None:
        """Take the next tags, and note their formats."""
        for tag in tags:
            self.line.place(tag)
            if not self.placement.add(tag):
                continue
            found.note_packet(tag, self.placement.packets.headers.get(tag.kind))
            if tag.kind == flv.VIDEO:
                if self._frame_ms is not None:
                    found.note_frame(tag.timestamp_ms - self._frame_ms)
                self._frame_ms = tag.timestamp_ms

    def placed(self) -> PlacedPass:
        """This reading with its tracks placed, as a value of its own: more tags may follow here."""
        found = copy.copy(self)
        found.line = self.line.copied()
        found.placement = self.placement.placed()
        return found


def read(found: formats.Formats, path: Path, kinds: frozenset[int], begin: rest.Begin | None = None) -> PlacedPass | None:
    """The first reading of a whole segment from `begin` on; None for one without an arrival index. Raises OSError."""
    if not (placement.has_index(path) and path.exists()):
        return None
    made = PlacedPass(path, kinds, begin)
    reader = rest.tags(path, begin)
    try:
        while tags := reader.read():
            made.add(found, tags)
    finally:
        reader.close()
    made.placement.finish()
    return made
