"""Presence: when each codec of a track has packets. A publisher may change the codec inside a stream or between two pulls.

ffmpeg reads each codec of a track as a stream of its own, numbered by its first packet. All streams of a track are decoded, each
is heard or seen in its own time, and together they are one track. Memory is bounded for any input.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from media import codecs, flv, video_headers

_MOST_SPANS, _MOST_ASPECTS = 2_000, 500
# A codec that pauses for longer begins again, if its next packet can be decoded on its own.
_PAUSE_MS = 1_000
_USUAL_MS = {flv.AUDIO: 23, flv.VIDEO: 40}
_LONGEST_MS = 200
_Spans = list[tuple[int, int]]


@dataclass(slots=True, kw_only=True)
class Codec:
    """One codec of a track: its first packet with the header in force, and when it has packets, in joined time; `shown_ms` by
    when they are to be shown. `aspects`: from when on its pixels have which ratio of width to height."""

    name: str
    header: bytes | None
    packet: bytes
    packet_ms: int
    spans_ms: _Spans = field(default_factory=list)
    shown_ms: _Spans = field(default_factory=list)
    aspects: list[tuple[int, float]] = field(default_factory=list)


class Presence:
    """The codecs of all tracks, in the order of their first packets."""

    def __init__(self) -> None:
        self._codecs: dict[int, dict[str, Codec]] = {}
        self._headers: dict[tuple[int, str], bytes] = {}
        self._spans = 0

    def of(self, kind: int) -> list[Codec]:
        """The codecs of one track."""
        return list(self._codecs.get(kind, {}).values())

    def read(self, tags: Iterable[flv.Tag]) -> None:
        """Note the next tags of the joined stream."""
        for tag in tags:
            name = codecs.identity(tag.kind, tag.payload)
            if tag.is_sequence_header:
                self._headers[tag.kind, name] = tag.payload
            else:
                self._packet(tag, name)

    def hidden_ms(self, kind: int, name: str, until_ms: int, bridge_ms: int) -> _Spans:
        """When a codec is not to be seen or heard, from 0 to `until_ms`. Where no codec has packets for up to `bridge_ms`, the
        one before goes on, and the first one begins at 0."""
        shown = [(span, codec.name) for codec in self.of(kind) for span in codec.shown_ms]
        return _absent(shown, name, until_ms, bridge_ms)

    def absent_ms(self, kind: int, name: str, until_ms: int, bridge_ms: int) -> _Spans:
        """When a codec is hidden and has no packets either: an encoder shows pictures some time after their tags."""
        spans = [(span, codec.name) for codec in self.of(kind) for span in codec.spans_ms]
        absent = _absent(spans, name, until_ms, bridge_ms)
        hidden = self.hidden_ms(kind, name, until_ms, bridge_ms)
        both = ((max(a, c), min(b, d)) for a, b in absent for c, d in hidden)
        return sorted(span for span in both if span[0] < span[1])

    def _packet(self, tag: flv.Tag, name: str) -> None:
        known = self._codecs.setdefault(tag.kind, {})
        codec = known.get(name)
        if codec is None:
            header = self._headers.get((tag.kind, name))
            codec = known[name] = Codec(name=name, header=header, packet=tag.payload, packet_ms=_USUAL_MS[tag.kind])
        if tag.kind == flv.VIDEO:
            self._note_aspect(codec, tag)
        at_ms, spans = tag.timestamp_ms, codec.spans_ms
        if spans and 0 < (distance_ms := at_ms + codec.packet_ms - spans[-1][1]) <= _LONGEST_MS:
            codec.packet_ms = distance_ms
        end_ms = at_ms + codec.packet_ms
        late_ms = video_headers.composition_ms(tag.payload) if tag.kind == flv.VIDEO else 0
        begins = not spans or ((tag.kind == flv.AUDIO or tag.is_key) and at_ms - spans[-1][1] > _PAUSE_MS)
        if begins and self._spans < _MOST_SPANS:
            spans.append((at_ms, end_ms))
            codec.shown_ms.append((at_ms + late_ms, end_ms + late_ms))
            self._spans += 1
        elif spans:
            spans[-1] = (spans[-1][0], max(end_ms, spans[-1][1]))
            codec.shown_ms[-1] = (codec.shown_ms[-1][0], max(end_ms + late_ms, codec.shown_ms[-1][1]))

    def _note_aspect(self, codec: Codec, tag: flv.Tag) -> None:
        header = self._headers.get((tag.kind, codec.name))
        ratio = 1.0 if header is None else video_headers.pixel_aspect(header)
        if (not codec.aspects or codec.aspects[-1][1] != ratio) and len(codec.aspects) < _MOST_ASPECTS:
            codec.aspects.append((tag.timestamp_ms + video_headers.composition_ms(tag.payload), ratio))


def _absent(spans: Iterable[tuple[tuple[int, int], str]], name: str, until_ms: int, bridge_ms: int) -> _Spans:
    every = sorted((from_ms, to_ms, codec) for (from_ms, to_ms), codec in spans)
    hidden: _Spans = []
    at_ms = 0
    for index, (from_ms, to_ms, of_codec) in enumerate(every):
        if of_codec != name:
            continue
        follows_ms = every[index + 1][0] if index + 1 < len(every) else until_ms
        begins_ms = 0 if index == 0 and from_ms <= bridge_ms else from_ms
        if begins_ms > at_ms:
            hidden.append((at_ms, begins_ms))
        at_ms = max(at_ms, follows_ms if 0 < follows_ms - to_ms <= bridge_ms else to_ms)
    return [*hidden, (at_ms, until_ms)] if until_ms > at_ms else hidden
