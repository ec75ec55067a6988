"""The operator's commands for the keys of the API, and for who did what with them: keys create, list, revoke, and audit. Imports
nothing of ours but this room; where keys and audit lie arrives as an argument.

Rules: they ask the database themselves, not the service, so that the first key needs none and a revoked one cannot stand in the
way; a key's text is printed once, when it is made.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any, Protocol

import typer

from cli import exits, output

HEADINGS = ("Id", "Name", "Scopes", "Quota", "Created", "Used", "Revoked")
AUDIT_HEADINGS = ("Time", "Who", "Action", "Subject", "Outcome")
SCOPES = (
    "What it may do, separated by commas. read: sessions and results; start: start sessions; operate: stop and replay them. An"
    " application that looks and stops as well needs read,start,operate."
)

Json = dict[str, Any]


class Keyring(Protocol):
    """Where keys and audit lie. Answers are as they are printed with --json; `scopes` that are none raise ValueError."""

    async def create(self, name: str, scopes: Sequence[str], quota: int) -> Json: ...
    async def list(self) -> Json: ...
    async def revoke(self, id_: str) -> Json: ...
    async def audit(self, limit: int) -> Json: ...


Opening = Callable[[], AbstractAsyncContextManager[Keyring]]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def add_to(group: typer.Typer, opening: Opening, exit_code: exits.ExitCode) -> None:
    """Add create, list and revoke to the group of commands `recorder keys`."""

    @group.command("create")
    def create_command(
        name: Annotated[str, typer.Option(help="Whose it is: 1 to 64 characters, shown in lists and in the audit.")],
        scopes: Annotated[str, typer.Option(help=SCOPES)] = "read",
        quota: Annotated[int, typer.Option(min=0, max=10**6, help="Open sessions at once; 0: as API_SESSIONS says.")] = 0,
        as_json: AsJson = False,
    ) -> None:
        """Make a key for the API and print it, once. It is good at once; only its SHA-256 is kept."""
        wanted = [part.strip() for part in scopes.split(",") if part.strip()]
        try:
            made = _run(opening, exit_code, lambda keyring: keyring.create(name, wanted, quota))
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
        if as_json:
            output.as_json(made)
            return
        output.line(made["Key"])
        output.failure(f"This is {made['Id']}, with {made['Scopes']}. It is not shown again.")

    @group.command("list")
    def list_command(as_json: AsJson = False) -> None:
        """List the keys, revoked ones too. `Used` is right to the minute."""
        found = _run(opening, exit_code, lambda keyring: keyring.list())
        if as_json:
            output.as_json(found)
        elif found["Keys"]:
            output.rows(HEADINGS, ([str(key[name]) for name in HEADINGS] for key in found["Keys"]))
        else:
            output.failure("There is no key. `recorder keys create --name=… --scopes=…` makes one.")

    @group.command("revoke")
    def revoke_command(
        ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids as `recorder keys list` shows them.")],
        as_json: AsJson = False,
    ) -> None:
        """Take the rights of keys away for good: from the next second on they open nothing."""

        async def each(keyring: Keyring) -> None:
            for id_ in ids:
                gone = await keyring.revoke(id_)
                output.as_json_line(gone) if as_json else output.line(f"{gone['Id']} {gone['Name']}: revoked")

        _run(opening, exit_code, each)


def add_audit(app: typer.Typer, opening: Opening, exit_code: exits.ExitCode) -> None:
    """Add `recorder audit`."""

    @app.command("audit")
    def audit_command(limit: Annotated[int, typer.Option(min=1, max=100_000)] = 100, as_json: AsJson = False) -> None:
        """Show who did what, newest first: starts, stops, replays, parked messages, keys. Asks the database, as `keys` does."""
        found = _run(opening, exit_code, lambda keyring: keyring.audit(limit))
        if as_json:
            output.as_json(found)
            return
        output.rows(AUDIT_HEADINGS, ([line[name] for name in AUDIT_HEADINGS] for line in found["Audit"]))
        more = found["Count"] - len(found["Audit"])
        if more > 0:
            output.failure(f"… and {more} older: --limit shows more.")


def _run(opening: Opening, exit_code: exits.ExitCode, ask: Callable[[Keyring], Awaitable[Any]]) -> Any:
    async def opened() -> Any:
        async with opening() as keyring:
            return await ask(keyring)

    with exits.told(exit_code):
        return asyncio.run(opened())
