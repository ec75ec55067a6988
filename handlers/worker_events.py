"""Deciding: what workers and time say. Imports `machine` and `events`.

Rule: an outcome that names what is not there is ignored and logged, never raised: nobody could mend it.
"""

from __future__ import annotations

from dataclasses import replace

import structlog

from handlers import unit_of_work, user_requests
from machine import model, recording, states

log = structlog.get_logger()

SESSION_DEADLINES = {
    "max-duration": "max-duration-over",
    "join": "join-over",
    "idle": "idle-over",
    "result-wait": "result-wait-over",
}
RECORDING_DEADLINES = {
    "retry": "retry-due",
    "linger": "linger-over",
    "idle": "idle-over",
    "node-return": "node-return-over",
}


async def capture_started(uow: unit_of_work.UnitOfWork) -> None:
    """The first packet is on disk."""
    await _to_recording(uow, "capture-started")


async def ffmpeg_exit(uow: unit_of_work.UnitOfWork) -> None:
    """A run of ffmpeg ended; a capture's leaves a closed segment behind."""
    data = uow.event.data
    if data["Job"] == states.CAPTURE:
        values = {"media_ms": data.get("MediaMs", 0), "size_bytes": data.get("SizeBytes", 0), "reason": data["Reason"]}
        values |= {"first_packet_ms": data.get("FirstPacketMs"), "last_packet_ms": data.get("LastPacketMs")}
        await uow.tx.close_segment(_id(uow), data["Epoch"], values)
    await _to_recording(uow, f"{data['Job']}-exit")


async def upload_finished(uow: unit_of_work.UnitOfWork) -> None:
    """The object is in the bucket."""
    await _to_recording(uow, "upload-finished")


async def upload_failed(uow: unit_of_work.UnitOfWork) -> None:
    """The object is not in the bucket."""
    await _to_recording(uow, "upload-failed")


async def callback_finished(uow: unit_of_work.UnitOfWork) -> None:
    """The receiver took the result."""
    await _to_callback(uow, "callback-finished")


async def callback_failed(uow: unit_of_work.UnitOfWork) -> None:
    """The receiver did not take the result."""
    await _to_callback(uow, "callback-failed")


async def worker_lost(uow: unit_of_work.UnitOfWork) -> None:
    """A lease ended without an outcome."""
    data = uow.event.data
    owner = data["Owner"]
    if "/" not in owner:
        await _to_owner_callback(uow, owner, "worker-lost")
        return
    if "MediaMs" in data:
        values = {name: data[key] for name, key in (("media_ms", "MediaMs"), ("size_bytes", "SizeBytes")) if key in data}
        values |= {"last_packet_ms": data.get("LastPacketMs"), "reason": "worker-lost"}
        await uow.tx.close_segment(owner, data["Epoch"], values)
    await _to_recording(uow, "worker-lost", owner)


async def deadline_passed(uow: unit_of_work.UnitOfWork) -> None:
    """A deadline is over, if it is still the one that was armed."""
    data, tx = uow.event.data, uow.tx
    owner, kind = data["Owner"], data["Kind"]
    # The session first, as everywhere: who holds it may be about to take this deadline away.
    current = await tx.session(owner.split("/")[0].split("#")[0])
    if not await tx.spend_deadline(owner, kind, data["Serial"]):
        return
    if "/" in owner:
        if kind == "keep":
            await _forget(uow, current, owner)
        else:
            await _to_recording(uow, RECORDING_DEADLINES[kind], owner)
    elif "#" in owner:
        await _to_owner_callback(uow, owner, "retry-due")
    elif current is not None:
        await uow.to_session(current, SESSION_DEADLINES[kind])


async def _forget(uow: unit_of_work.UnitOfWork, current: model.Session | None, owner: str) -> None:
    """KEEP_FAILED is over: the files are the janitor's, and the secrets go unless another recording, or whoever speaks next, may
    still need them."""
    task_id, keep_ms = model.split_id(owner)[0], uow.context.policy.keep_failed_ms
    recordings = await uow.tx.recordings(task_id)
    going_on = (current is not None and current.state == states.OPEN) or any(not r.final for r in recordings)
    needed = going_on or uow.needs_secrets(recordings)
    if going_on:
        # What goes on may end well, and nothing else would wipe them then.
        await uow.tx.arm(owner, "keep", uow.tx.now_ms + keep_ms)
    if not needed:
        await uow.tx.wipe_secrets(task_id)
    note = "KEEP_FAILED is over: files may go" + ("" if needed else ", secrets wiped")
    await uow.tx.journal(task_id, owner, uow.event, note=note)


async def _to_recording(uow: unit_of_work.UnitOfWork, trigger: str, recording_id: str = "") -> None:
    recording_id = recording_id or _id(uow)
    current = await uow.tx.session(model.split_id(recording_id)[0])
    value = await uow.tx.recording(recording_id)
    if current is None or value is None:
        log.warning("outcome.unknown_recording", recording_id=recording_id, event_type=uow.event.type)
        return
    decision = await uow.to_recording(current, value, trigger)
    current = await _note_media(uow, current, decision)
    if value.state in states.CAPTURING and decision.recording.state == states.TRANSCODING:
        await _await_again(uow, current, decision.recording)
    if decision.recording.final and not value.final:
        await uow.settle(current.task_id)


async def _note_media(uow: unit_of_work.UnitOfWork, current: model.Session, decision: recording.Decision) -> model.Session:
    """What a recording's media means for its session: somebody publishes, and idleness counts from here."""
    published = current.published or (states.JOINING, states.RECORDING) in decision.moves
    idle_from_ms = max(current.idle_from_ms, decision.recording.idle_from_ms)
    if (published, idle_from_ms) == (current.published, current.idle_from_ms):
        return current
    return await uow.tx.save_session(current, replace(current, published=published, idle_from_ms=idle_from_ms))


async def _await_again(uow: unit_of_work.UnitOfWork, current: model.Session, value: model.Recording) -> None:
    """A subscribed speaker is tried as long as the session is Open, callbacks or not: the next recording waits for media."""
    if current.state == states.OPEN and value.speaker in current.request.subscribe and value.present is not False:
        await user_requests.open_for(uow, current, value.speaker, present=None)


async def _to_callback(uow: unit_of_work.UnitOfWork, trigger: str) -> None:
    data = uow.event.data
    await _to_owner_callback(uow, f"{data['TaskId']}#{data['Revision']}", trigger)


async def _to_owner_callback(uow: unit_of_work.UnitOfWork, owner: str, trigger: str) -> None:
    task_id = owner.split("#")[0]
    await uow.tx.session(task_id)
    for value in await uow.tx.deliveries(task_id):
        if value.id == owner:
            await uow.to_delivery(value, trigger)
            return
    log.warning("outcome.unknown_callback", owner=owner, event_type=uow.event.type)


def _id(uow: unit_of_work.UnitOfWork) -> str:
    data = uow.event.data
    return f"{data['TaskId']}/{data['Speaker']}/{data['N']}"
