"""A reader of a segment while ffmpeg writes it: media on disk and its wall times.

Rules: only media on disk counts, never ffmpeg's reports. A wall time is the file's modification time, corrected by what this
machine's clock is off, and clamped between the previous poll and this one, so that a file server with a wrong clock cannot move
it. Each poll reads a bounded amount, whatever an untrusted server sends; `behind` says that more is left for the next poll. An
unfinished tag is awaited: what its payload holds may look like tags.

The first packet reaches the disk late, because ffmpeg analyses for up to a second. Its wall time is therefore estimated: the
earliest of (time of writing − media position) over the first seconds, but never before the spawn.

When the media was live is measured apart (envelope.py). A sample is taken only if the file was read to its end, so that the
time of writing is that of the last packet read.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from machine import capture_progress
from media import envelope, flv, timeline

_SETTLING_MS = 5_000
_LOOK_FOR_S = 0.1


class Tail:
    """Reads the bytes added since the last poll. No packet can have arrived before `spawned_ms`; `behind` says that the last poll
    left bytes for the next one, `lost` that the file, once seen, was deleted, or that its folder is gone. The capture resets
    `growing` when nobody writes any more: the next poll then reads on behind an unfinished tag whose size is damaged."""

    def __init__(self, path: Path, mode: str, *, spawned_ms: int) -> None:
        self._path = path
        self._timeline = timeline.Timeline(timeline.wanted(mode))
        self._spawned_ms = spawned_ms
        self._looked_ms = spawned_ms
        self._ahead_ms = 0
        self._reader: flv.TagReader | None = None
        self._envelope = envelope.Envelope()
        self.progress = capture_progress.CaptureProgress()
        self.grown_ms: int | None = None
        self.behind = False
        self.lost = False
        self.growing = True
        self._polling = threading.Lock()
        self._closed = False

    def close(self) -> None:
        """Close the file (blocking). If a poll of another thread hangs, that poll closes the file. Safe to call twice."""
        self._closed = True
        if self._polling.acquire(blocking=False):
            try:
                if self._reader is not None:
                    self._reader.close()
            finally:
                self._polling.release()

    def poll(self, now_ms: int, ahead_ms: int = 0) -> None:
        """Read the bytes written so far (blocking). `grown_ms` becomes the wall time of the last growth of any track. `ahead_ms`:
        how far the clock of modification times is ahead of that of `now_ms`; too little makes a time late, and never early.

        Raises OSError if the file cannot be read.
        """
        with self._polling:
            if not self._closed:
                self._ahead_ms = ahead_ms
                self._poll(now_ms)
        if self._closed:
            self.close()

    def _poll(self, now_ms: int) -> None:
        if self._reader is None:
            try:
                self._reader = flv.TagReader(self._path)
            except FileNotFoundError:
                self.lost = not self._path.parent.is_dir()
                return
        behind, self.behind = self.behind, False
        stat = self._reader.stat()
        self.lost = stat.st_nlink == 0
        if stat.st_size > self.progress.size_bytes or behind or (self._reader.torn and not self.growing):
            written_ms = self._written_ms(stat, now_ms)
            self._take(stat.st_size, written_ms, now_ms)
        self._looked_ms = now_ms

    def _take(self, size_bytes: int, written_ms: int, now_ms: int) -> None:
        assert self._reader is not None  # noqa: S101 - look() opened it
        found = arrived = False
        began_s = time.monotonic()
        until_s = began_s + _LOOK_FOR_S
        while not self.behind and (tags := self._reader.read(growing=self.growing)):
            self.behind = time.monotonic() > until_s
            for tag in tags:
                arrived = arrived or tag.is_media
                found = self._timeline.place(tag) is not None or found
        if arrived:
            self.grown_ms = written_ms
        if found:
            self._sample(now_ms + round((time.monotonic() - began_s) * 1000))
        self.progress = capture_progress.CaptureProgress(
            media_ms=self._timeline.end_ms,
            size_bytes=size_bytes,
            first_packet_ms=self._first_ms(written_ms) if found else self.progress.first_packet_ms,
            last_packet_ms=written_ms if found else self.progress.last_packet_ms,
            anchors=self._envelope.anchors,
        )

    def _sample(self, now_ms: int) -> None:
        assert self._reader is not None  # noqa: S101 - poll() opened it
        stat = self._reader.stat()
        if not self.behind and stat.st_size == self._reader.read_bytes:
            self._envelope.add(self._timeline.position_ms, self._written_ms(stat, now_ms))

    def _written_ms(self, stat: os.stat_result, now_ms: int) -> int:
        """When the file was written, on the clock of `now_ms`."""
        return min(max(stat.st_mtime_ns // 1_000_000 - self._ahead_ms, self._looked_ms), now_ms)

    def _first_ms(self, written_ms: int) -> int:
        known = self.progress.first_packet_ms
        if known is not None and self._timeline.position_ms > _SETTLING_MS:
            return known
        reckoned = max(self._spawned_ms, written_ms - self._timeline.position_ms)
        return reckoned if known is None else min(known, reckoned)
