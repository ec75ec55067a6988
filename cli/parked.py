"""`recorder parked`: lists, shows, requeues and drops dead letters.

Rule: the commands open the broker and the database, not the service, so they also work while it is down.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import direct, output, times

if TYPE_CHECKING:
    from assembly.dead_letters import DeadLetters

HELP = """\
List, show, requeue and drop dead letters.

A dead letter is a message that the recorder could not handle. With AMQP_URL dead letters are in the broker's queue
AMQP_PREFIX.parked, and damaged ones in the database's outbox. Without it all are in the outbox; their ids begin with row-. These
commands need the service's AMQP_URL, and its DATABASE_URL or DATA_DIR, in the environment, and also work while it is down.
Secrets are masked on the screen; a requeued message is complete.
"""
HEADINGS = ("Id", "In", "Time", "Size", "Key", "MessageId", "Reason")

# More are not read from the broker at once.
MOST = 1000

Json = dict[str, Any]
Ids = Annotated[list[str], typer.Argument(metavar="ID...", help="Ids as shown by `recorder parked list`.")]

group = typer.Typer(name="parked", help=HELP, no_args_is_help=True)


@group.command("list")
def list_(
    limit: Annotated[int, typer.Option(min=1, max=MOST, help="Number of messages.")] = 100,
    utc: times.Utc = False,
    as_json: output.AsJson = False,
) -> None:
    """List dead letters with their reasons, oldest first."""
    from assembly import dead_letters

    found = direct.run_opened(dead_letters.opened, lambda letters: letters.list(limit))
    if as_json:
        output.as_json(found)
    elif found["Messages"]:
        output.rows(HEADINGS, (list(_cells(message).values()) for message in found["Messages"]))
    else:
        output.failure("Nothing is parked.")
    more = found["Count"] - len(found["Messages"])
    if more > 0:
        rest = (
            f"recorder parked list --limit {min(found['Count'], MOST)}" if limit < MOST else "requeue or drop some of these first"
        )
        output.failure(f"{more} newer messages are not listed: {rest}")


def _cells(message: Json) -> dict[str, str]:
    return {name: times.shown(message[name]) if name == "Time" else str(message[name]) for name in HEADINGS}


@group.command()
def show(id_: Annotated[str, typer.Argument(metavar="ID")], utc: times.Utc = False, as_json: output.AsJson = False) -> None:
    """Show the headers and body of a dead letter, secrets masked."""
    from assembly import dead_letters

    message = direct.run_opened(dead_letters.opened, lambda letters: letters.show(id_))
    if as_json:
        output.as_json(message)
        return
    for name, cell in _cells(message).items():
        output.line(f"{name}: {cell}")
    for name, value in message["Headers"].items():
        output.line(f"  {name}: {value}")
    for line in message["Body"].splitlines():
        output.line(line, whole=True)


@group.command()
def requeue(ids: Ids, as_json: output.AsJson = False) -> None:
    """Publish dead letters again, under their own routing keys.

    Remove the cause first, or they come back.
    """
    _each(ids, lambda letters, id_: letters.requeue(id_), "requeued", as_json=as_json)


@group.command()
def drop(ids: Ids, as_json: output.AsJson = False) -> None:
    """Delete dead letters for good."""
    _each(ids, lambda letters, id_: letters.drop(id_), "dropped", as_json=as_json)


def _each(ids: list[str], act: Callable[[DeadLetters, str], Awaitable[Json]], done: str, *, as_json: bool) -> None:
    """Act on the messages in order, a line for each; the first error ends it."""
    from assembly import dead_letters

    async def act_on_all(letters: DeadLetters) -> None:
        for id_ in ids:
            message = await act(letters, id_)
            output.as_json_line(message) if as_json else output.line(f"{message['Id']} {message['Key']}: {done}")

    direct.run_opened(dead_letters.opened, act_on_all)
