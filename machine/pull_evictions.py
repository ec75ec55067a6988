"""Mutual eviction: pulls of one session that end one another, named in a recording's detail.

Rule: whether TRTC lets several pulls share one UserId is not confirmed; in its SDK a second entry of a user evicts the first. So
the detail names it only when it is too frequent for chance, and keeps the name afterwards.
"""

from __future__ import annotations

from machine import model

REPORTED_FROM = 3
DETAIL = (
    "Pulls of this session ended one another, again and again: it seems that TRTC lets a UserId in only once. Give the service"
    " the application's key (TRTC_KEYS) and set PULL_USER=per-speaker."
)


def detail(recording: model.Recording) -> str:
    """The detail that names mutual eviction if it ended enough runs of the recording, or ""."""
    return DETAIL if recording.evicted >= REPORTED_FROM or recording.detail == DETAIL else ""
