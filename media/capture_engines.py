"""Chooses the capture of each segment: native, or by ffmpeg.

Rule: a server that the native reader does not understand gets ffmpeg for the next segments of that recording. Where a restart of
the server explains the same, only the second time in a row counts.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

from machine import capture_progress
from media import capture, ffmpeg_capture, native_capture

NATIVE = "native"
# Older recordings are forgotten, and the native reader tries their server again.
_MOST_REMEMBERED = 10_000


class CaptureEngines:
    """Makes the captures of a worker."""

    def __init__(self, engine: str, *, ffmpeg: str, clock: Callable[[], int]) -> None:
        """`engine` is "native" or "ffmpeg"."""
        self._native = engine == NATIVE
        self._ffmpeg = ffmpeg
        self._clock = clock
        self._captures: weakref.WeakSet[capture.Capture] = weakref.WeakSet()
        self._misunderstood: dict[str, None] = {}
        self._doubted: dict[str, None] = {}

    def make(
        self, spec: capture.CaptureSpec, recording: str, on_media: Callable[[capture_progress.CaptureProgress], None]
    ) -> capture.Capture:
        """Make the capture of one segment of `recording`, not yet started."""
        made: capture.Capture
        if self._native and recording not in self._misunderstood:

            def understood(progress: capture_progress.CaptureProgress) -> None:
                self._doubted.pop(recording, None)
                on_media(progress)

            def misunderstood(certain: bool) -> None:
                certain = certain or recording in self._doubted
                self._doubted.pop(recording, None)
                _remember(self._misunderstood if certain else self._doubted, recording)

            made = native_capture.NativeCapture(spec, on_media=understood, on_misunderstood=misunderstood, clock=self._clock)
        else:
            made = ffmpeg_capture.FfmpegCapture(spec, ffmpeg=self._ffmpeg, on_media=on_media, clock=self._clock)
        self._captures.add(made)
        return made

    def live_pids(self) -> list[int]:
        """Process ids of the running ffmpegs. A native capture has none of its own."""
        return [each.pid for each in self._captures if each.pid and not each.ended]


def _remember(among: dict[str, None], recording: str) -> None:
    if len(among) >= _MOST_REMEMBERED:
        among.pop(next(iter(among)))
    among[recording] = None
