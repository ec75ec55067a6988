"""Pull users: the users under which a session pulls its speakers. Pure.

Rules: with PULL_USER=per-speaker each speaker has a user of its own, because TRTC may admit a user only once. One of the speakers
is pulled by the session's UserId itself, so that this user is in the room and can be removed from it.
"""

from __future__ import annotations

import hashlib

from machine import model


def per_speaker(user_id: str, speaker: str) -> str:
    """A user id of its own for the pull of each speaker. TRTC allows user ids of up to 32 bytes, so a digest separates speakers
    with a common prefix."""
    digest = hashlib.sha256(speaker.encode()).hexdigest()[:12]
    return f"{_prefix(user_id)}{digest}"


def of(session: model.Session, recording: model.Recording) -> str:
    """The user that pulls a recording where each speaker has one of its own."""
    user_id = session.request.user_id
    return user_id if session.user_pulls == recording.key.text else per_speaker(user_id, recording.speaker)


def may_be(session: model.Session, user: str) -> bool:
    """Whether a user has the form of the session's pull users."""
    return user == session.request.user_id or user.startswith(_prefix(session.request.user_id))


def _prefix(user_id: str) -> str:
    return user_id.encode()[:19].decode(errors="ignore") + "-"
