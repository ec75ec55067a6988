"""Presence of users in rooms, as TRTC's callbacks report it.

Rule: `merged` is commutative, associative and idempotent. Callbacks may therefore arrive in any order and any number of times,
without an inbox. Of events with the same time, a leaving counts most, then *on*, because a missed speaker is lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from events import requests

KINDS = ("audio", "video")
Known = Mapping[str, Any]
"""audio, video (bool); audio_ms, video_ms, left_ms: times of the newest events, Unix ms."""
ABSENT: Known = {"audio": False, "audio_ms": 0, "video": False, "video_ms": 0, "left_ms": 0}
ROOM = ""
"""The user under whose id a room keeps the time of its end, as `left_ms`. TRTC has no empty UserId."""


class Report(NamedTuple):
    """What one callback reports of a user (nothing, if `known` is empty), and the rooms that it may mean, the likeliest last."""

    rooms: tuple[requests.Room, ...]
    user_id: str
    known: Known


def switched(kind: str, on: bool, at_ms: int) -> Known:
    """A track was switched on or off."""
    return {**ABSENT, kind: on, f"{kind}_ms": at_ms}


def left(at_ms: int) -> Known:
    """A user left. TRTC sends no separate end of the leaver's tracks. Of a room: it ended, and everybody left."""
    return {**ABSENT, "left_ms": at_ms}


def merged(one: Known, other: Known) -> Known:
    """Both reports together. store/statements.py has the same in SQL."""
    left_ms = max(one["left_ms"], other["left_ms"])
    made: dict[str, Any] = {"left_ms": left_ms}
    for kind, time in (("audio", "audio_ms"), ("video", "video_ms")):
        one_ms, other_ms = one[time], other[time]
        on = (one[kind] and one_ms >= other_ms) or (other[kind] and other_ms >= one_ms)
        made[time] = max(one_ms, other_ms)
        made[kind] = on and made[time] > left_ms
    return made


class Kinds(tuple[str, ...]):
    """The kinds that a user publishes. `since_ms` has the time of each one's callback, `heard_ms` the time at which the user was
    last heard of: by a callback, or by media that arrived."""

    since_ms: Mapping[str, int]
    heard_ms: int


def _kinds(known: Known, heard_ms: int) -> Kinds:
    made = Kinds(kind for kind in KINDS if known[kind])
    made.since_ms = {kind: known[f"{kind}_ms"] for kind in made}
    made.heard_ms = heard_ms
    return made


def publishers(there: Iterable[Mapping[str, Any]]) -> list[tuple[str, Kinds]]:
    """The users of one room who publish, and what: from its rows, each with user_id and updated_ms."""
    known = {row["user_id"]: row for row in there}
    ended = known.pop(ROOM, ABSENT)
    found = ((user, _kinds(merged(row, ended), row["updated_ms"])) for user, row in known.items())
    return [(user, kinds) for user, kinds in found if kinds]
