"""Handlers of `replay` and `resend`. A replay resumes recordings from their files, or issues a stuck one's command again. A
resend posts a result again.

Rules: no I/O. A replay acts on files. It enters a room only while the session is Open, and then as a separate recording, so that
what was recorded before stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from events import requests
from handlers import deliveries, speakers, unit_of_work, user_requests
from machine import changes, delivery, errors, job_key, model, recording, results, states


@dataclass(frozen=True, slots=True)
class _Skipped:
    """A recording that a replay leaves as it is, with the reason."""

    value: model.Recording
    why: str


def replay(uow: unit_of_work.UnitOfWork) -> dict[str, Any]:
    """Replay the failed and stuck recordings of a session, or the ones that the request names.

    Returns TaskId, the effect on each recording, what is skipped and why, and the next result of a dry run, which writes nothing.
    Raises NotFound, Refused."""
    data = uow.event.data
    current = user_requests.named(uow, data["TaskId"])
    uow.changes.secrets[current.task_id] = uow.snapshot.secrets(current.task_id).renewed_by(requests.secrets(data))
    done: list[dict[str, Any]] = []
    skipped: list[_Skipped] = []
    ended = False
    for value in _chosen(uow, current):
        effect = _replay_one(uow, current, value)
        if isinstance(effect, _Skipped):
            skipped.append(effect)
            continue
        done.append(effect)
        ended |= not value.final and effect["To"] in states.FINAL
    if not done:
        raise errors.Refused(" ".join(f"{each.value.key} cannot be replayed: {each.why}." for each in skipped))
    if ended:
        uow.settle(current.task_id)
    left = [{"Speaker": each.value.speaker, "N": each.value.n, "Why": f"{each.why}."} for each in skipped]
    result = None
    if data.get("DryRun"):
        # Nobody knows yet how and with what an Open session ends.
        result = _next_result(uow, current) if current.state != states.OPEN else None
        uow.changes = changes.Changes()
    return {"TaskId": current.task_id, "Recordings": done, "Skipped": left, "Result": result}


def _next_result(uow: unit_of_work.UnitOfWork, current: model.Session) -> dict[str, Any]:
    """The next result if every recording that is not final succeeds. What only the transcode will know is left empty."""
    recordings = [r if r.final else _succeeded(uow, current, r) for r in uow.recordings(current.task_id)]
    return results.session_result(model.changed(current, revision=current.revision + 1), recordings)


def _succeeded(uow: unit_of_work.UnitOfWork, current: model.Session, value: model.Recording) -> model.Recording:
    output = value.output if value.state == states.UPLOADING else None
    url = uow.context.object_url(current.request, value)
    ended = {"state": states.DONE, "code": states.SUCCESS, "detail": "", "never_seen": False}
    return model.changed(value, **ended, url=url, output=output)


def resend(uow: unit_of_work.UnitOfWork) -> dict[str, Any]:
    """Post a revision of the result again, the newest unless one is named, and write a manifest again that was given up. Returns
    TaskId, Revision and State.

    Raises NotFound, Refused."""
    data = uow.event.data
    current = user_requests.named(uow, data["TaskId"])
    if not current.revision:
        raise errors.Refused("The session has no result yet; it is posted when the session finishes.")
    revision = data.get("Revision", current.revision)
    manifest = uow.snapshot.delivery(job_key.DeliveryKey(current.task_id, model.MANIFESTS_FROM + current.revision))
    if manifest is not None and manifest.state == delivery.FAILED:
        manifest = deliveries.advance(uow, manifest, "resend").delivery
    if not current.request.callback and manifest is not None:
        return {"TaskId": current.task_id, "Revision": current.revision, "State": manifest.state}
    if not current.request.callback:
        raise errors.Refused("The start named no Callback, so no result is posted; `recorder results` has them.")
    value = uow.snapshot.delivery(job_key.DeliveryKey(current.task_id, revision))
    if value is None:
        raise errors.NotFound(f"The result has no revision {revision}; the newest is {current.revision}.")
    decided = deliveries.advance(uow, value, "resend")
    if decided.ignored:
        raise errors.Refused(f"Revision {revision} is not posted again: {decided.ignored}.")
    return {"TaskId": current.task_id, "Revision": revision, "State": decided.delivery.state}


def _chosen(uow: unit_of_work.UnitOfWork, current: model.Session) -> list[model.Recording]:
    """The recordings that the request means. Raises NotFound, Refused."""
    data = uow.event.data
    speaker, n = data.get("Speaker"), data.get("N")
    found = [r for r in uow.recordings(current.task_id) if speaker in (None, r.speaker) and n in (None, r.n)]
    if not found:
        raise errors.NotFound("There is no such recording; `recorder show` lists a session's.")
    explicit = speaker is not None or "From" in data
    retried = current.state == states.OPEN
    chosen = [r for r in found if (not r.never_seen or (r.final and retried)) and (explicit or r.state != states.DONE)]
    if not chosen:
        raise errors.Refused("Every recording is Done already; name a speaker and an earlier stage with From.")
    return chosen


def _replay_one(uow: unit_of_work.UnitOfWork, current: model.Session, value: model.Recording) -> dict[str, Any] | _Skipped:
    stage = uow.event.data.get("From", "")
    if stage == "joining" and value.state in (states.TRANSCODING, states.UPLOADING):
        return _Skipped(value, f"it is {value.state}, and its capture is over")
    decided = recording.decide(value, "replay", uow.facts(value))
    if not decided.ignored:
        then = uow.advance_recording(value, "replay").recording
        return _line(uow, value, _action(value, then), then)
    if not value.final or stage not in ("", "joining") or (value.state == states.DONE and not stage):
        return _Skipped(value, decided.ignored)
    if why := _no_retry(uow, current, value):
        return _Skipped(value, why if stage else f"{decided.ignored}. To capture again: {why}")
    again = speakers.capture_again(uow, current, value)
    return _line(uow, value, f"capture again, as recording {again.n}", again)


def _no_retry(uow: unit_of_work.UnitOfWork, current: model.Session, value: model.Recording) -> str:
    """The reason not to retry the capture; "" if there is none."""
    if current.state != states.OPEN:
        return f"the session is {current.state}, and only a new session enters the room"
    if value.code != states.FAILED_RECORDING:
        return "its capture did not fail"
    last = max(r.n for r in uow.recordings_of(current.task_id, value.speaker))
    return f"recording {last} of the speaker follows it already" if last > value.n else ""


def _action(value: model.Recording, then: model.Recording) -> str:
    """What happens to a recording, in words."""
    if then.state == states.FAILED:
        return "end it: no media arrived"
    step = {states.TRANSCODING: "transcode", states.UPLOADING: "upload"}.get(then.state, "capture")
    return f"{step} again" if value.state == then.state else f"{step} from its files"


def _line(uow: unit_of_work.UnitOfWork, value: model.Recording, action: str, then: model.Recording) -> dict[str, Any]:
    url = "" if then.state == states.FAILED else uow.context.object_url(uow.held(then.task_id).request, then)
    effect = {"To": then.state, "Attempt": then.attempt, "Action": action, "Object": url}
    return {"Speaker": value.speaker, "N": value.n, "State": value.state, **effect}
