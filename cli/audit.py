"""`recorder audit`: shows who did what. It reads the database, not the service."""

from __future__ import annotations

from typing import Annotated

import typer

from cli import direct, output, times

HEADINGS = ("Time", "Who", "Action", "Subject", "Outcome")


def audit(
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="Number of entries.")] = 100,
    utc: times.Utc = False,
    as_json: output.AsJson = False,
) -> None:
    """Show who did what, newest first.

    Entries: starts, stops, replays, dead letters requeued or dropped, keys created, revoked and rotated. It reads the database,
    so it needs the service's settings in the environment.
    """
    from assembly import api_keys

    found = direct.run_opened(api_keys.opened, lambda keys: keys.audit(limit))
    if as_json:
        output.as_json(found)
    else:
        output.rows(HEADINGS, ([times.shown(e["Time"]), *(e[name] for name in HEADINGS[1:])] for e in found["Audit"]))
    more = found["Count"] - len(found["Audit"])
    if more > 0:
        output.failure(f"{more} older entries are not listed: recorder audit --limit {found['Count']}")
