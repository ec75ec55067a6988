"""Filling: packets that keep a track of the joined stream alive while it has none of its own. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

EVERY_MS = 500
_MARGIN_MS = 50
LARGE_BYTES = 512 << 10
Key = tuple[int, str]
"""The kind of a track and one of its codecs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filling:
    """Keeps one codec of the track `kind` alive in `spans_ms` (from, to) of the joined time: with its latest packet, and before
    its first one with `header` and `packet`. `same`: always with these."""

    kind: int
    codec: str
    spans_ms: tuple[tuple[int, int], ...]
    header: bytes | None
    packet: bytes
    same: bool = False

    def times(self, least_ms: int = 0) -> Iterator[int]:
        """When a packet of filling is due, from `least_ms` on."""
        for from_ms, to_ms in self.spans_ms:
            if to_ms < least_ms:
                continue
            due = itertools.chain((from_ms,), range(from_ms + EVERY_MS, to_ms - 2 * _MARGIN_MS, EVERY_MS))
            yield from (at_ms for at_ms in due if at_ms >= least_ms)
            if to_ms - from_ms > 2 * _MARGIN_MS and to_ms - _MARGIN_MS >= least_ms:
                yield to_ms - _MARGIN_MS


class Schedule:
    """The packets of all fillings, as they become due."""

    def __init__(self, fillings: Sequence[Filling] = (), written_ms: Mapping[Key, int] | None = None) -> None:
        """`written_ms`: the tracks are joined up to these places already."""
        written_ms = written_ms or {}
        self._fillings = {(each.kind, each.codec): each for each in fillings}
        self._times = {key: each.times(written_ms.get(key, -1) + 1) for key, each in self._fillings.items()}
        self._next_ms = {key: next(times, None) for key, times in self._times.items()}
        self._packets = {key: (each.header, each.packet) for key, each in self._fillings.items()}

    def repeat(self, key: Key, header: bytes | None, packet: bytes) -> None:
        """Fill with this packet from here on, unless the filling stays the same."""
        if key in self._fillings and not self._fillings[key].same:
            self._packets[key] = header, packet

    def until(self, at_ms: int) -> Iterator[tuple[Key, int, bytes | None, bytes]]:
        """What is due before this place: its track, place, header and packet."""
        for key, times in self._times.items():
            while (due_ms := self._next_ms[key]) is not None and due_ms < at_ms:
                header, packet = self._packets[key]
                yield key, due_ms, header, packet
                # Repeat large packets less often: filling must not exceed the captured media.
                again_ms = due_ms + EVERY_MS * (len(packet) // LARGE_BYTES)
                self._next_ms[key] = next((at_ms for at_ms in times if at_ms >= again_ms), None)
