"""Recordings and deliveries with their present jobs: one query for both.

Rule: the present job is the job of the row's own epoch. One statement reads the row and its job, so they belong together.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, Table, Text, and_, cast, literal_column, select

from store import tables


def recordings() -> Select[Any]:
    """All recordings, with their jobs."""
    # An expression, not the column: for `id = $1` PostgreSQL would search jobs by `owner = $1` alone, and read every job that the
    # recording ever had, because its statistics of many short recordings make it expect one or two.
    return _with_job(tables.recordings, tables.recordings.c.id.concat(literal_column("''")))


def deliveries() -> Select[Any]:
    """All deliveries of results, with their jobs."""
    table = tables.callbacks
    return _with_job(table, table.c.task_id + "#" + cast(table.c.revision, Text))


def bodiless_deliveries() -> Select[Any]:
    """All deliveries without their bodies, with their jobs."""
    table = tables.callbacks
    return _with_job(table, table.c.task_id + "#" + cast(table.c.revision, Text), without="body")


def _with_job(table: Table, owner: Any, without: str = "") -> Select[Any]:
    job = tables.jobs
    labelled = [c.label(f"job_{c.name}") for c in job.c]
    return select(*(c for c in table.c if c.name != without), *labelled).select_from(
        table.outerjoin(job, and_(job.c.owner == owner, job.c.epoch == table.c.epoch))
    )
