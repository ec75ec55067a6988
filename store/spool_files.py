"""Files of recordings on spools: which of them nothing needs any more.

Rule: a recording's row gives its files up, with its epoch; then the janitor deletes them; then the rows are forgotten. Files of a
newer epoch were not given up.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from sqlalchemy import ColumnElement, Executable, and_, delete, exists, or_, select, union, update

from machine import job_key, model, segments, states
from store import connections, tables

AT_ONCE = 100


class SpoolFiles:
    """The files that one database knows of."""

    def __init__(self, database: connections.Connections) -> None:
        self._database = database

    async def removable(self, failed_before_ms: int) -> list[job_key.RecordingKey]:
        """Recordings that keep files which nothing needs: Done from whole segments, or final and ended before that time
        (Unix ms)."""
        found = select(tables.recordings.c.id).where(_unneeded(failed_before_ms)).limit(AT_ONCE)
        async with self._database.read() as connection:
            return [job_key.parse_recording(r.id) for r in (await connection.execute(found)).all()]

    async def give_up(self, recording: job_key.RecordingKey, failed_before_ms: int) -> bool:
        """Give up the files of a `removable` recording, before they are deleted. False: a replay came first, and needs them or
        has left others."""
        table = tables.recordings
        where = and_(table.c.id == recording.text, _unneeded(failed_before_ms))
        given_up = {"files_removed": True, "version": table.c.version + 1}
        async with self._database.write() as connection:
            return bool((await connection.execute(update(table).where(where).values(given_up))).rowcount)

    async def given_up(self, node: str) -> list[job_key.RecordingKey]:
        """Recordings that gave up files which are still on the spool of `node` ("": a spool that all nodes share)."""
        table, of_spool = tables.recordings, tables.segments
        # By way of the segments, which go with the files: almost every recording that ever was has given its files up.
        of = exists().where(table.c.id == of_spool.c.recording_id, table.c.files_removed.is_(True))
        there = select(of_spool.c.recording_id.label("id")).where(of, *([of_spool.c.node == node] if node else []))
        if node:
            here = (table.c.output_node != "", table.c.output_node == node)
            outputs = select(table.c.id).where(table.c.files_removed.is_(True), *here)
            found: Executable = union(there, outputs).limit(AT_ONCE)
        else:
            found = there.distinct().limit(AT_ONCE)
        async with self._database.read() as connection:
            return [job_key.parse_recording(r.id) for r in (await connection.execute(found)).all()]

    async def of_recording(self, recording: job_key.RecordingKey, node: str) -> segments.GivenUpFiles | None:
        """The given-up files of a recording on the spool of `node` ("": the shared one); None if a replay has started since:
        then nothing may be deleted."""
        table, of_spool = tables.recordings, tables.segments
        epoch = select(table.c.epoch).where(table.c.id == recording.text, table.c.files_removed.is_(True))
        async with self._database.read() as connection:
            until_epoch = (await connection.execute(epoch)).scalar()
            if until_epoch is None:
                return None
            of_node = [of_spool.c.node == node] if node else []
            there = and_(of_spool.c.recording_id == recording.text, of_spool.c.epoch <= until_epoch, *of_node)
            found = (await connection.execute(select(of_spool.c.epoch).where(there))).all()
        return segments.GivenUpFiles(until_epoch=until_epoch, segments=tuple(int(r.epoch) for r in found))

    async def forget(self, recording: job_key.RecordingKey, node: str, epochs: Sequence[int]) -> None:
        """Forget segments, and the finished file, after they were deleted from the spool of `node`. Not before: `given_up` lists
        a file that a crash or a failing disk keeps until it is gone."""
        table, of_spool = tables.recordings, tables.segments
        async with self._database.write() as connection:
            gone = (of_spool.c.recording_id == recording.text, of_spool.c.epoch.in_(epochs))
            await connection.execute(delete(of_spool).where(*gone))
            if node:
                output = and_(table.c.id == recording.text, table.c.files_removed.is_(True), table.c.output_node == node)
                await connection.execute(update(table).where(output).values(output_node="", version=table.c.version + 1))

    async def leftovers(self, task_ids: Sequence[str]) -> list[segments.Leftovers]:
        """Files of these sessions that nothing can need, on whatever spool. Sessions that this database does not know have none:
        another DATA_DIR, or a backup, may know them."""
        table = tables.recordings
        ended = or_(table.c.files_removed.is_(True), table.c.output.is_not(None))
        found = select(table.c.id, table.c.epoch, table.c.files_removed, table.c.output)
        async with self._database.read() as connection:
            rows = (await connection.execute(found.where(table.c.task_id.in_(task_ids), ended).order_by(table.c.id))).all()
        return [
            segments.Leftovers(
                recording=job_key.parse_recording(r.id),
                epoch=r.epoch,
                given_up=r.files_removed,
                output_epoch=model.Output.from_json(json.loads(r.output)).epoch if r.output else None,
            )
            for r in rows
        ]


def _unneeded(failed_before_ms: int) -> ColumnElement[bool]:
    table = tables.recordings
    whole = and_(table.c.state == states.DONE, table.c.partial.is_(False))
    over = or_(whole, and_(table.c.state.in_(states.FINAL), table.c.ended_ms < failed_before_ms))
    return and_(over, table.c.files_removed.is_(False))
