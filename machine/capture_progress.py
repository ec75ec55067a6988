"""Progress and end of a capture: media on disk, and the reason why the capture ended."""

from __future__ import annotations

from dataclasses import dataclass

from machine import alignment


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureProgress:
    """Media on disk: `media_ms` of the recorded tracks, `size_bytes` of all tracks, first and last packet in Unix ms, and when
    the media was live."""

    media_ms: int = 0
    size_bytes: int = 0
    first_packet_ms: int | None = None
    last_packet_ms: int | None = None
    anchors: alignment.Anchors = alignment.NO_ANCHORS


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureExit:
    """How a capture ended: `reason` a Reason of captures, `detail` an English sentence without secrets."""

    reason: str
    detail: str
    progress: CaptureProgress
