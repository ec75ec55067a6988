"""Formats: the codecs and configurations of a recording's tracks, and the pictures in them. Memory is bounded for any input."""

from __future__ import annotations

from dataclasses import dataclass, field

from media import codecs, flv, presence, sound, video_headers

_LONGEST_FRAME_MS = 1_000
# The frame rates that a file may have. Measured ones, by the milliseconds of tags, are up to so much higher.
_RATES, _MEASURED_PART = (5, 8, 10, 12, 15, 20, 24, 25, 30, 40, 48, 50, 60), 1.02
_MEASURED_MS = 4_000
# Far more than a publisher's size changes; an untrusted stream may change with every packet.
_MOST_HEADERS, _LONGEST_HEADER_BYTES = 256, 4_096
_LARGEST_SIDE = 4_096
_COPIED = {flv.AUDIO: "aac", flv.VIDEO: "avc"}


@dataclass(kw_only=True)
class Formats:
    """`codecs`: those of each track. `headers`: the different configurations of each track, those inside key frames included.
    `first`: each track's first packet with the header in force. `presence`: when a track has which codec, if it has several.
    `frames` were counted in `frames_ms`, which begins again when a rate is measured; `fastest` is the highest one so far."""

    codecs: dict[int, set[str]] = field(default_factory=dict)
    headers: dict[int, list[bytes]] = field(default_factory=dict)
    first: dict[int, tuple[bytes | None, bytes]] = field(default_factory=dict)
    presence: presence.Presence = field(default_factory=presence.Presence)
    frames: int = 0
    frames_ms: int = 0
    fastest: float = 0.0

    def is_uniform(self, kind: int) -> bool:
        """Whether a track has one configuration, of a codec that every player supports."""
        headers = self.headers.get(kind, ())
        plays = kind == flv.AUDIO or all(video_headers.plays_in_browsers(header) for header in headers)
        return self.codecs.get(kind) == {_COPIED[kind]} and len(headers) == 1 and plays

    def changes(self, kind: int) -> bool:
        """Whether a track has more than one codec."""
        return len(self.codecs.get(kind, ())) > 1

    @property
    def reshapes(self) -> bool:
        """Whether the shape of the picture's pixels changes."""
        return len({video_headers.pixel_aspect(header) for header in self.headers.get(flv.VIDEO, ())}) > 1

    @property
    def canvas(self) -> tuple[int, int]:
        """The picture size with the largest area, in even square pixels; 1280×720 if no size can be parsed.

        Larger sizes are scaled down to 4096 a side: encoding must fit the encoder's memory limit.
        """
        pictures = [video_headers.picture_of(header) for header in self.headers.get(flv.VIDEO, ())]
        sizes = [found.display_size for found in pictures if found is not None]
        width, height = max(sizes, key=lambda size: size[0] * size[1], default=(1280, 720))
        if (side := max(width, height)) > _LARGEST_SIDE:
            width, height = max(2, width * _LARGEST_SIDE // side), max(2, height * _LARGEST_SIDE // side)
        return width + width % 2, height + height % 2

    @property
    def rate(self) -> int:
        """Frames per second that show every picture, 5 to 60: the highest rate of any few seconds. It never falls, and seldom
        rises, so that a file which is encoded while the recording runs seldom begins again."""
        measured = self.fastest or (self.frames * 1000 / self.frames_ms if self.frames_ms else 15)
        return next((rate for rate in _RATES if measured <= rate * _MEASURED_PART), _RATES[-1])

    def note_packet(self, tag: flv.Tag, header: bytes | None) -> None:
        """Note the codec and configuration of a packet."""
        kind, codec = tag.kind, codecs.identity(tag.kind, tag.payload)
        self.codecs.setdefault(kind, set()).add(codec)
        if header is not None and codecs.identity(kind, header) != codec:
            header = None  # of a codec that is no more
        self._note_header(kind, header)
        if tag.is_key:
            self._note_header(kind, video_headers.inband_header(tag.payload, header))
        self.first.setdefault(kind, (header, tag.payload))

    def note_frame(self, distance_ms: int) -> None:
        """Count a frame at this distance from the one before."""
        if 0 < distance_ms <= _LONGEST_FRAME_MS:
            self.frames += 1
            self.frames_ms += distance_ms
        if self.frames_ms >= _MEASURED_MS:
            self.fastest = max(self.fastest, self.frames * 1000 / self.frames_ms)
            self.frames = self.frames_ms = 0

    def _note_header(self, kind: int, header: bytes | None) -> None:
        known = self.headers.setdefault(kind, [])
        if header is None or len(known) >= _MOST_HEADERS:
            return
        header = header[:_LONGEST_HEADER_BYTES]
        if header not in known and not (kind == flv.AUDIO and any(sound.same_sound(header, each) for each in known)):
            known.append(header)
