"""Presence that TRTC's callbacks report of rooms without an unfinished session, written in batches.

Rule: a start and a batch never miss each other. On PostgreSQL a batch shares the locks of its rooms, and a decision takes them
alone. A batch waits for no decision: the callbacks of such a room get a decision of their own. SQLite has one writer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from machine import changes, model, presence
from store import connections, saving, snapshot, statements
from store.sql import Step, Steps

NOTE_APPLICATION_EVERY_MS = model.MINUTE


class Presence:
    """Presence of one database (machine.ports.Presence)."""

    def __init__(self, database: connections.Connections, *, clock: Callable[[], int]) -> None:
        self._database = database
        self._clock = clock
        self._locks = database.on_server
        self._applications: dict[int, int] = {}

    async def note(self, reports: Sequence[presence.Report]) -> Sequence[bool]:
        """Merge what callbacks say, in one transaction; returns for each whether it is noted. A callback that is not noted may
        concern a session, and needs a decision. Raises Conflict."""
        now_ms = self._clock()
        noted, applications = await self._database.run(lambda: self._steps(reports, now_ms))
        self._applications |= dict.fromkeys(applications, now_ms)
        return noted

    def _steps(self, reports: Sequence[presence.Report], now_ms: int) -> Steps[tuple[list[bool], list[int]]]:
        rooms = {(room.sdk_app_id, room.kind, room.name): room for each in reports for room in each.rooms}
        busy = set()
        if self._locks:
            locks = {connections.room_lock(room): place for place, room in rooms.items()}
            tried = yield Step(statements.TRY_ROOM, [{"lock": lock} for lock in sorted(locks)])
            busy = {locks[row["lock"]] for row in tried if not row["taken"]}
        found = yield Step(statements.SESSIONS_IN, [snapshot.at_room(room) for room in rooms.values()])
        busy |= {(row["sdk_app_id"], row["room_kind"], row["room"]) for row in found}
        noted = [all((room.sdk_app_id, room.kind, room.name) not in busy for room in each.rooms) for each in reports]
        merged: changes.Presence = {}
        for each, taken in zip(reports, noted, strict=True):
            if taken and each.known:
                about = each.rooms[-1], each.user_id
                merged[about] = presence.merged(merged.get(about, presence.ABSENT), each.known)
        if merged:
            yield Step(statements.MERGE_PRESENCE, saving.presence_rows(merged, now_ms))
        # Not for every callback: those of one application would queue for its row.
        recent_ms = now_ms - NOTE_APPLICATION_EVERY_MS
        applications = sorted({room.sdk_app_id for room, _ in merged if self._applications.get(room.sdk_app_id, 0) <= recent_ms})
        if applications:
            yield Step(statements.NOTE_APPLICATION, [{"sdk_app_id": app, "callback_ms": now_ms} for app in applications])
        return noted, applications
