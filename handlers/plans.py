"""Plans: the data that a decision needs in most cases, so that few steps load it.

Rule: a plan is a guess. Data that a decision needs beyond it is loaded on demand, and the decision is repeated, at some cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from events import codec, requests
from events import errors as event_errors
from handlers import trtc_events
from machine import internal_events, job_key, model, ports, progress, states
from machine.reasons import Reason

Stages = Iterator[Sequence[ports.Need]]


def of(event: codec.Event) -> ports.Plan:
    """The plan for an event."""
    make = _PLANS.get(event.type)
    if make is None:
        make = _session if "TaskId" in event.data else _room if "SdkAppId" in event.data else _nothing
    return lambda snapshot: make(event, snapshot)


def _nothing(event: codec.Event, snapshot: ports.Snapshot) -> Stages:
    return iter(())


def _recording(event: codec.Event, snapshot: ports.Snapshot) -> Stages:
    """A worker's outcome; the last end of a session that is closed needs all recordings for the result."""
    data, key = event.data, job_key.RecordingKey.of(event.data)
    needs: list[ports.Need] = [("session", (key.task_id,)), ("recording", (key,))]
    if data.get("Reason") == Reason.EOF and data.get("LastPacketMs"):
        needs.append(("evicted", (key, data["LastPacketMs"])))
    yield needs
    current = snapshot.session(key.task_id)
    if event.type == "upload-finished" and current is not None and current.state != states.OPEN and current.live == 1:
        later: list[ports.Need] = [("pending_deliveries", (key.task_id,))] if current.revision else []
        yield [("recordings", (key.task_id,)), *later]


def _delivery(event: codec.Event, snapshot: ports.Snapshot) -> Stages:
    key = job_key.DeliveryKey.of(event.data)
    needs: list[ports.Need] = [("session", (key.task_id,)), ("delivery", (key,))]
    if key.revision > model.MANIFESTS_FROM:
        needs += [("pending_deliveries", (key.task_id,)), ("recordings", (key.task_id,))]
    yield needs


def _deadline(event: codec.Event, snapshot: ports.Snapshot) -> Stages:
    passed = codec.to_payload(internal_events.DeadlinePassed, event.data)
    owner = passed.owner
    files: list[ports.Need] = [("segment_nodes", (owner,))] if passed.kind == progress.DEADLINE else []
    yield [("session", (owner.task_id,)), ("deadline", (owner, passed.kind)), *_owned(owner), *files]


def _lost(event: codec.Event, snapshot: ports.Snapshot) -> Stages:
    owner = codec.to_payload(internal_events.WorkerLost, event.data).owner
    yield [("session", (owner.task_id,)), *_owned(owner)]


def _owned(owner: job_key.OwnerKey) -> list[ports.Need]:
    if isinstance(owner, job_key.RecordingKey):
        return [("recording", (owner,))]
    return [("delivery", (owner,))] if isinstance(owner, job_key.DeliveryKey) else []


def _session(event: codec.Event, snapshot: ports.Snapshot) -> Stages:
    yield [("session", (event.data["TaskId"],)), ("recordings", (event.data["TaskId"],))]


def _resend(event: codec.Event, snapshot: ports.Snapshot) -> Stages:
    """The delivery of the revision, the newest by default."""
    task_id = event.data["TaskId"]
    yield [("session", (task_id,))]
    if current := snapshot.session(task_id):
        numbers = (event.data.get("Revision", current.revision), model.MANIFESTS_FROM + current.revision)
        yield [("delivery", (job_key.DeliveryKey(task_id, number),)) for number in numbers]


def _start(event: codec.Event, snapshot: ports.Snapshot) -> Stages:
    try:
        room = requests.room(event.data)
    except event_errors.InvalidEvent:
        return
    if room is not None:
        yield [("sessions_in", (room,)), ("publishers", (room,)), ("callback_ms", (event.data["SdkAppId"],))]


def _room(event: codec.Event, snapshot: ports.Snapshot) -> Stages:
    """A TRTC event: a speaker's recordings in each session of the room, or all of them when the room ends."""
    data, rooms = event.data, trtc_events.rooms(event.data)
    user = data.get("UserId", "")
    needs: list[ports.Need] = [("callback_ms", (data["SdkAppId"],)), *(("sessions_in", (room,)) for room in rooms)]
    if user and rooms:
        needs.append(("presence", (rooms[-1], user)))
    yield needs
    there = [s.task_id for room in rooms for s in snapshot.sessions_in(room)]
    if event.type == "room-destroyed":
        yield [("recordings", (task_id,)) for task_id in there]
    elif event.type in ("user-publishing", "user-unpublished", "user-entered", "user-left"):
        yield [("recordings_of", (task_id, user)) for task_id in there]


_PLANS: dict[str, Callable[[codec.Event, ports.Snapshot], Stages]] = {
    "capture-started": _recording,
    "ffmpeg-exit": _recording,
    "upload-finished": _recording,
    "upload-failed": _recording,
    "callback-finished": _delivery,
    "callback-failed": _delivery,
    "deadline-passed": _deadline,
    "worker-lost": _lost,
    "start": _start,
    "resend": _resend,
}
