"""Recordings of speakers: which speakers a session records, and the opening of their next recording.

Rule: a speaker's recordings are numbered from 1.
"""

from __future__ import annotations

from events import requests
from handlers import unit_of_work
from machine import model, published


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
) -> None:
    """Open the speaker's recording `n`; `present` None: subscribed, not seen yet. `published_ms`: since when callbacks report a
    recorded track; 0: they do not."""
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
    if present:
        mark_published(uow, current.task_id)


def mark_published(uow: unit_of_work.UnitOfWork, task_id: str) -> None:
    """Note that somebody published: the session can no longer end as NobodyPublished."""
    current = uow.held(task_id)
    if not current.published:
        uow.save_session(model.changed(current, published=True))
