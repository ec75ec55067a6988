"""Handlers of the events that workers publish: the outcomes of captures, transcodes, uploads and deliveries.

Rule: an outcome that names an unknown recording or delivery is logged and ignored, never raised: no retry could repair it.
"""

from __future__ import annotations

import structlog

from events import codec
from handlers import deliveries, speakers, unit_of_work
from machine import internal_events, job_key, model, presence, recording, states
from machine.reasons import Reason

log = structlog.get_logger()


def capture_started(uow: unit_of_work.UnitOfWork) -> None:
    """The first packet is on disk."""
    outcome = codec.to_payload(internal_events.CaptureStarted, uow.event.data)
    advance_recording(uow, job_key.RecordingKey.of(uow.event.data), "capture-started", outcome)


def ffmpeg_exit(uow: unit_of_work.UnitOfWork) -> None:
    """A capture or a transcode ended. A capture leaves a closed segment."""
    key, outcome = job_key.RecordingKey.of(uow.event.data), codec.to_payload(internal_events.FfmpegExit, uow.event.data)
    if outcome.job == states.CAPTURE:
        values = {"media_ms": outcome.media_ms, "size_bytes": outcome.size_bytes, "reason": outcome.reason}
        values |= {"first_packet_ms": outcome.first_packet_ms, "last_packet_ms": outcome.last_packet_ms}
        values |= {"anchors": outcome.anchors}
        note_pull(uow, key, outcome.first_packet_ms, outcome.last_packet_ms, outcome.reason)
        uow.changes.segments.append((key, outcome.epoch, values))
        _count_eviction(uow, key, outcome)
    advance_recording(uow, key, f"{outcome.job}-exit", outcome)


def upload_finished(uow: unit_of_work.UnitOfWork) -> None:
    """The object is in the bucket."""
    outcome = codec.to_payload(internal_events.UploadFinished, uow.event.data)
    advance_recording(uow, job_key.RecordingKey.of(uow.event.data), "upload-finished", outcome)


def upload_failed(uow: unit_of_work.UnitOfWork) -> None:
    """The object is not in the bucket."""
    outcome = codec.to_payload(internal_events.UploadFailure, uow.event.data)
    advance_recording(uow, job_key.RecordingKey.of(uow.event.data), "upload-failed", outcome)


def callback_finished(uow: unit_of_work.UnitOfWork) -> None:
    """The receiver accepted the result."""
    outcome = codec.to_payload(internal_events.DeliveryFinished, uow.event.data)
    advance_delivery(uow, job_key.DeliveryKey.of(uow.event.data), "callback-finished", outcome)


def callback_failed(uow: unit_of_work.UnitOfWork) -> None:
    """The receiver did not accept the result."""
    outcome = codec.to_payload(internal_events.DeliveryFailure, uow.event.data)
    advance_delivery(uow, job_key.DeliveryKey.of(uow.event.data), "callback-failed", outcome)


def advance_recording(
    uow: unit_of_work.UnitOfWork,
    key: job_key.RecordingKey,
    trigger: str,
    outcome: internal_events.RecordingOutcome | None = None,
) -> None:
    """Trigger a recording by its key, and apply to its session what follows from the decision."""
    value = uow.find_recording(key)
    if uow.find_session(key.task_id) is None or value is None:
        log.warning("outcome.unknown_recording", recording_id=key, event_type=uow.event.type)
        return
    decision = uow.advance_recording(value, trigger, outcome)
    _note_media(uow, decision)
    _refresh_presence(uow, decision)
    if value.state in states.CAPTURING and decision.recording.state == states.TRANSCODING:
        _expect_again(uow, decision.recording)
    if decision.recording.final and not value.final:
        uow.settle(key.task_id, decision.recording)


def advance_delivery(
    uow: unit_of_work.UnitOfWork, key: job_key.DeliveryKey, trigger: str, outcome: internal_events.DeliveryOutcome | None = None
) -> None:
    """Trigger a delivery by its key."""
    value = uow.snapshot.delivery(key)
    if uow.find_session(key.task_id) is None or value is None:
        log.warning("outcome.unknown_delivery", owner=key, event_type=uow.event.type)
        return
    deliveries.advance(uow, value, trigger, outcome)


def note_pull(
    uow: unit_of_work.UnitOfWork, key: job_key.RecordingKey, first_ms: int | None, last_ms: int | None, reason: str
) -> None:
    """Note when a pull brought media: without callbacks this is how the recorder knows that the speaker published."""
    value = uow.find_recording(key)
    if value is not None and value.state in states.CAPTURING and first_ms and last_ms:
        by_fault = reason not in (Reason.EOF, Reason.STALLED, Reason.STOPPED)
        uow.note_published(value, value.published.pulled(first_ms, last_ms, by_fault=by_fault))


def _count_eviction(uow: unit_of_work.UnitOfWork, key: job_key.RecordingKey, outcome: internal_events.FfmpegExit) -> None:
    """Count a run that ended with the stream just as a pull for another recording of the session began."""
    value = uow.find_recording(key)
    if value is None or value.epoch != outcome.epoch or outcome.reason != Reason.EOF or not outcome.last_packet_ms:
        return
    if uow.snapshot.evicted(key, outcome.last_packet_ms):
        uow.count_eviction(value)


def _note_media(uow: unit_of_work.UnitOfWork, decision: recording.RecordingDecision) -> None:
    """Apply a recording's media to its session: a speaker published, and idleness counts from the last packet."""
    current = uow.held(decision.recording.task_id)
    published = current.published or (states.JOINING, states.RECORDING) in decision.moves
    idle_from_ms = max(current.idle_from_ms, decision.recording.idle_from_ms)
    if (published, idle_from_ms) == (current.published, current.idle_from_ms):
        return
    uow.save_session(model.changed(current, published=published, idle_from_ms=idle_from_ms))


def _refresh_presence(uow: unit_of_work.UnitOfWork, decision: recording.RecordingDecision) -> None:
    """Media began or ended: the speaker was there, however old TRTC's last callback is. Merging nothing renews the row's age."""
    if any(states.RECORDING in move for move in decision.moves):
        value = decision.recording
        uow.changes.presence.setdefault((uow.held(value.task_id).request.room, value.speaker), presence.ABSENT)


def _expect_again(uow: unit_of_work.UnitOfWork, value: model.Recording) -> None:
    """Open the next recording of a subscribed speaker, who is tried as long as the session is Open, callbacks or not."""
    current = uow.held(value.task_id)
    if current.state == states.OPEN and value.speaker in current.request.subscribe and value.present is not False:
        n = uow.next_n(value.task_id, value.speaker)
        speakers.open_recording(uow, current, value.speaker, n=n, present=None)
