"""Segments of recordings, and the files on spools that may be deleted."""

from __future__ import annotations

from dataclasses import dataclass

from machine import job_key

WRITTEN_HEADER = "x-written-ms"
"""HTTP header of a segment fetched from another node: when its file was last written (Unix ms)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One FLV file of a recording, named by the epoch of its capture. It is on the spool of `node`. Times are Unix ms."""

    epoch: int
    node: str
    first_packet_ms: int | None
    last_packet_ms: int | None
    media_ms: int
    registered_ms: int
    reason: str  # how its capture ended; "" until an outcome arrives


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenUpFiles:
    """Files on one node's spool of a recording that gave them up: everything that epochs up to `until_epoch` wrote."""

    until_epoch: int
    segments: tuple[int, ...]  # epochs of its segments there


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftovers:
    """Files of a recording that may be deleted from any spool.

    If `given_up`: everything that epochs up to `epoch` wrote. Otherwise: outputs of transcodes before `epoch`, except the
    verified file of `output_epoch` (None: there is no such file, and nothing may be deleted)."""

    recording: job_key.RecordingKey
    epoch: int
    given_up: bool
    output_epoch: int | None
