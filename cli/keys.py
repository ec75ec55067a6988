"""The operator's commands for keys: sealing what lies in the database anew. Imports nothing of ours but this room; what seals
arrives as an argument.

Rule: no key and nothing that a key opens is ever printed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from cli import exits, output

HELP = (
    "Keys. `create`, `list` and `revoke` are for those of the API; `rotate` seals what lies sealed in the database anew under the"
    " first key of SECRET_KEYS (or of the key file in DATA_DIR). They do not ask the service: they need its settings in the"
    " environment, and work beside it or while it is down."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotated:
    """What a rotation did: rows sealed anew, rows that no key opens and were forgotten (0 unless that was asked for), and the id
    of the key that all are sealed under now. `parked`: messages in the broker's queue that still need another key."""

    sealed: int
    forgotten: int
    key_id: str
    parked: int = 0


# True: forget what no key opens.
Rotate = Callable[[bool], Coroutine[Any, Any, Rotated]]


def commands(rotate: Rotate, exit_code: exits.ExitCode) -> typer.Typer:
    """The commands, on what `rotate` does."""
    app = typer.Typer(name="keys", help=HELP, no_args_is_help=True)

    @app.command("rotate")
    def rotate_command(
        forget_lost: Annotated[
            bool,
            typer.Option(
                "--forget-lost",
                help="A key is lost: forget what no key opens. Its sessions need fresh credentials, by a replay; their results"
                " are no longer posted, and stay readable.",
            ),
        ] = False,
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    ) -> None:
        """Seal everything anew under the first key; harmless to repeat. After it the other keys may go."""
        with exits.told(exit_code):
            done = asyncio.run(rotate(forget_lost))
        if as_json:
            output.as_json({"Sealed": done.sealed, "Forgotten": done.forgotten, "Key": done.key_id, "Parked": done.parked})
            return
        output.line(f"{done.sealed} sealed anew under key {done.key_id}.")
        if done.forgotten:
            output.line(f"{done.forgotten} forgotten.")
        if done.parked:
            output.failure(f"{done.parked} parked messages need an older key: requeue or drop them before it goes.")

    return app
