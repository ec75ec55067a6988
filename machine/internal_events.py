"""Internal events: the typed payloads of the events that workers and time publish.

Rule: a payload has the fields of its type in events/schemas.json under the names that `codec.to_payload` translates. The fields
that name the recording or the delivery are not part of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from machine import alignment, job_key, model


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureStarted:
    """`capture-started`: the first packet of a wanted track is on disk."""

    epoch: int
    first_packet_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FfmpegExit:
    """`ffmpeg-exit`: a capture or a transcode ended."""

    epoch: int
    job: str  # states.CAPTURE or states.TRANSCODE
    reason: str  # a Reason, or the word of a newer node
    detail: str = ""  # an English sentence for the operator
    retry: bool = True  # whether a retry may succeed
    media_ms: int = 0  # a capture: media on disk, of the tracks that the mode records
    size_bytes: int = 0  # a capture: bytes on disk
    first_packet_ms: int | None = None
    last_packet_ms: int | None = None
    # A capture: when its media was live.
    anchors: alignment.Anchors = field(default=alignment.NO_ANCHORS, metadata={"parse": alignment.Anchors.from_json})
    # A transcode: the verified file.
    output: model.Output | None = field(default=None, metadata={"parse": model.Output.from_json})
    node: str = ""  # the node that holds the output; "": any node can reach it


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadFinished:
    """`upload-finished`: the object is in the bucket, size and CRC-64 compared."""

    epoch: int
    size_bytes: int
    crc64: str  # CRC-64/XZ, decimal
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadFailure:
    """`upload-failed`: an upload ended without the object in the bucket."""

    epoch: int
    reason: str
    retry: bool
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryFinished:
    """`callback-finished`: the receiver accepted the result."""

    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryFailure:
    """`callback-failed`: the receiver did not accept the result."""

    epoch: int
    reason: str
    retry: bool
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLost:
    """`worker-lost`: a lease ended without an outcome. `media_ms` is None if the segment could not be read."""

    owner: job_key.OwnerKey = field(metadata={"parse": job_key.parse})
    epoch: int
    node: str  # the node that held the lease
    media_ms: int | None = None
    size_bytes: int | None = None
    last_packet_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadlinePassed:
    """`deadline-passed`: an armed deadline is over."""

    owner: job_key.OwnerKey = field(metadata={"parse": job_key.parse})
    kind: str
    serial: str  # which arming of it: an older one counts no more


RecordingOutcome = CaptureStarted | FfmpegExit | UploadFinished | UploadFailure | WorkerLost
DeliveryOutcome = DeliveryFinished | DeliveryFailure | WorkerLost
WorkerEvent = CaptureStarted | FfmpegExit | UploadFinished | UploadFailure | DeliveryFinished | DeliveryFailure
TimerEvent = WorkerLost | DeadlinePassed
TYPES: Mapping[str, type] = {
    "capture-started": CaptureStarted,
    "ffmpeg-exit": FfmpegExit,
    "upload-finished": UploadFinished,
    "upload-failed": UploadFailure,
    "callback-finished": DeliveryFinished,
    "callback-failed": DeliveryFailure,
    "worker-lost": WorkerLost,
    "deadline-passed": DeadlinePassed,
}
"""Event type → its payload."""
TYPE_OF = {kind: type_ for type_, kind in TYPES.items()}
"""The opposite."""
