"""What the doing handlers are handed: captures, transcodes, uploads, callbacks, as shapes. Imports `machine` and `events`.

Rule: the rooms that do the work (media, cloud) are not known here; `assembly` joins them. Every failure arrives as one of
`machine.errors.StepFailed`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from machine import due_work, model
from machine.reasons import Reason


class Progress(Protocol):
    """How far a capture is. Wall times in Unix ms, None before the first packet."""

    @property
    def media_ms(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def first_packet_ms(self) -> int | None: ...
    @property
    def last_packet_ms(self) -> int | None: ...


class Exit(Protocol):
    """How a capture ended: a reason, a detail in English, and what is on disk."""

    @property
    def reason(self) -> Reason: ...
    @property
    def detail(self) -> str: ...
    @property
    def progress(self) -> Progress: ...


class Capture(Protocol):
    """One run of ffmpeg on one stream."""

    @property
    def progress(self) -> Progress: ...
    async def start(self) -> None: ...
    def stop(self) -> None: ...
    def kill(self) -> None: ...
    async def wait(self) -> Exit: ...


class Scan(Protocol):
    """What a segment on disk holds."""

    @property
    def media_ms(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def last_packet_ms(self) -> int | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """What a transcode made."""

    output: model.Output


@dataclass(frozen=True, slots=True, kw_only=True)
class Uploaded:
    """What stands in the bucket now, compared with the file."""

    size_bytes: int
    crc64: str
    url: str


OnMedia = Callable[[Progress], None]
SaveState = Callable[[dict[str, Any]], Awaitable[None]]


class Steps(Protocol):
    """The work itself. Paths are the spool's; addresses and credentials never leave these calls."""

    def capture(self, job: due_work.Assignment, epoch: int, on_media: OnMedia) -> Capture:
        """A capture that is not started yet; `on_media` is called once, when the first packet of a wanted track is on disk."""
        ...

    async def scan(self, job: due_work.Assignment, epoch: int, known_ms: int) -> Scan:
        """What the segment of `epoch` holds, within moments; nothing if it was never written. Of a large one no more need be told
        than `known_ms`, the media that was noted of it. Raises OSError for one that cannot be read."""
        ...

    async def fetch(self, job: due_work.Assignment, epoch: int, url: str) -> bool:
        """Copy the segment of `epoch` from the node at `url` to this one's spool; False if it cannot be had now."""
        ...

    async def transcode(self, job: due_work.Assignment, epoch: int, segments: Sequence[Any]) -> Finished:
        """Segments (rows of the store) to the finished file of `epoch`. Raises TranscodeFailed."""
        ...

    async def upload(self, job: due_work.Assignment, state: dict[str, Any] | None, save: SaveState) -> Uploaded:
        """The finished file into the bucket; `save` keeps what was reached, `state` is what was kept. Raises UploadFailed."""
        ...

    async def deliver(self, callback: model.Delivery) -> None:
        """Post the result. Raises CallbackFailed."""
        ...

    async def remove(self, recording_id: str, until_epoch: int) -> int:
        """Delete what epochs up to this one wrote of a recording from the spool; returns how many files that were. Harmless to
        repeat. Raises OSError once the others are gone, for what cannot be deleted."""
        ...

    async def remove_outputs(self, recording_id: str, before_epoch: int, but_epoch: int) -> int:
        """As `remove`, for what transcodes before `before_epoch` made, but for the one of `but_epoch`."""
        ...

    async def kept_sessions(self) -> list[str]:
        """The TaskIds of which something lies on the spool."""
        ...

    def segment_path(self, job: due_work.Assignment, epoch: int) -> Path:
        """Where the segment of `epoch` lies."""
        ...
