"""Files of the dictionary store: segments, interrupted uploads, and files on spools that nothing needs any more."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from machine import alignment, capture_progress, job_key, model, segments, states
from tests.simulated import dictionary_connections, dictionary_jobs


class Segments(dictionary_connections.Concern):
    """Segments of recordings."""

    async def register(self, recording: job_key.RecordingKey, epoch: int, node: str) -> None:
        """Register a segment before its capture starts. Idempotent: a known segment keeps its values."""
        if (str(recording), epoch) not in self._tables.segments and not self._connections.superseded(recording, epoch):
            async with self._connections.write() as writes:
                blank = {"first_packet_ms": None, "last_packet_ms": None, "media_ms": 0, "size_bytes": 0, "reason": ""}
                blank |= {"anchors": alignment.NO_ANCHORS}
                row = {"node": node, "registered_ms": self._connections.now_ms(), **blank}
                writes.put(self._tables.segments, (str(recording), epoch), row)

    async def update(self, recording: job_key.RecordingKey, epoch: int, values: Mapping[str, Any]) -> None:
        """Update a growing segment: first_packet_ms, last_packet_ms, media_ms, size_bytes."""
        row = self._tables.segments.get((str(recording), epoch))
        if row is not None and not row["reason"] and not self._connections.superseded(recording, epoch):
            async with self._connections.write() as writes:
                writes.put(self._tables.segments, (str(recording), epoch), row | dict(values))

    async def note_progress(self, growing: Mapping[tuple[job_key.RecordingKey, int], capture_progress.CaptureProgress]) -> None:
        """Update growing segments as `update` does; their recordings and sessions are not idle."""
        for (recording, epoch), progress in growing.items():
            names = [f.name for f in dataclasses.fields(progress)]
            await self.update(recording, epoch, {name: getattr(progress, name) for name in names})
            async with self._connections.write() as writes:
                writes.note_media(str(recording), epoch, progress.last_packet_ms or 0)

    async def of_recording(self, recording: job_key.RecordingKey) -> list[segments.Segment]:
        """The segments of a recording in the order of their epochs."""
        names = ("node", "first_packet_ms", "last_packet_ms", "media_ms", "registered_ms", "reason", "anchors")
        found = sorted((key[1], row) for key, row in self._tables.segments.items() if key[0] == str(recording))
        return [segments.Segment(epoch=epoch, **{name: row[name] for name in names}) for epoch, row in found]


class Uploads(dictionary_connections.Concern):
    """States of interrupted uploads."""

    def __init__(self, connections: dictionary_connections.Connections, leases: dictionary_jobs.Leases) -> None:
        super().__init__(connections)
        self._leases = leases

    async def state(self, recording: job_key.RecordingKey) -> dict[str, Any] | None:
        """The state of an interrupted upload, or None."""
        return copy.deepcopy(self._tables.uploads.get(str(recording)))

    async def save(self, recording: job_key.RecordingKey, epoch: int, node: str, body: Mapping[str, Any]) -> bool:
        """Save the state of a running upload. False: the lease was refused and nothing was written; stop the work."""
        if not await self._leases.is_held(recording, epoch, node):
            return False
        async with self._connections.write() as writes:
            writes.put(self._tables.uploads, str(recording), copy.deepcopy(dict(body)))
        return True

    async def delete(self, recording: job_key.RecordingKey, epoch: int) -> None:
        """Delete the state of the upload of `epoch`, unless a newer epoch has started. Idempotent."""
        if not self._connections.superseded(recording, epoch):
            async with self._connections.write() as writes:
                writes.drop(self._tables.uploads, str(recording))


class SpoolFiles(dictionary_connections.Concern):
    """Files on spools that nothing needs any more."""

    async def removable(self, failed_before_ms: int) -> list[job_key.RecordingKey]:
        """Recordings that keep files which nothing needs."""
        return [r.key for r in self._tables.recordings.values() if _unwanted(r, failed_before_ms)][:100]

    async def give_up(self, recording: job_key.RecordingKey, failed_before_ms: int) -> bool:
        """Give up the files of a `removable` recording, before they are deleted."""
        found = self._tables.recordings.get(str(recording))
        if found is None or not _unwanted(found, failed_before_ms):
            return False
        async with self._connections.write() as writes:
            given_up = model.changed(found, files_removed=True, version=found.version + 1)
            writes.put(self._tables.recordings, str(recording), given_up)
        return True

    async def given_up(self, node: str) -> list[job_key.RecordingKey]:
        """Recordings that gave up files which are still on the spool of `node` ("": a spool that all nodes share)."""
        lying = {key[0] for key, row in self._tables.segments.items() if node in ("", row["node"])}
        held = [r for r in self._tables.recordings.values() if r.files_removed]
        return [r.key for r in held if str(r.key) in lying or (node and r.output_node == node)][:100]

    async def of_recording(self, recording: job_key.RecordingKey, node: str) -> segments.GivenUpFiles | None:
        """The given-up files of a recording on the spool of `node`; None if a replay has started since."""
        found = self._tables.recordings.get(str(recording))
        if found is None or not found.files_removed:
            return None
        there = [key[1] for key, row in self._tables.segments.items() if key[0] == str(recording) and node in ("", row["node"])]
        return segments.GivenUpFiles(until_epoch=found.epoch, segments=tuple(epoch for epoch in there if epoch <= found.epoch))

    async def forget(self, recording: job_key.RecordingKey, node: str, epochs: Sequence[int]) -> None:
        """Forget segments, and the finished file, after they were deleted from the spool of `node`."""
        found = self._tables.recordings.get(str(recording))
        async with self._connections.write() as writes:
            for epoch in epochs:
                writes.drop(self._tables.segments, (str(recording), epoch))
            if node and found is not None and found.files_removed and found.output_node == node:
                writes.put(self._tables.recordings, str(recording), model.changed(found, output_node=""))

    async def leftovers(self, task_ids: Sequence[str]) -> list[segments.Leftovers]:
        """Files of these sessions that nothing can need, on whatever spool."""
        return [
            segments.Leftovers(
                recording=r.key,
                epoch=r.epoch,
                given_up=r.files_removed,
                output_epoch=r.output.epoch if r.output is not None else None,
            )
            for r in sorted(self._tables.recordings.values(), key=lambda r: str(r.key))
            if r.task_id in task_ids and (r.files_removed or r.output is not None)
        ]


def _unwanted(value: model.Recording, failed_before_ms: int) -> bool:
    whole = value.state == states.DONE and (value.output is None or value.output.whole)
    over = value.final and value.ended_ms is not None and value.ended_ms < failed_before_ms
    return not value.files_removed and (whole or over)
