"""Presence that TRTC's callbacks report of rooms without an unfinished session, written in batches.

Rule: a start and a batch never miss each other. On PostgreSQL a batch shares the locks of its rooms, and a decision takes them
alone. A batch waits for no decision: the callbacks of such a room get a decision of their own. SQLite has one writer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from machine import changes, model, presence
from store import connections, saving, sql, statements
from store.sql import Step, Steps

NOTE_APPLICATION_EVERY_MS = model.MINUTE
PLACE = ("sdk_app_id", "room_kind", "room")


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

    def _steps(self, reports: Sequence[presence.Report], now_ms: int) -> Steps[tuple[list[bool], set[int]]]:
        rooms = {(room.sdk_app_id, room.kind, room.name): room for each in reports for room in each.rooms}
        busy = set()
        if self._locks:
            locks = {connections.room_lock(room): room for room in rooms.values()}
            tried = yield Step(statements.TRY_ROOMS, sql.packed([{"lock": lock} for lock in sorted(locks)]))
            busy = {locks[row["lock"]] for row in tried if not row["taken"]}
        places = [dict(zip(PLACE, place, strict=True)) for place in rooms]
        found = yield Step(statements.ACTIVE_ROOMS, sql.packed(places))
        busy |= {rooms[tuple(row[name] for name in PLACE)] for row in found}
        noted = [busy.isdisjoint(each.rooms) for each in reports]
        merged: changes.Presence = {}
        for each, taken in zip(reports, noted, strict=True):
            if taken and each.known:
                about = each.rooms[-1], each.user_id
                merged[about] = presence.merged(merged[about], each.known) if about in merged else each.known
        # Not for every callback: those of one application would queue for its row.
        recent_ms = now_ms - NOTE_APPLICATION_EVERY_MS
        applications = {room.sdk_app_id for room, _ in merged if self._applications.get(room.sdk_app_id, 0) <= recent_ms}
        yield from saving.save_presence(merged, applications, now_ms)
        return noted, applications
