"""Handlers of the events that time causes: `deadline-passed` and `worker-lost`.

Rule: a deadline counts only if it is still the one that was armed. An event that names an unknown owner is logged and ignored.
"""

from __future__ import annotations

from typing import Any

import structlog

from events import codec
from handlers import unit_of_work, worker_events
from machine import internal_events, job_key, model, states
from machine.reasons import Reason

log = structlog.get_logger()

SESSION_TRIGGERS = {
    "max-duration": "max-duration-over",
    "join": "join-over",
    "idle": "idle-over",
    "result-wait": "result-wait-over",
}
RECORDING_TRIGGERS = {
    "retry": "retry-due",
    "linger": "linger-over",
    "idle": "idle-over",
    "node-return": "node-return-over",
}


async def worker_lost(uow: unit_of_work.UnitOfWork) -> None:
    """A lease ended without an outcome."""
    lost = codec.to_payload(internal_events.WorkerLost, uow.event.data)
    owner = lost.owner
    if isinstance(owner, job_key.DeliveryKey):
        await worker_events.advance_delivery(uow, owner, "worker-lost", lost)
        return
    if not isinstance(owner, job_key.RecordingKey):
        log.warning("outcome.unknown_owner", owner=owner, epoch=lost.epoch)
        return
    if lost.media_ms is not None:
        values: dict[str, Any] = {"media_ms": lost.media_ms, "last_packet_ms": lost.last_packet_ms, "reason": Reason.WORKER_LOST}
        if lost.size_bytes is not None:
            values["size_bytes"] = lost.size_bytes
        await uow.tx.close_segment(owner, lost.epoch, values)
    await worker_events.advance_recording(uow, owner, "worker-lost", lost)


async def deadline_passed(uow: unit_of_work.UnitOfWork) -> None:
    """A deadline passed: trigger what its kind means for its owner."""
    passed, tx = codec.to_payload(internal_events.DeadlinePassed, uow.event.data), uow.tx
    owner, kind = passed.owner, passed.kind
    # Lock the session first, as everywhere: the transaction that holds it may be about to disarm this deadline.
    current = await tx.session(owner.task_id)
    if not await tx.spend_deadline(owner, kind, passed.serial):
        return
    if isinstance(owner, job_key.RecordingKey):
        if kind == "keep":
            await _expire_files(uow, current, owner)
        else:
            await worker_events.advance_recording(uow, owner, RECORDING_TRIGGERS[kind])
    elif isinstance(owner, job_key.DeliveryKey):
        await worker_events.advance_delivery(uow, owner, "retry-due")
    elif current is not None:
        await uow.advance_session(current, SESSION_TRIGGERS[kind])


async def _expire_files(uow: unit_of_work.UnitOfWork, current: model.Session | None, owner: job_key.RecordingKey) -> None:
    """KEEP_FAILED passed: the janitor may delete the files. Wipe the secrets too, unless the session is Open or another recording
    may still need them."""
    task_id, keep_ms = owner.task_id, uow.context.policy.keep_failed_ms
    recordings = await uow.tx.recordings(task_id)
    active = (current is not None and current.state == states.OPEN) or any(not r.final for r in recordings)
    needed = active or uow.needs_secrets(recordings)
    if active:
        # The rest of the session may end in Done, and then no other deadline would wipe the secrets.
        await uow.tx.arm(owner, "keep", uow.tx.now_ms + keep_ms)
    if not needed:
        await uow.tx.wipe_secrets(task_id)
    note = "KEEP_FAILED is over: files may go" + ("" if needed else ", secrets wiped")
    await uow.tx.journal(owner, uow.event, note=note)
