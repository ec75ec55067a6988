"""Writes the tags of native captures to their segments and arrival indexes: one thread for all captures of a process.

Rules:
- The thread writes every `TICK_S` what arrived since, with one write for the segment and one for its index. A kill loses no more
  than the last tick.
- The files are created with the first tag, so that a refused pull leaves none.
- Only tracks that the mode records are written, and metadata. A tag of another track still proves that the stream is alive.
- Progress describes what is on disk, and agrees with a scan of the file.
- The first error of the file system ends the writing; later tags are dropped.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from machine import capture_progress
from media import arrival_index, flv, resource_limits, sei, timeline

log = structlog.get_logger()

TICK_S = 0.05
_LOOK_EVERY_S = 1.0
_SETTLING_MS = 5_000
_SEI_PACKETS = 500
_FLAGS_OFFSET = 4
_FLAG = {flv.AUDIO: 4, flv.VIDEO: 1, flv.SCRIPT: 0}


class SegmentFull(Exception):
    """The segment reached its largest size."""


# A tag: when it arrived, in ms since the base; its kind; its timestamp in ms; its payload. A plain tuple, because there are 70 a
# second for each capture.
_Item = tuple[int, int, int, bytes]


class SegmentWriter:
    """One segment. The event loop calls `add` and `close`; the thread calls `flush`.

    `on_change` is called in the event loop when the first media is on disk, after a fault, and when the segment is closed.
    `fault` is the error that ended the writing.
    """

    def __init__(
        self, path: Path, mode: str, *, base_ms: int, on_change: Callable[[], None], loop: asyncio.AbstractEventLoop
    ) -> None:
        self._path = path
        self._kinds = timeline.wanted(mode) | {flv.SCRIPT}
        self._on_change = on_change
        self._loop = loop
        self._base_ms = base_ms
        self._items: collections.deque[_Item] = collections.deque()
        self._added_bytes = self._done_bytes = 0
        self._file = self._index = -1
        self._flags = 0
        self._size_bytes = 0
        self._looked_s = 0.0
        self._placing = _Placing(timeline.wanted(mode), base_ms)
        self._closing = False
        self.closed = False
        self.fault: Exception | None = None
        self.progress = capture_progress.CaptureProgress()

    @property
    def waiting_bytes(self) -> int:
        """Bytes that are not on disk yet."""
        return self._added_bytes - self._done_bytes

    @property
    def unreadable(self) -> tuple[str, ...]:
        """The codecs of wanted tracks that ffmpeg cannot read."""
        return tuple(codec for _, codec in sorted(self._placing.unreadable.items()))

    def add(self, arrived_ms: int, kind: int, timestamp_ms: int, payload: bytes) -> None:
        """Take a tag that arrived `arrived_ms` after the base."""
        if kind in self._kinds and self.fault is None and not self._closing:
            self._added_bytes += len(payload)
            self._items.append((arrived_ms, kind, timestamp_ms, payload))

    def close(self) -> None:
        """Write the rest and close the files, in the thread."""
        self._closing = True

    def flush(self, now_s: float) -> None:
        """Write what was added so far (blocking). Called by one thread."""
        closing = self._closing
        items = [self._items.popleft() for _ in range(len(self._items))]
        before = self.progress.media_ms > 0, self.fault
        try:
            if items and self.fault is None:
                self._write(items)
            if self._file >= 0 and (closing or now_s - self._looked_s >= _LOOK_EVERY_S):
                self._looked_s = now_s
                self._look()
        except OSError as error:
            self.fault = self.fault or error
        except Exception as error:
            # The thread serves other captures as well.
            log.exception("segment.not_written", segment=self._path.name)
            self.fault = self.fault or error
        self._done_bytes += sum(len(payload) for _, _, _, payload in items)
        if closing:
            self._close()
        if closing or before != (self.progress.media_ms > 0, self.fault):
            self._tell()

    def _tell(self) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop ended
            self._loop.call_soon_threadsafe(self._on_change)

    def _write(self, items: list[_Item]) -> None:
        tags: list[bytes] = []
        records, room, flags = [], resource_limits.CAPTURE.file_bytes - self._size_bytes, self._flags
        for number, (arrived_ms, kind, timestamp_ms, payload) in enumerate(items):
            room -= flv.TAG_OVERHEAD_BYTES + len(payload)
            if room < flv.FIRST_TAG_BYTES:
                self.fault = SegmentFull("the segment reached its largest size")
                del items[number:]
                break
            tags += flv.pieces(kind, timestamp_ms, payload)
            records.append(arrival_index.record(arrived_ms, kind, len(payload)))
            flags |= _FLAG[kind]
        if not tags:
            return
        if self._file < 0:
            self._open()
            tags.insert(0, flv.header(audio=bool(flags & 4), video=bool(flags & 1)))
            records.insert(0, arrival_index.header(self._base_ms))
        elif flags != self._flags:
            os.pwrite(self._file, bytes((flags,)), _FLAGS_OFFSET)
        self._flags = flags
        self._size_bytes += _write(self._file, b"".join(tags))
        _write(self._index, b"".join(records))
        self.progress = self._placing.place(items, self._size_bytes)

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
        self._file = os.open(self._path, flags, 0o600)
        self._index = os.open(arrival_index.path_of(self._path), flags | os.O_TRUNC, 0o600)

    def _look(self) -> None:
        """Raise FileNotFoundError if the segment was deleted."""
        if os.fstat(self._file).st_nlink == 0:
            raise FileNotFoundError(f"The segment or its folder {self._path.parent} was deleted while it was written.")

    def _close(self) -> None:
        for file in (self._file, self._index):
            if file >= 0:
                try:
                    os.close(file)
                except OSError as error:  # a network file system reports a full disk here
                    self.fault = self.fault or error
        self._file = self._index = -1
        self.closed = True


class _Placing:
    """The progress of a segment, from its tags. It has no anchors, because the arrival index tells more."""

    def __init__(self, kinds: frozenset[int], base_ms: int) -> None:
        self._timeline = timeline.Timeline(kinds)
        self._base_ms = base_ms
        self._first_ms: int | None = None
        self._last_ms: int | None = None
        self._looks_for_sei = _SEI_PACKETS

    @property
    def unreadable(self) -> dict[int, str]:
        """The codec of each wanted track that ffmpeg cannot read."""
        return self._timeline.unreadable

    def place(self, items: list[_Item], size_bytes: int) -> capture_progress.CaptureProgress:
        """Count these tags, and return the progress with them."""
        line = self._timeline
        for since_base_ms, kind, timestamp_ms, payload in items:
            if line.place_packet(kind, timestamp_ms, flv.usual_payload(kind, payload)) is None:
                continue
            if self._looks_for_sei and kind == flv.VIDEO:
                self._look_for_sei(payload)
            position_ms = line.position_ms
            arrived_ms = self._base_ms + since_base_ms
            self._last_ms = arrived_ms
            if self._first_ms is None or position_ms <= _SETTLING_MS:
                began_ms = max(self._base_ms, arrived_ms - position_ms)
                self._first_ms = began_ms if self._first_ms is None else min(self._first_ms, began_ms)
        return capture_progress.CaptureProgress(
            media_ms=self._timeline.end_ms,
            size_bytes=size_bytes,
            first_packet_ms=self._first_ms,
            last_packet_ms=self._last_ms,
        )

    def _look_for_sei(self, payload: bytes) -> None:
        self._looks_for_sei -= 1
        found = sei.reserved_by_trtc(payload)
        if found is not None:
            self._looks_for_sei = 0
            log.debug("capture.trtc_sei", begin=found.hex())


class WriterThread:
    """The thread that flushes the segments. It runs while there are any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._writers: list[SegmentWriter] = []
        self._wake = threading.Event()
        self._running = False

    def add(self, writer: SegmentWriter) -> None:
        """Flush this segment from now on until it is closed."""
        with self._lock:
            self._writers.append(writer)
            if not self._running:
                self._running = True
                threading.Thread(target=self._run, name="segment-writer", daemon=True).start()

    def hurry(self) -> None:
        """Flush now."""
        self._wake.set()

    def _run(self) -> None:
        while True:
            self._wake.wait(TICK_S)
            self._wake.clear()
            now_s = time.monotonic()
            with self._lock:
                writers = list(self._writers)
            for writer in writers:
                writer.flush(now_s)
            with self._lock:
                self._writers = [writer for writer in self._writers if not writer.closed]
                if not self._writers:
                    self._running = False
                    return


SHARED = WriterThread()


def _write(file: int, data: bytes) -> int:
    """Write all of `data`; returns its length. Raises OSError."""
    left = memoryview(data)
    while left:
        left = left[os.write(file, left) :]
    return len(data)
