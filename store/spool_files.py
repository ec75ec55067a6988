"""Which files of recordings lie on spools, and which of them nothing can want any more. Imports `machine`.

Rule: files are given up first, by their row and with its epoch; then they are deleted; then they are forgotten. What a newer
epoch writes was not given up.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from sqlalchemy import ColumnElement, and_, delete, exists, or_, select, union, update
from sqlalchemy.ext.asyncio import AsyncConnection

from machine import model, states
from store import tables, values


async def removable(connection: AsyncConnection, failed_before_ms: int) -> list[str]:
    """As Store.removable."""
    found = select(tables.recordings.c.id).where(_unwanted(failed_before_ms)).limit(100)
    return [r.id for r in (await connection.execute(found)).all()]


def _unwanted(failed_before_ms: int) -> ColumnElement[bool]:
    table = tables.recordings
    whole = and_(table.c.state == states.DONE, table.c.partial.is_(False))
    over = or_(whole, and_(table.c.state.in_(states.FINAL), table.c.ended_ms < failed_before_ms))
    return and_(over, table.c.files_removed.is_(False))


async def mark_removed(connection: AsyncConnection, recording_id: str, failed_before_ms: int) -> bool:
    """As Store.mark_removed."""
    table = tables.recordings
    where = and_(table.c.id == recording_id, _unwanted(failed_before_ms))
    given_up = {"files_removed": True, "version": table.c.version + 1}
    return bool((await connection.execute(update(table).where(where).values(given_up))).rowcount)


async def given_up(connection: AsyncConnection, node: str) -> list[str]:
    """As Store.given_up."""
    table, segments = tables.recordings, tables.segments
    # By way of the segments, which go with the files: of all recordings that ever were nearly all are given up.
    of = exists().where(table.c.id == segments.c.recording_id, table.c.files_removed.is_(True))
    there = select(segments.c.recording_id.label("id")).where(of, *([segments.c.node == node] if node else []))
    if node:
        here = (table.c.output_node != "", table.c.output_node == node)
        found = union(there, select(table.c.id).where(table.c.files_removed.is_(True), *here)).limit(100)
        return [r.id for r in (await connection.execute(found)).all()]
    return [r.id for r in (await connection.execute(there.distinct().limit(100))).all()]


async def files_of(connection: AsyncConnection, recording_id: str, node: str) -> values.Files | None:
    """As Store.files_of."""
    table, segments = tables.recordings, tables.segments
    held = select(table.c.epoch).where(table.c.id == recording_id, table.c.files_removed.is_(True))
    until_epoch = (await connection.execute(held)).scalar()
    if until_epoch is None:
        return None
    of_node = [segments.c.node == node] if node else []
    there = and_(segments.c.recording_id == recording_id, segments.c.epoch <= until_epoch, *of_node)
    found = await connection.execute(select(segments.c.epoch).where(there))
    return values.Files(until_epoch=until_epoch, segments=tuple(int(r.epoch) for r in found))


async def forget_files(connection: AsyncConnection, recording_id: str, node: str, epochs: Sequence[int]) -> None:
    """As Store.forget_files."""
    table, segments = tables.recordings, tables.segments
    await connection.execute(delete(segments).where(segments.c.recording_id == recording_id, segments.c.epoch.in_(epochs)))
    if node:
        mine = and_(table.c.id == recording_id, table.c.files_removed.is_(True), table.c.output_node == node)
        await connection.execute(update(table).where(mine).values(output_node=""))


async def remains(connection: AsyncConnection, task_ids: Sequence[str]) -> list[values.Remains]:
    """As Store.remains."""
    table = tables.recordings
    ended = or_(table.c.files_removed.is_(True), table.c.output.is_not(None))
    found = select(table.c.id, table.c.epoch, table.c.files_removed, table.c.output)
    rows = (await connection.execute(found.where(table.c.task_id.in_(task_ids), ended).order_by(table.c.id))).all()
    return [
        values.Remains(
            recording_id=r.id,
            epoch=r.epoch,
            given_up=r.files_removed,
            output_epoch=model.Output.from_json(json.loads(r.output)).epoch if r.output else None,
        )
        for r in rows
    ]
