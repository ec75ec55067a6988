"""Alignment: which media was live when, as anchors (position of media, time).

Rule: an anchor is the lower envelope of (arrival − media time), because media arrives late and never early. Between two anchors
time runs evenly. Positions are milliseconds of media, times are Unix ms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Anchor = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Anchors:
    """Anchors in the order of their positions."""

    points: tuple[Anchor, ...] = ()

    def to_json(self) -> list[list[int]]:
        """The form in events and in the database."""
        return [list(point) for point in self.points]

    @staticmethod
    def from_json(body: Sequence[Sequence[Any]]) -> Anchors:
        """The opposite of `to_json`."""
        return Anchors(tuple((int(at_ms), int(time_ms)) for at_ms, time_ms in body))


NO_ANCHORS = Anchors()
