"""Filling: packets that keep a track of the joined stream alive while it has none of its own. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

EVERY_MS = 500
_MARGIN_MS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Filling:
    """Keeps one codec of the track `kind` alive in `spans_ms` (from, to) of the joined time; before its first packet with
    `header` and `packet`."""

    kind: int
    codec: str
    spans_ms: tuple[tuple[int, int], ...]
    header: bytes | None
    packet: bytes

    def times(self) -> Iterator[int]:
        """When a packet of filling is due."""
        for from_ms, to_ms in self.spans_ms:
            yield from_ms
            yield from range(from_ms + EVERY_MS, to_ms - 2 * _MARGIN_MS, EVERY_MS)
            if to_ms - from_ms > 2 * _MARGIN_MS:
                yield to_ms - _MARGIN_MS
