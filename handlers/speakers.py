"""Recordings of speakers: which speakers a session records, and the opening of their next recording.

Rule: a speaker's recordings are numbered from 1.
"""

from __future__ import annotations

from events import requests
from handlers import unit_of_work
from machine import job_key, model, published, states


def is_recorded(request: requests.StartRequest, speaker: str) -> bool:
    """Whether the session records this speaker."""
    if speaker == request.user_id or speaker in request.unsubscribe:
        return False
    return not request.subscribe or speaker in request.subscribe


def open_recording(
    uow: unit_of_work.UnitOfWork,
    current: model.Session,
    speaker: str,
    *,
    n: int,
    present: bool | None,
    published_ms: int = 0,
) -> model.Recording:
    """Open the speaker's recording `n`; `present` None: not seen yet. `published_ms`: since when callbacks report a recorded
    track; 0: they do not."""
    known = published.UNKNOWN
    if published_ms:
        known = known.switched_on(published_ms, current.opened_ms)
    value = model.Recording(
        task_id=current.task_id,
        speaker=speaker,
        n=n,
        mode=current.request.mode,
        present=present,
        never_seen=present is None,
        opened_ms=uow.now_ms,
        idle_from_ms=uow.now_ms,
        published=known,
    )
    uow.open_recording(value)
    _let_user_pull(uow, value)
    if present:
        mark_published(uow, current.task_id)
    return value


def _let_user_pull(uow: unit_of_work.UnitOfWork, value: model.Recording) -> None:
    """With a user per speaker, let the session's UserId itself pull this one, unless it pulls another."""
    current = uow.held(value.task_id)
    if uow.context.user_per_speaker and uow.context.mints(current.request.room.sdk_app_id):
        pulled = current.user_pulls and uow.find_recording(job_key.parse_recording(current.user_pulls))
        if not pulled or pulled.state not in states.CAPTURING:
            uow.save_session(model.changed(current, user_pulls=value.key.text))


def mark_published(uow: unit_of_work.UnitOfWork, task_id: str) -> None:
    """Note that somebody published: the session can no longer end as NobodyPublished."""
    current = uow.held(task_id)
    if not current.published:
        uow.save_session(model.changed(current, published=True))


def capture_again(uow: unit_of_work.UnitOfWork, current: model.Session, failed: model.Recording) -> model.Recording:
    """Open the recording that retries a failed capture in an Open session. The failed one keeps its entry."""
    n = uow.next_n(current.task_id, failed.speaker)
    uow.journal(failed.key, failed.state, failed.state, f"its capture is retried as recording {n}")
    there = _publishes(uow, current, failed.speaker)
    # What was published before belongs to the failed recording.
    since_ms = uow.now_ms if there else 0
    return open_recording(uow, current, failed.speaker, n=n, present=True if there else None, published_ms=since_ms)


def retry_failed(uow: unit_of_work.UnitOfWork, current: model.Session) -> None:
    """Fresh secrets arrived: retry the failed captures of speakers who may be there."""
    callbacks_come = uow.callbacks_come(current.request.room.sdk_app_id)
    newest = {r.speaker: r for r in sorted(uow.recordings(current.task_id), key=lambda r: r.n)}
    for value in newest.values():
        expected = not callbacks_come or value.speaker in current.request.subscribe
        if value.code == states.FAILED_RECORDING and (expected or _publishes(uow, current, value.speaker)):
            capture_again(uow, current, value)


def _publishes(uow: unit_of_work.UnitOfWork, current: model.Session, speaker: str) -> bool:
    """Whether callbacks report that the speaker publishes something that the session records."""
    kinds = dict(uow.snapshot.publishers(current.request.room)).get(speaker, ())
    return bool(set(kinds) & set(states.WANTED_KINDS[current.request.mode]))
