"""The end of a growing segment as an FLV stream of its own, for a live view.

Rules:
- It begins at the newest key frame on disk, so that a viewer is less than one group of pictures behind; without a picture, with
  the newest second of sound.
- Only live tracks are in it: a silent one would hold the others back in every player.
- It ends where the stream changes: another sequence header, a track that begins or falls silent, a jump of the timestamps. A
  player would stumble there. The viewer opens the next view.
- A call reads a bounded amount, whatever the length of the segment.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from media import arrival_index, flv, timeline

# A track with a packet in the newest part of the segment is live. It has fallen silent when it is twice as far behind.
LIVE_MS, SILENT_MS = 3_000, 6_000
SOUND_MS = 1_000
WINDOW_BYTES, LARGEST_WINDOW_BYTES = 4 << 20, 32 << 20
_MOST_CANDIDATES = 4_096


class LiveTail:
    """Reads one segment. Every call blocks; `over` says that nothing follows."""

    def __init__(self, path: Path, mode: str) -> None:
        """Open the segment. Raises OSError."""
        self._kinds = timeline.wanted(mode)
        self._newest_ms: dict[int, int] = {}
        self._headers: dict[int, bytes] = {}
        self._live: frozenset[int] = frozenset()
        self._begun = self.over = False
        self._reader = flv.TagReader(path)
        try:
            self._waiting = self._window(path)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file; safe to call twice."""
        self._reader.close()

    def read(self) -> bytes:
        """The whole tags that were written since the last call; the first ones begin with the header of FLV. Empty while nothing
        new is there, or no key frame yet. Raises OSError."""
        if self.over:
            return b""
        tags, self._waiting = self._waiting or self._reader.read(growing=True), []
        if self._begun:
            return self._encoded(tags)
        first = self._first(tags)
        for tag in tags[:first]:
            if tag.kind in self._kinds and tag.is_sequence_header:
                self._headers[tag.kind] = tag.payload
        if first is None:
            return b""
        self._begun = True
        at_ms = tags[first].timestamp_ms
        self._newest_ms = dict.fromkeys(self._live, at_ms)
        headers = [flv.encode(kind, at_ms, self._headers[kind]) for kind in sorted(self._live) if kind in self._headers]
        head = flv.header(audio=flv.AUDIO in self._live, video=flv.VIDEO in self._live)
        return b"".join((head, *headers, self._encoded(tags[first:])))

    def _window(self, path: Path) -> list[flv.Tag]:
        """The newest tags, back to a key frame if the largest window has one, with the headers that hold there. The reader goes
        on behind them."""
        size_bytes = self._reader.stat().st_size
        for window in (WINDOW_BYTES, LARGEST_WINDOW_BYTES):
            self._reader.close()
            self._reader = flv.TagReader(path, max(0, size_bytes - window))
            # A window may begin inside a packet, and what looks like a long tag there must not be waited for.
            tags = self._reader.read()
            while found := self._reader.read(growing=True):
                tags += found
            if size_bytes <= window or any(_begins_picture(tag) for tag in tags):
                break
        for kind in self._kinds if tags else ():
            if header := _header_before(path, kind, tags[0].offset):
                self._headers[kind] = header
        return tags

    def _first(self, tags: Sequence[flv.Tag]) -> int | None:
        """The place of the tag with which the view begins; None if it cannot begin yet."""
        media = [(place, tag) for place, tag in enumerate(tags) if tag.kind in self._kinds and tag.is_media]
        for _, tag in media:
            self._newest_ms[tag.kind] = tag.timestamp_ms
        newest_ms = max(self._newest_ms.values(), default=0)
        self._live = frozenset(kind for kind, at_ms in self._newest_ms.items() if newest_ms - at_ms < LIVE_MS)
        if flv.VIDEO in self._live:
            return max((place for place, tag in media if _begins_picture(tag)), default=None)
        return min((place for place, tag in media if newest_ms - tag.timestamp_ms < SOUND_MS), default=None)

    def _encoded(self, tags: Sequence[flv.Tag]) -> bytes:
        found: list[bytes] = []
        for tag in tags:
            if tag.kind in self._kinds and tag.is_sequence_header:
                self.over = self._headers.get(tag.kind) != tag.payload
            elif tag.kind in self._kinds and tag.is_media:
                self.over = self._is_change(tag)
                self._newest_ms[tag.kind] = tag.timestamp_ms
                found += [] if self.over else [flv.encode(tag.kind, tag.timestamp_ms, tag.payload)]
            if self.over:
                break
        return b"".join(found)

    def _is_change(self, tag: flv.Tag) -> bool:
        """Whether a packet does not continue the view."""
        if tag.kind not in self._live:
            return True
        newest_ms = max(self._newest_ms[kind] for kind in self._live)
        silent = any(tag.timestamp_ms - self._newest_ms[kind] > SILENT_MS for kind in self._live - {tag.kind})
        return silent or abs(tag.timestamp_ms - newest_ms) > timeline.JUMP_MS


def _begins_picture(tag: flv.Tag) -> bool:
    return tag.is_key and tag.is_media


def _header_before(path: Path, kind: int, before: int) -> bytes | None:
    """The sequence header of a track that holds at an offset: the newest one by the arrival index, else the last one at the
    beginning of the segment. A segment of ffmpeg has no index, and ends where a track begins."""
    for offset in itertools.islice(arrival_index.small_tags(path, kind, before), _MOST_CANDIDATES):
        tag = next(iter(_tags(path, offset, arrival_index.SMALL_BYTES + flv.TAG_OVERHEAD_BYTES)), None)
        if tag is not None and tag.offset == offset and tag.kind == kind and tag.is_sequence_header:
            return tag.payload
    headers = [tag for tag in _tags(path, 0, WINDOW_BYTES) if tag.kind == kind and tag.is_sequence_header]
    return headers[-1].payload if headers else None


def _tags(path: Path, begin_bytes: int, most_bytes: int) -> list[flv.Tag]:
    reader = flv.TagReader(path, begin_bytes)
    try:
        return reader.read(most_bytes, growing=True)
    finally:
        reader.close()
