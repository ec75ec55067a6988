"""`recorder migrate`: migrates the database's schema, and ends the time of two versions."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated

import typer

from cli import exits, output
from machine import errors


def migrate(
    contract: Annotated[
        bool, typer.Option("--contract", help="The last step of an upgrade: nodes of the version before decide nothing any more.")
    ] = False,
) -> None:
    """Migrate the database to this version's schema.

    Run it once, before the nodes of a new version start. Nodes of the version before go on working. After the last of them has
    stopped, run it with --contract.
    """
    from assembly import database

    settings = exits.load_settings()
    try:
        if contract:
            asyncio.run(database.contract(settings))
            output.line("Only this version and later ones use the database now.")
            return
        revision, contract_is_due = asyncio.run(database.migrate(settings))
    except (errors.RecorderError, OSError) as error:
        sys.stderr.write(f"recorder: {error}\n")
        raise typer.Exit(exits.REFUSED) from error
    output.line(f"The schema is at revision {revision}.")
    if contract_is_due:
        output.line("Replace the nodes of the version before, then run `recorder migrate --contract`.")
