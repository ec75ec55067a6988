"""Invariants that hold after every transaction.

Rules: only the rows that a transaction wrote are checked, so that a hundred thousand histories can afford it. The invariants
follow from the design and ask nothing of the machines.
"""

from __future__ import annotations

import json
from typing import Any

from machine import model
from tests import state_chart
from tests.simulated import dictionary_tables, dictionary_writes


class Watch:
    """Checks each transaction before its commit. `timed`: a deadline or lease has changed since the flag was cleared."""

    def __init__(self, tables: dictionary_tables.Tables) -> None:
        self._tables = tables
        self._leased: set[tuple[str, int]] = set()
        self._jobs: dict[str, int] = {}
        self._revisions: dict[str, int] = {}
        # The addresses of the files that some result reported as delivered, and those of each session.
        self.delivered: set[str] = set()
        self._told: dict[str, set[str]] = {}
        self.timed = True

    def check(self, writes: dictionary_writes.RowWrites) -> None:
        """Raise AssertionError for a violated invariant."""
        tables = self._tables
        entry = next((table[key] for table, key, _ in writes.changes if table is tables.journal), None)
        for table, key, before in writes.changes:
            if table is tables.journal:
                line = table[key]
                allowed = state_chart.may(line.owner, line.event_type, line.from_state, line.to_state)
                assert allowed, f"{line.owner} went from {line.from_state} to {line.to_state} by {line.event_type}"
            elif table is tables.deadlines or table is tables.leased:
                self.timed = True
            elif table is tables.jobs:
                self.timed = True
                self._job(key, before, table[key], entry)
            elif table is tables.recordings:
                self._recording(before, table[key])
            elif table is tables.sessions:
                self._session(before, table[key])
            elif table is tables.results:
                task_id, revision = key
                assert revision == self._revisions.get(task_id, 0) + 1, f"revision {revision} of {task_id} follows no other"
                self._revisions[task_id] = revision
                self._result(task_id, table[key])

    def _job(
        self, key: tuple[str, int], before: Any, row: dictionary_tables.JobRow, entry: dictionary_tables.JournalLine | None
    ) -> None:
        owner, epoch = key
        if row.state != "leased" and isinstance(before, dictionary_tables.JobRow) and before.state == "leased" and "/" in owner:
            own_end = entry is not None and (entry.event_id.endswith(f".{owner}.{epoch}") or entry.event_type == "replay")
            assert own_end, f"epoch {epoch} of {owner} was leased, and its end was not its own: {entry}"
        if row.state == "leased" and row.lease_until_ms:
            self._leased.add(key)
        elif row.state in ("queued", "waiting"):
            assert key not in self._leased, f"epoch {epoch} of {owner} may be leased twice"
        if row.state != "ended":
            other = self._jobs.get(owner, epoch)
            over = other == epoch or self._tables.jobs[owner, other].state == "ended"
            assert over, f"{owner} has two jobs at once: {other} and {epoch}"
            self._jobs[owner] = epoch

    def _recording(self, before: Any, row: model.Recording) -> None:
        if isinstance(before, model.Recording):
            assert row.epoch >= before.epoch, f"the epoch of {row.key} went back"
        job, deadlines = row.job, self._tables.deadlines
        if row.state in state_chart.FINAL:
            assert job is None, f"{row.key} has ended and has a job"
            assert row.code, f"{row.key} has ended without a code"
            return
        if row.stop_requested and row.state in ("Joining", "Recording"):
            assert job is not None, f"{row.key} is asked to stop and has no job"
            assert job.state == "leased", f"{row.key} is asked to stop and no worker holds it"
        elif job is None:
            lingers = row.present is False and (str(row.key), "linger") in deadlines
            assert lingers, f"{row.key} is {row.state} and has no job"
        elif job.state == "waiting":
            assert (str(row.key), "retry") in deadlines, f"{row.key} waits for ever"

    def _result(self, task_id: str, body: str) -> None:
        """A revision never withdraws a delivered file."""
        there = {entry["RecordFile"] for entry in json.loads(body)["Files"] if entry["Status"] == 1}
        gone = self._told.get(task_id, set()) - there
        assert not gone, f"a revision of {task_id} withdraws {gone}"
        self._told[task_id] = there
        self.delivered |= there

    def _session(self, before: Any, row: model.Session) -> None:
        if isinstance(before, model.Session):
            order = ("Open", "Closing", "Finished")
            assert order.index(row.state) >= order.index(before.state), f"{row.task_id} opens again"
        deadlines, recordings = self._tables.deadlines, self._tables.recordings
        if row.state == "Finished":
            left = {r.state for r in recordings.values() if r.task_id == row.task_id} - {*state_chart.FINAL, "Uploading"}
            assert not left or before.state == "Finished", f"{row.task_id} has finished, and recordings are {left}"
        elif row.state == "Closing":
            assert (row.task_id, "result-wait") in deadlines, f"{row.task_id} closes for ever"
        else:
            assert (row.task_id, "max-duration") in deadlines, f"{row.task_id} is open for ever"
            same = [s for s in self._tables.sessions.values() if s.state == "Open" and s.request.room == row.request.room]
            assert len({(s.request.user_id) for s in same}) == len(same), "a key is Open twice"
