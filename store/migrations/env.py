"""Alembic's entry: runs on the connection that store.schema passes in. Imports the tables."""

from __future__ import annotations

from alembic import context

from store import tables

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=tables.metadata, render_as_batch=connection.dialect.name == "sqlite")
context.run_migrations()
