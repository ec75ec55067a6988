"""Silence: an AAC track whose packets follow each other without a hole, sample by sample. Pure.

Players play AAC packet after packet, whatever their timestamps say: a hole would move all later sound forward. So packets of
silence fill it, and a packet that lies over sound that is already there is dropped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from media import sound

# A packet may lie this part of its duration over the one before.
_OVER = 0.75
_NEAR_MS = 100.0


class SilenceFiller:
    """Places the packets of one track. `holes_ms` (from, to) are longer holes, filled while other tracks go on; `header` is the
    configuration of the first packet. Where no packet of silence can be made, packets stay where they are."""

    def __init__(self, holes_ms: Sequence[tuple[float, float]], header: bytes | None) -> None:
        self._holes = deque(holes_ms)
        self._header = header
        self._end_ms = 0.0

    def renew(self, other: SilenceFiller) -> None:
        """Take the holes of a filler that knows more of the same track."""
        self._holes = deque(other._holes)

    def place(self, header: bytes | None, payload: bytes, at_ms: float) -> Iterator[tuple[float, bytes]]:
        """The packet at its position, after the silence before it; nothing for a packet that is dropped."""
        self._header = header or self._header
        packet_ms = _packet_ms(payload, header)
        if packet_ms is None:
            self._end_ms = max(self._end_ms, at_ms)
            yield at_ms, payload
            return
        yield from self._fill(at_ms)
        if self._end_ms - at_ms > _OVER * packet_ms:
            return
        placed_ms = self._end_ms if abs(at_ms - self._end_ms) <= packet_ms else at_ms
        self._end_ms = placed_ms + packet_ms
        yield placed_ms, payload

    def until(self, at_ms: float) -> Iterator[tuple[float, bytes]]:
        """The silence of a known hole, up to a position that another track has reached."""
        while self._holes and self._holes[0][0] < at_ms:
            from_ms, to_ms = self._holes[0]
            if self._end_ms >= from_ms - _NEAR_MS:  # else sound before the hole is still to come
                yield from self._fill(min(at_ms, to_ms))
            if at_ms < to_ms:
                return
            self._holes.popleft()

    def rest(self, end_ms: float) -> Iterator[tuple[float, bytes]]:
        """The silence at the end."""
        yield from self._fill(end_ms)

    @property
    def header(self) -> bytes | None:
        """The configuration that the packets of silence have."""
        return self._header

    def _fill(self, until_ms: float) -> Iterator[tuple[float, bytes]]:
        if until_ms <= self._end_ms:
            return
        packet = sound.silent_packet(self._header) if self._header is not None else None
        packet_ms = _packet_ms(packet, self._header) if packet is not None else None
        if packet is None or packet_ms is None:
            return
        while until_ms - self._end_ms > packet_ms / 2:
            yield self._end_ms, packet
            self._end_ms += packet_ms


def _packet_ms(payload: bytes, header: bytes | None) -> float | None:
    counted = sound.packet_samples(payload, header)
    return counted[0] * 1000 / counted[1] if counted is not None and counted[0] else None
