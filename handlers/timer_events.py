"""Handlers of the events that time causes: `deadline-passed` and `worker-lost`.

Rule: a deadline counts only if it is still the one that was armed. An event that names an unknown owner is logged and ignored.
"""

from __future__ import annotations

from typing import Any

import structlog

from events import codec
from handlers import unit_of_work, worker_events
from machine import internal_events, job_key, model, progress, results, states
from machine.reasons import Reason

log = structlog.get_logger()

SESSION_TRIGGERS = {
    "max-duration": "max-duration-over",
    "join": "join-over",
    "idle": "idle-over",
    "result-wait": "result-wait-over",
    "revise": "revise-over",
}
RECORDING_TRIGGERS = {
    "retry": "retry-due",
    "linger": "linger-over",
    "idle": "idle-over",
    "node-return": "node-return-over",
}


def worker_lost(uow: unit_of_work.UnitOfWork) -> None:
    """A lease ended without an outcome."""
    lost = codec.to_payload(internal_events.WorkerLost, uow.event.data)
    owner = lost.owner
    if isinstance(owner, job_key.DeliveryKey):
        worker_events.advance_delivery(uow, owner, "worker-lost", lost)
        return
    if not isinstance(owner, job_key.RecordingKey):
        log.warning("outcome.unknown_owner", owner=owner, epoch=lost.epoch)
        return
    if lost.media_ms is not None:
        values: dict[str, Any] = {"media_ms": lost.media_ms, "last_packet_ms": lost.last_packet_ms, "reason": Reason.WORKER_LOST}
        if lost.size_bytes is not None:
            values["size_bytes"] = lost.size_bytes
        uow.changes.segments.append((owner, lost.epoch, values))
        if lost.media_ms and lost.last_packet_ms:
            first_ms = lost.last_packet_ms - lost.media_ms
            worker_events.note_pull(uow, owner, first_ms, lost.last_packet_ms, Reason.WORKER_LOST)
    worker_events.advance_recording(uow, owner, "worker-lost", lost)


def deadline_passed(uow: unit_of_work.UnitOfWork) -> None:
    """A deadline passed: trigger what its kind means for its owner."""
    passed = codec.to_payload(internal_events.DeadlinePassed, uow.event.data)
    owner, kind = passed.owner, passed.kind
    current = uow.find_session(owner.task_id)
    if uow.snapshot.deadline(owner, kind) != passed.serial:
        return
    uow.changes.deadlines[owner, kind] = None
    if isinstance(owner, job_key.RecordingKey):
        if kind == "keep":
            _expire_files(uow, current, owner)
        elif kind == progress.DEADLINE:
            _publish_progress(uow, owner)
        else:
            worker_events.advance_recording(uow, owner, RECORDING_TRIGGERS[kind])
    elif isinstance(owner, job_key.DeliveryKey):
        worker_events.advance_delivery(uow, owner, "retry-due")
    elif current is not None:
        uow.advance_session(current.task_id, SESSION_TRIGGERS[kind])


def _publish_progress(uow: unit_of_work.UnitOfWork, owner: job_key.RecordingKey) -> None:
    """PROGRESS_EVERY passed: publish the media on disk, as long as the recording captures."""
    value = uow.find_recording(owner)
    if value is not None and value.state == states.RECORDING:
        media_ms = sum(uow.snapshot.segment_nodes(owner).values())
        data = results.recording_progress(uow.held(owner.task_id), value, uow.now_ms, media_ms)
        uow.publish(progress.PROGRESS, data, owner)
        uow.arm(owner, progress.DEADLINE, uow.now_ms + uow.context.policy.progress_every_ms)


def _expire_files(uow: unit_of_work.UnitOfWork, current: model.Session | None, owner: job_key.RecordingKey) -> None:
    """KEEP_FAILED passed: the janitor may delete the files. Wipe the secrets too, unless the session is Open or another recording
    may still need them."""
    task_id, keep_ms = owner.task_id, uow.context.policy.keep_failed_ms
    active = current is not None and (current.state == states.OPEN or current.live > 0)
    needed = active or uow.needs_secrets(uow.recordings(task_id))
    if active:
        # The rest of the session may end in Done, and then no other deadline would wipe the secrets.
        uow.arm(owner, "keep", uow.now_ms + keep_ms)
    if not needed:
        uow.changes.secrets[task_id] = None
    note = "KEEP_FAILED is over: files may go" + ("" if needed else ", secrets wiped")
    uow.journal(owner, "", "", note)
