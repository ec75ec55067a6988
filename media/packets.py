"""The packets of a segment: those of wanted tracks, with a codec that ffmpeg can read, video from its first key frame on.

Rule: a segment is read twice, and the second reading takes exactly the packets of the first one.
"""

from __future__ import annotations

import collections
import zlib
from collections.abc import Mapping

from media import codecs, flv, rest, sound, track_clock, video_headers

_REMEMBERED = 4_096
# A group of pictures that a server keeps for new connections.
_LONGEST_GROUP = 1_024
_NAMES = {flv.AUDIO: "audio", flv.VIDEO: "video"}


class Packets:
    """Tells the packets of a segment from its other tags, in file order. `headers` are the configurations in force: those that
    the stream sends, and those inside its key frames."""

    def __init__(self, kinds: frozenset[int], late_headers: Mapping[int, bytes], begin: rest.Begin | None = None) -> None:
        """`late_headers`: the first configuration of each track, for packets that come before it. `begin`: where the reading
        begins."""
        self._kinds = kinds
        self._begins = begin.kinds if begin else {}
        self._late_headers = late_headers
        self._after_damage = False
        self._undecodable: set[int] = set()
        self._newest_ms: dict[int, int] = {}
        self._repeats: dict[int, bool] = {}
        self._lately: collections.OrderedDict[tuple[int, int, int], None] = collections.OrderedDict()
        # The first packets of each track: tag (unwrapped) and checksum.
        self.first: dict[int, list[tuple[int, int]]] = {kind: [] for kind in kinds}
        self.headers: dict[int, bytes] = {}
        # Whether each tag so far is a packet, and which configurations came into force with which tag.
        self.found = bytearray()
        self.changes: list[tuple[int, int, bytes]] = []
        self.begun: set[int] = set()
        self._unreadable: dict[int, str] = {}

    @property
    def unreadable(self) -> dict[int, str]:
        """The codecs of tracks that ffmpeg cannot read, or that never had a configuration."""
        never = {kind: f"{_NAMES[kind]} without a configuration" for kind in self._undecodable - self.headers.keys()}
        return never | self._unreadable

    @property
    def missed(self) -> bool:
        """Whether packets were left out whose configuration has come since: a later reading has them."""
        return bool(self._undecodable & self.headers.keys())

    def is_packet(self, tag: flv.Tag) -> bool:
        """Whether the next tag is a packet; notes configurations."""
        found = self._is_packet(tag)
        self.found.append(found)
        return found

    def _is_packet(self, tag: flv.Tag) -> bool:
        kind, payload = tag.kind, tag.payload
        self._after_damage |= tag.after_damage
        if kind not in self._kinds:
            return False
        if tag.is_sequence_header:
            self._note(kind, payload)
            return False
        if not tag.is_media or tag.offset < self._begins.get(kind, 0):
            return False
        if not codecs.is_readable(kind, payload):
            self._unreadable.setdefault(kind, codecs.name(kind, payload))
            return False
        if not self._is_decodable(kind, payload) or self._is_repeated(tag):
            return False
        self.begun.add(kind)
        return True

    def _is_decodable(self, kind: int, payload: bytes) -> bool:
        """Whether the configuration that the packet needs is known, and decoding has begun or can begin with it."""
        header = self.headers.get(kind)
        if kind == flv.AUDIO:
            needed = sound.needs_header(payload)
        else:
            inside = video_headers.inband_header(payload, header)
            if inside is not None:
                self._note(kind, header := inside)
            needed = video_headers.needs_header(payload)
            if kind not in self.begun and not video_headers.begins_picture(payload, header):
                return False
        if needed and header is None:
            late = self._late_headers.get(kind)
            if late is None or codecs.identity(kind, late) != codecs.identity(kind, payload):
                self._undecodable.add(kind)
                return False
            self._note(kind, late)
        return True

    def _note(self, kind: int, header: bytes) -> None:
        if self.headers.get(kind) != header:
            self.headers[kind] = header
            self.changes.append((len(self.found), kind, header))

    def _is_repeated(self, tag: flv.Tag) -> bool:
        """Whether the packet was sent before: tags that go back and bring the same bytes again."""
        newest_ms = self._newest_ms.get(tag.kind)
        tag_ms = track_clock.unwrapped(newest_ms, tag.timestamp_ms)
        known = (tag.kind, tag_ms, zlib.crc32(tag.payload))
        # Tags that stand bring other media, although silence looks alike.
        behind = newest_ms is not None and (tag_ms < newest_ms or (tag_ms == newest_ms and self._repeats.get(tag.kind, False)))
        self._repeats[tag.kind] = repeated = behind and known in self._lately
        self._lately[known] = None
        if len(self._lately) > _REMEMBERED:
            self._lately.popitem(last=False)
        # A clock that starts over has another origin.
        if newest_ms is None or not repeated:
            self._newest_ms[tag.kind] = tag_ms
        if not repeated and len(self.first[tag.kind]) < _LONGEST_GROUP:
            self.first[tag.kind].append((tag_ms, known[2]))
        return repeated

    def repeat(self, earlier: Packets, kind: int, count: int) -> bool:
        """Whether the first packets of a track, so many, are among the last ones of an earlier segment, with tags and bytes."""
        newest_ms, first = earlier._newest_ms.get(kind), self.first[kind][:count]
        return len(first) == count and all(
            (kind, track_clock.unwrapped(newest_ms, tag_ms), checksum) in earlier._lately for tag_ms, checksum in first
        )

    def take_damage(self) -> bool:
        """Whether unreadable bytes precede this packet and follow the one before."""
        damaged, self._after_damage = self._after_damage, False
        return damaged

    def duration_ms(self, tag: flv.Tag) -> float | None:
        """The duration of an audio packet, if its payload tells."""
        return _duration_ms(tag, self.headers)


class PacketsAgain:
    """The same packets in a second reading of the segment, which may begin before the first one has ended."""

    def __init__(self, first: Packets) -> None:
        self._first = first
        self._at = self._changes = 0
        self.headers: dict[int, bytes] = {}

    def is_packet(self, tag: flv.Tag) -> bool:
        """Whether the next tag is a packet, as the first reading found; notes configurations."""
        at, first = self._at, self._first
        self._at += 1
        while self._changes < len(first.changes) and first.changes[self._changes][0] <= at:
            _, kind, header = first.changes[self._changes]
            self.headers[kind] = header
            self._changes += 1
        # The file may have grown since it was surveyed: what nobody has placed has no place.
        return at < len(first.found) and first.found[at] == 1

    def duration_ms(self, tag: flv.Tag) -> float | None:
        """The duration of an audio packet, if its payload tells."""
        return _duration_ms(tag, self.headers)


def _duration_ms(tag: flv.Tag, headers: Mapping[int, bytes]) -> float | None:
    if tag.kind != flv.AUDIO:
        return None
    counted = sound.packet_samples(tag.payload, headers.get(flv.AUDIO))
    return counted[0] * 1000 / counted[1] if counted is not None and counted[0] else None
