"""Named points where a crash matters, each with what a crash there means. A no-op until `service.py` installs a harness.

Imports nothing. Rule: `faultpoint` never changes what the program does unless a harness was installed; every name that is
called is in the table, and every name in the table is called. Names are `what.step.before` or `what.step.after`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

POINTS: Mapping[str, str] = {
    "inbox.claim.before": "nothing was written; whoever said the event says it again",
    "inbox.claim.after": "the claim is rolled back with the rest; the event comes again and is decided then",
    "decision.commit.before": "nothing is committed, not even the claim; the event comes again",
    "decision.commit.after": "all is committed and nobody was answered; the repeat gets the first answer",
    "bus.acknowledge.before": "handled and not acknowledged: the broker delivers it again, the inbox or the lease knows it",
    "bus.acknowledge.after": "nothing is open",
    "outbox.claim.before": "the message stands in the outbox, for the next start or any other relay",
    "outbox.claim.after": "read and not handed on: it is read again, by another relay once the claim has run out",
    "bus.publish.before": "not published: it is claimed and published again",
    "bus.confirm.after": "the broker has it and the outbox does not know: it is published again under the same id",
    "outbox.mark.before": "handed on and not marked: again then; an event is a repeat, a command finds its lease taken",
    "outbox.mark.after": "nothing is open",
    "lease.take.before": "the job stays queued, its command comes again",
    "lease.take.after": "leased and nothing begun: `worker-lost`, and the command comes again under a new epoch",
    "lease.renew.before": "the lease runs out or is voided at the next start: `worker-lost`, the job begins again",
    "lease.renew.after": "as before it, only later",
    "capture.spawn.before": "the segment is registered and empty; `worker-lost`, the next capture is the next segment",
    "capture.spawn.after": "ffmpeg dies with the service; what it had written is media all the same",
    "capture.media.before": "media is on disk and nobody knows: `worker-lost` tells what the segment holds",
    "capture.media.after": "`capture-started` stands in the outbox, the segment ends here, the next capture is the next segment",
    "capture.stop.before": "the stop is asked for again at the next start, or the death of its worker ends the capture",
    "capture.stop.after": "ffmpeg was asked, its end not said: `worker-lost` says it, and the stop holds",
    "segment.close.before": "the segment is closed on disk and not said: `worker-lost` says what it holds",
    "segment.close.after": "`ffmpeg-exit` stands in the outbox; nothing is open",
    "transcode.start.before": "leased and nothing begun: the transcode starts again under a new epoch",
    "transcode.start.after": "ffmpeg dies with the service, the part is thrown away, the transcode starts again",
    "transcode.rename.before": "the verified part is thrown away, the transcode starts again",
    "transcode.rename.after": "the file has its name and nobody knows: the transcode starts again under the next epoch's name",
    "upload.create.before": "nothing in COS; the upload begins again",
    "upload.create.after": "COS keeps an upload whose id nobody wrote down: the next try finds it by its key and gives it up",
    "upload.part.before": "the upload goes on from the parts that COS lists",
    "upload.part.after": "the part is in COS and not written down: COS lists it, it is not sent again",
    "upload.complete.before": "all parts are in COS; the next try completes",
    "upload.complete.after": "the object is there; the upload is forgotten, the object is compared and counts",
    "upload.head.before": "as after Complete: the object is compared at the next try",
    "upload.head.after": "as before it",
    "upload.done.before": "the object is there and compared, nobody was told: the next try compares it again",
    "upload.done.after": "`upload-finished` stands in the outbox; nothing is open",
    "callback.send.before": "the result is in its table, the callback is a job: posted by the next try",
    "callback.send.after": "posted, and the outcome not written: posted again, the same body under the same `webhook-id`",
    "callback.mark.before": "as after the POST",
    "callback.mark.after": "`callback-finished` stands in the outbox; nothing is open",
    "cleanup.remove.before": "the row has given the files up and lists them still: they go at the next look",
    "cleanup.remove.after": "the files are gone and listed still: the next look finds nothing to delete",
}
"""Name → what it means that the process dies there."""

DISTRIBUTED_ONLY = frozenset({"bus.acknowledge.before", "bus.acknowledge.after", "bus.publish.before", "bus.confirm.after"})
"""Points of the road through RabbitMQ, which the engine of one node does not have."""

_harness: Callable[[str], None] | None = None


def install(harness: Callable[[str], None] | None) -> None:
    """Install the function that every fault point calls with its name (None removes it). Only `service.py` and tests do this."""
    global _harness
    _harness = harness


def hit(name: str) -> None:
    """Say that the program is at the boundary `name`; the harness may kill, freeze or raise here."""
    if _harness is not None:
        _harness(name)
