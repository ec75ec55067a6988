"""The operator's commands for messages that could not be handled: list, show, requeue, drop. Imports nothing of ours but this
room; where the messages lie arrives as an argument.

Rule: they ask the broker and the database themselves, not the service: they work when the service does not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any, Protocol

import typer

from cli import exits, output

HELP = (
    "Messages that could not be handled: look at them, send them anew once the cause is mended, or throw them away."
    " With AMQP_URL they lie in the broker's queue AMQP_PREFIX.parked, and damaged ones in the database's outbox; without it, all"
    " in the outbox (ids that begin with row-). These do not ask the service: they need its settings in"
    " the environment, AMQP_URL and DATABASE_URL or DATA_DIR, and work while it is down. Secrets are masked on the screen;"
    " what is sent anew is whole."
)
HEADINGS = ("Id", "In", "Time", "Size", "Key", "MessageId", "Reason")

Json = dict[str, Any]


class Parking(Protocol):
    """Where parked messages lie. Answers are as they are printed with --json."""

    async def list(self, limit: int) -> Json: ...
    async def show(self, id_: str) -> Json: ...
    async def requeue(self, id_: str) -> Json: ...
    async def drop(self, id_: str) -> Json: ...


Opening = Callable[[], AbstractAsyncContextManager[Parking]]
Ids = Annotated[list[str], typer.Argument(metavar="ID...", help="Ids as `recorder parked list` shows them.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def commands(opening: Opening, exit_code: exits.ExitCode) -> typer.Typer:
    """The commands, on what `opening` opens."""
    app = typer.Typer(name="parked", help=HELP, no_args_is_help=True)

    def run(ask: Callable[[Parking], Awaitable[Any]]) -> Any:
        async def opened() -> Any:
            async with opening() as parking:
                return await ask(parking)

        with exits.told(exit_code):
            return asyncio.run(opened())

    @app.command("list")
    def list_command(limit: Annotated[int, typer.Option(min=1, max=1000)] = 100, as_json: AsJson = False) -> None:
        """List them, oldest first: what each was, and why it lies there."""
        answer = run(lambda parking: parking.list(limit))
        if as_json:
            output.as_json(answer)
        else:
            _table(answer)

    @app.command("show")
    def show_command(id_: Annotated[str, typer.Argument(metavar="ID")], as_json: AsJson = False) -> None:
        """Show one whole: headers and body, secrets masked."""
        answer = run(lambda parking: parking.show(id_))
        if as_json:
            output.as_json(answer)
            return
        for name in HEADINGS:
            output.line(f"{name}: {answer[name]}")
        for name, value in answer["Headers"].items():
            output.line(f"  {name}: {value}")
        for line in answer["Body"].splitlines():
            output.line(line)

    @app.command("requeue")
    def requeue_command(ids: Ids, as_json: AsJson = False) -> None:
        """Send messages anew the way they came: for when the cause is mended, else they come back."""
        _each(run, ids, "requeue", "sent anew", as_json=as_json)

    @app.command("drop")
    def drop_command(ids: Ids, as_json: AsJson = False) -> None:
        """Throw messages away for good."""
        _each(run, ids, "drop", "dropped", as_json=as_json)

    return app


def _each(run: Callable[..., Any], ids: list[str], what: str, done: str, *, as_json: bool) -> None:
    async def all_of_them(parking: Parking) -> None:
        for id_ in ids:
            message = await getattr(parking, what)(id_)
            output.as_json_line(message) if as_json else output.line(f"{message['Id']} {message['Key']}: {done}")

    run(all_of_them)


def _table(answer: Json) -> None:
    if not answer["Messages"]:
        output.failure("Nothing is parked.")
        return
    output.rows(HEADINGS, ([str(message[name]) for name in HEADINGS] for message in answer["Messages"]))
    more = answer["Count"] - len(answer["Messages"])
    if more > 0:
        output.failure(f"… and {more} more: --limit shows up to 1000 at once.")
