"""The work that a worker executes, as a Protocol: captures, transcodes, uploads, deliveries, and files on the spool.

Rule: every failure is a `machine.errors.StepFailed`, unless a method names another error. Addresses and credentials stay behind
these calls.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from machine import capture_progress, due_work, job_key, model, segments, uploaded_object


class Capture(Protocol):
    """One run of a capture on one stream (media.capture.Capture)."""

    @property
    def progress(self) -> capture_progress.CaptureProgress: ...
    async def start(self) -> None: ...
    def stop(self) -> None: ...
    def kill(self) -> None: ...
    async def wait(self) -> capture_progress.CaptureExit: ...


OnMedia = Callable[[capture_progress.CaptureProgress], None]
SaveState = Callable[[dict[str, Any]], Awaitable[None]]


class Work(Protocol):
    """The work of a node (assembly.work.NodeWork)."""

    def capture(self, job: due_work.Assignment, epoch: int, on_media: OnMedia) -> Capture:
        """Make a capture, not yet started. It calls `on_media` once, when the first packet of a wanted track is on disk."""
        ...

    def follows(self, recording: job_key.RecordingKey) -> bool:
        """Whether the finished file of this recording is being written while it grows, so that its transcode needs no CPU."""
        ...

    def followed(self) -> list[job_key.RecordingKey]:
        """The recordings that this node follows, or whose growing files it uploads."""
        ...

    async def unfollow(self, recording: job_key.RecordingKey, upload: dict[str, Any] | None) -> None:
        """Follow a recording no longer. What was sent of its file is aborted, unless `upload`, its saved state, names it."""
        ...

    async def scan(self, job: due_work.Assignment, epoch: int, known_ms: int) -> capture_progress.CaptureProgress:
        """The content of the segment of `epoch`, within moments; empty if it was never written. For a large segment, `known_ms`
        of media and the size are enough. Raises OSError if it cannot be read."""
        ...

    async def fetch(self, job: due_work.Assignment, epoch: int, url: str) -> bool:
        """Copy the segment of `epoch` from the node at `url` to this spool; False if that node cannot give it now."""
        ...

    async def transcode(self, job: due_work.Assignment, epoch: int, parts: Sequence[segments.Segment]) -> model.Output:
        """Make the finished file of `epoch` from its segments. Raises TranscodeFailed."""
        ...

    async def upload(
        self, job: due_work.Assignment, state: dict[str, Any] | None, save: SaveState
    ) -> uploaded_object.UploadedObject:
        """Upload the finished file, from the saved `state` on; `save` stores each new state. Raises UploadFailed."""
        ...

    async def deliver(self, delivery: model.Delivery) -> None:
        """Post a result to the callback URL. Raises DeliveryFailed."""
        ...

    async def write_manifest(self, manifest: due_work.ManifestAssignment) -> None:
        """Write a manifest to the bucket. Raises DeliveryFailed."""
        ...

    async def probe_spool(self) -> str:
        """Why the spool cannot be written and read now, within moments; "" if it can."""
        ...

    async def remove(self, recording: job_key.RecordingKey, until_epoch: int) -> int:
        """Delete the files that epochs up to this one wrote for a recording; returns their number. Idempotent. Raises OSError for
        a file that cannot be deleted, after deleting the others."""
        ...

    async def remove_outputs(self, recording: job_key.RecordingKey, before_epoch: int, except_epoch: int) -> int:
        """Like `remove`, for the outputs of transcodes before `before_epoch`, except the output of `except_epoch`."""
        ...

    async def task_ids_on_spool(self) -> list[str]:
        """The TaskIds that have files on the spool."""
        ...
