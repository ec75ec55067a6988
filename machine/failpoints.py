"""Failpoints: named boundaries at which a crash matters, each with the consequence of a crash there.

Rules: `hit` does nothing until `service.py` or a test installs a harness. Every name that the code hits is in the table, and
every name in the table is hit. Names are `subject.step.before` or `subject.step.after`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

POINTS: Mapping[str, str] = {
    "inbox.claim.before": "nothing is written; the sender retries the event",
    "inbox.claim.after": "the claim is rolled back with the rest; the event is retried and decided then",
    "decision.commit.before": "nothing is committed, not even the claim; the event is retried",
    "decision.commit.after": "everything is committed, without an answer; the repeat gets the first answer",
    "bus.acknowledge.before": "handled but not acknowledged: the broker redelivers, and the inbox or the lease deduplicates",
    "bus.acknowledge.after": "nothing is pending",
    "outbox.claim.before": "the message waits in the outbox for the next start or any other relay",
    "outbox.claim.after": "read but not published: another relay reads it again after the claim expires",
    "bus.publish.before": "not published: it is claimed and published again",
    "bus.confirm.after": "the broker has the message, the outbox has no mark: it is published again under the same id",
    "outbox.mark.before": "delivered but not marked sent: redelivered; an event is deduplicated, a command finds its lease taken",
    "outbox.mark.after": "nothing is pending",
    "lease.take.before": "the job stays queued; its command is issued again",
    "lease.take.after": "leased but not begun: `worker-lost`, and the command is issued again under a new epoch",
    "lease.renew.before": "the lease expires or is voided at the next start: `worker-lost`, and the job restarts",
    "lease.renew.after": "as before the renewal, only later",
    "capture.spawn.before": "the segment is registered and empty: `worker-lost`, and the next capture writes the next segment",
    "capture.spawn.after": "the capture dies with the service; everything it wrote counts as media",
    "capture.media.before": "media is on disk without an event: `worker-lost` reports the media of the segment",
    "capture.media.after": "`capture-started` is in the outbox; the segment ends here, the next capture writes the next segment",
    "capture.stop.before": "the next start requests the stop again, or the death of the worker ends the capture",
    "capture.stop.after": "the capture got the request, its end is not reported: `worker-lost` reports it, and the stop holds",
    "segment.close.before": "the segment is closed on disk but not reported: `worker-lost` reports its media",
    "segment.close.after": "`ffmpeg-exit` is in the outbox; nothing is pending",
    "transcode.start.before": "leased but not begun: the transcode restarts under a new epoch",
    "transcode.start.after": "ffmpeg dies with the service, the partial file is discarded, and the transcode restarts",
    "transcode.rename.before": "the verified partial file is discarded, and the transcode restarts",
    "transcode.rename.after": "the file has its name but no event reports it: the transcode restarts under the next epoch's name",
    "upload.create.before": "COS has nothing; the upload restarts",
    "upload.create.after": "COS keeps an upload whose id is in no row: the retry finds it by its key and aborts it",
    "upload.part.before": "the upload resumes from the parts that COS lists",
    "upload.part.after": "COS has the part, the row does not: COS lists it, and it is not sent again",
    "upload.complete.before": "all parts are in COS; the retry completes the upload",
    "upload.complete.after": "the object exists: the upload is forgotten, the object is compared and counts",
    "upload.head.before": "as after Complete: the retry compares the object",
    "upload.head.after": "as before the HEAD request",
    "upload.done.before": "the object exists and matches, without an event: the retry compares it again",
    "upload.done.after": "`upload-finished` is in the outbox; nothing is pending",
    "piece.note.before": "the file ends where its last note says, and the next file begins there",
    "piece.note.after": "the note counts; what it replaces in the segments is released with the next note or at the end",
    "piece.release.before": "COS has the parts, and their state is on the disk: the next look releases the bytes",
    "piece.release.after": "nothing is pending",
    "callback.send.before": "the result is in its table and the delivery is a job: the retry posts it",
    "callback.send.after": "posted, but the outcome is not written: posted again, the same body under the same `webhook-id`",
    "callback.mark.before": "as after the POST",
    "callback.mark.after": "`callback-finished` is in the outbox; nothing is pending",
    "manifest.put.before": "the manifest is a delivery's job: the retry writes it",
    "manifest.put.after": "written, but the outcome is not: written again, with the same bytes",
    "cleanup.remove.before": "the row has released the files and still lists them: the next round deletes them",
    "cleanup.remove.after": "the files are gone but still listed: the next round finds nothing to delete",
}
"""Name → the consequence of a crash there."""

DISTRIBUTED_ONLY = frozenset({"bus.acknowledge.before", "bus.acknowledge.after", "bus.publish.before", "bus.confirm.after"})
"""Failpoints of RabbitMQ's path, which the embedded engine does not have."""

BOUNDED_ONLY = frozenset(name for name in POINTS if name.startswith("piece."))
"""Failpoints of a bounded spool, which only the embedded engine has; those of the notes are in the process of a follower."""

_harness: Callable[[str], None] | None = None


def install(harness: Callable[[str], None] | None) -> None:
    """Install the function that every failpoint calls with its name; None removes it. Only `service.py` and tests call this."""
    global _harness
    _harness = harness


def hit(name: str) -> None:
    """Reach the failpoint `name`: the harness may kill, freeze or raise here."""
    if _harness is not None:
        _harness(name)
