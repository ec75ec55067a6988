"""The schema of the tables equals that of the migrations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect

from store import connections, schema, tables
from tests import engines


async def _ask(database: engines.Database, question: Any) -> Any:
    opened = connections.open_database(database.url)
    try:
        async with opened.read() as connection:
            return await connection.run_sync(question)
    finally:
        await opened.close()


async def test_tables_equal_migrations(database: engines.Database) -> None:
    """The tables' declaration and the migrations have the same content."""

    def differences(connection: Connection) -> list[Any]:
        return compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), tables.metadata)

    assert await _ask(database, differences) == []


def test_the_revisions_are_those_of_the_migrations() -> None:
    """The list of revisions, which spares a start the import of alembic, equals alembic's own."""
    found = ScriptDirectory(str(Path(schema.__file__).with_name("migrations"))).walk_revisions()
    assert tuple(revision.revision for revision in found)[::-1] == schema.REVISIONS


async def test_checks_and_partial_indexes_are_made(database: engines.Database) -> None:
    """The parts outside the comparison agree, too: CHECK constraints, and the conditions of the partial indexes."""

    def made(connection: Connection) -> tuple[set[str], set[str]]:
        looking = inspect(connection)
        names = looking.get_table_names()
        checks = {str(c["name"]) for t in names for c in looking.get_check_constraints(t)}
        indexes = {str(i["name"]) for t in names for i in looking.get_indexes(t) if i.get("dialect_options")}
        return checks, indexes

    checks, indexes = await _ask(database, made)
    assert {"ck_sessions_state", "ck_recordings_state", "ck_jobs_state"} <= checks
    assert {"uq_sessions_open_key", "ix_outbox_unsent", "ix_recordings_kept", "ix_recordings_output_node"} <= indexes


async def test_migrating_twice_is_safe(database: engines.Database) -> None:
    """A database with the current schema is left unchanged, with its data."""

    def found(connection: Connection) -> tuple[Any, ...]:
        looking = inspect(connection)
        columns = {name: [column["name"] for column in looking.get_columns(name)] for name in looking.get_table_names()}
        kept = connection.execute(tables.nodes.select()).all()
        return schema.current(connection), columns, kept

    opened = connections.open_database(database.url)
    try:
        async with opened.write() as connection:
            await connection.execute(tables.nodes.insert().values(node="n1", url="", seen_ms=1))
        before = await _ask(database, found)
        await schema.migrate(opened)
        await schema.migrate(opened)
    finally:
        await opened.close()
    assert before[0] == schema.HEAD
    assert await _ask(database, found) == before
