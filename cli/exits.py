"""How commands that ask database and broker themselves end: one sentence on standard error, and an exit code. Imports this room.

Rule: which error ends with which code is known to whoever joins the rooms, and arrives as an argument.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

from cli import client, output
from config import settings as ops_settings

# The exit code of an error of another room, whose errors are not known here; None for one that is not expected.
ExitCode = Callable[[Exception], int | None]


@contextmanager
def told(exit_code: ExitCode) -> Iterator[None]:
    """Run a command; raises typer.Exit for every error that was expected, the others as they are."""
    try:
        yield
    except ops_settings.SettingsError as error:
        sys.stderr.write(f"recorder: {error}\n")
        raise typer.Exit(client.USAGE) from error
    except KeyboardInterrupt as error:
        raise typer.Exit(client.INTERRUPTED) from error
    except Exception as error:
        code = exit_code(error)
        if code is None:
            raise
        output.failure(str(error))
        raise typer.Exit(code) from error
