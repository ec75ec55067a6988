"""Recordings of speakers: which speakers a session records, and the opening of their next recording.

Rule: the caller holds the session's row. A speaker's recordings are numbered from 1.
"""

from __future__ import annotations

from dataclasses import replace

from events import requests
from handlers import unit_of_work
from machine import model


def is_recorded(request: requests.StartRequest, speaker: str) -> bool:
    """Whether the session records this speaker."""
    if speaker == request.user_id or speaker in request.unsubscribe:
        return False
    return not request.subscribe or speaker in request.subscribe


async def open_recording(
    uow: unit_of_work.UnitOfWork, current: model.Session, speaker: str, *, present: bool | None
) -> model.Session:
    """Open the speaker's next recording; `present` None: subscribed, not seen yet. Returns the session's new version."""
    earlier = [r.n for r in await uow.tx.recordings(current.task_id) if r.speaker == speaker]
    value = model.Recording(
        task_id=current.task_id,
        speaker=speaker,
        n=max(earlier, default=0) + 1,
        mode=current.request.mode,
        present=present,
        never_seen=present is None,
        opened_ms=uow.tx.now_ms,
        idle_from_ms=uow.tx.now_ms,
    )
    await uow.open_recording(current, value)
    return await mark_published(uow, current) if present else current


async def mark_published(uow: unit_of_work.UnitOfWork, current: model.Session) -> model.Session:
    """Note that somebody published: the session can no longer end as NobodyPublished."""
    if current.published:
        return current
    return await uow.tx.save_session(current, replace(current, published=True))
