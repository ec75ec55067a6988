"""The media time of one segment: the position of each wanted packet, in milliseconds from the segment's first one.

One rule, shared by the capture's watch, the scan of a finished segment and the joiner, so that all three agree: only the tracks
that the mode records count; video counts from the first key frame; a timestamp jump of more than `JUMP_MS` in either direction is
cut and recorded as a cut, and so is media that was lost to damaged bytes. Memory is bounded for any timestamps.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

from media import codecs, flv, video_headers

JUMP_MS = 5_000
_MOST_JUMPS = 1_000
_LONGEST_PACKET_MS = 200
_USUAL_PACKET_MS = {flv.AUDIO: 23, flv.VIDEO: 40}
_WANTED = {
    "00": frozenset((flv.AUDIO,)),
    "01": frozenset((flv.VIDEO,)),
    "02": frozenset((flv.AUDIO, flv.VIDEO)),
}


def wanted(mode: str) -> frozenset[int]:
    """The tag kinds that a mode records: "00" audio, "01" video, "02" both. Raises KeyError for another mode."""
    return _WANTED[mode]


@dataclass(frozen=True, slots=True, kw_only=True)
class Jump:
    """A cut inside a segment at `at_ms` of media time; `missing_ms` by the timestamps (0: they ran backwards). `damaged`: bytes
    of the file could not be read there."""

    at_ms: int
    missing_ms: int
    damaged: bool = False


class Timeline:
    """Computes positions for the tags of one segment, given in file order. `unreadable`: the codecs of wanted tracks that ffmpeg
    cannot read."""

    def __init__(self, kinds: frozenset[int]) -> None:
        self._kinds = kinds
        self._offset_ms: int | None = None
        self._last_ms: dict[int, int] = {}
        self._packet_ms = dict(_USUAL_PACKET_MS)
        self._after_damage = False
        self.position_ms = 0
        self.jumps: list[Jump] = []
        self.unreadable: dict[int, str] = {}

    @property
    def end_ms(self) -> int:
        """The end of the media: the latest packet's position plus its duration. 0 without packets."""
        return max((self.track_end_ms(kind) for kind in self._last_ms), default=0)

    @property
    def tracks(self) -> frozenset[int]:
        """The wanted kinds that have packets."""
        return frozenset(self._last_ms)

    def track_end_ms(self, kind: int) -> int:
        """The end of one track; 0 without packets."""
        return self._last_ms[kind] + self._packet_ms[kind] if kind in self._last_ms else 0

    def packet_ms(self, kind: int) -> int:
        """The duration of a track's packet: the distance of its latest two."""
        return self._packet_ms[kind]

    def copied(self) -> Timeline:
        """A timeline of its own that knows the same packets."""
        found = copy.copy(self)
        found._last_ms, found._packet_ms = self._last_ms.copy(), self._packet_ms.copy()
        found.jumps, found.unreadable = [*self.jumps], self.unreadable.copy()
        return found

    def note_damage(self) -> None:
        """Unreadable bytes precede the next packet."""
        self._after_damage = True

    def place(self, tag: flv.Tag) -> int | None:
        """The position of a packet in media time, or None for an unwanted tag, a tag without media, an unreadable codec, or video
        before the first key frame."""
        if tag.after_damage:
            self.note_damage()
        return self.place_packet(tag.kind, tag.timestamp_ms, tag.payload)

    def place_packet(self, kind: int, timestamp_ms: int, payload: bytes) -> int | None:
        """As `place`, for a tag that is not read from a file."""
        if kind not in self._kinds or not flv.is_media(kind, payload):
            return None
        if not codecs.is_readable(kind, payload):
            self.unreadable.setdefault(kind, codecs.name(kind, payload))
            return None
        last = self._last_ms.get(kind)
        if last is None and kind == flv.VIDEO and not video_headers.begins_picture(payload, None):
            return None
        place = self._continuous(timestamp_ms)
        if last is not None and 0 < place - last <= _LONGEST_PACKET_MS:
            self._packet_ms[kind] = place - last
        self._last_ms[kind] = place
        self.position_ms = max(self.position_ms, place)
        return place

    def _continuous(self, timestamp_ms: int) -> int:
        if self._offset_ms is None:
            self._offset_ms = -timestamp_ms
        place = timestamp_ms + self._offset_ms
        damaged, self._after_damage = self._after_damage, False
        jumped = abs(place - self.position_ms) > JUMP_MS
        if jumped or (damaged and place > self.end_ms):
            end_ms = self.end_ms
            self._remember(Jump(at_ms=end_ms, missing_ms=max(0, place - end_ms), damaged=damaged))
            self._offset_ms += end_ms - place
            place = end_ms
        return max(0, place)

    def _remember(self, jump: Jump) -> None:
        if len(self.jumps) < _MOST_JUMPS:
            self.jumps.append(jump)
        else:  # the total of missing time stays correct
            last = self.jumps[-1]
            missing_ms = last.missing_ms + jump.missing_ms
            self.jumps[-1] = Jump(at_ms=last.at_ms, missing_ms=missing_ms, damaged=last.damaged or jump.damaged)
