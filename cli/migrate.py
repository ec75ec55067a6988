"""`recorder migrate`: migrates the database's schema."""

from __future__ import annotations

import asyncio
import sys

import typer

from cli import exits, output
from machine import errors


def migrate() -> None:
    """Migrate the database to this version's schema.

    Run it once, before the nodes of a new version start.
    """
    from assembly import database

    try:
        revision = asyncio.run(database.migrate(exits.load_settings()))
    except (errors.RecorderError, OSError) as error:
        sys.stderr.write(f"recorder: {error}\n")
        raise typer.Exit(exits.REFUSED) from error
    output.line(f"The schema is at revision {revision}.")
