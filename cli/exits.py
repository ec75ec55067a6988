"""Exit codes of the commands, and the errors that end a command.

Rule: an expected error is one sentence on standard error; with --json the service's error body goes to standard output instead.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import typer

from cli import output
from machine import errors

if TYPE_CHECKING:
    from config.settings import Settings

_NAME = re.compile(r"[A-Za-z][A-Za-z-]*(?:\.[A-Z][A-Za-z]*)?")

OK = 0
REFUSED = 1
USAGE = 2
UNREACHABLE = 3
NOT_FOUND = 4
INTERRUPTED = 130
BROKEN_PIPE = 141


class CommandError(Exception):
    """The command cannot be carried out. `body` is the service's answer, if it gave one."""

    def __init__(self, message: str, exit_code: int, body: Mapping[str, Any] | None = None) -> None:
        self.exit_code = exit_code
        self.body = body or {}
        super().__init__(message)


@contextmanager
def handled(*, as_json: bool = False, words: Mapping[str, str] = MappingProxyType({})) -> Iterator[None]:
    """Run a command. Expected errors are printed and raise typer.Exit with their code; all others propagate. `words` are the
    command's names for fields of the API."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise typer.Exit(INTERRUPTED) from error
    except UnicodeEncodeError as error:
        # An argument or a variable that this locale could not decode; JSON can hold the like.
        output.failure("A value is no text in the character set of this locale: see LC_ALL, and the encoding of the terminal.")
        raise typer.Exit(USAGE) from error
    except CommandError as error:
        if as_json and error.body:
            output.as_json(error.body)
        else:
            for line in translated(str(error), words).splitlines():
                output.failure(line)
        raise typer.Exit(error.exit_code) from error
    except errors.RecorderError as error:
        output.failure(str(error))
        raise typer.Exit(exit_code(error)) from error


def translated(message: str, words: Mapping[str, str]) -> str:
    """The message with the command's names in place of the API's."""
    return _NAME.sub(lambda found: words.get(found[0], found[0]), message) if words else message


def exit_code(error: errors.RecorderError) -> int:
    """The exit code of an error that reached the command without an HTTP status."""
    match error:
        case errors.NotFound():
            return NOT_FOUND
        case errors.Unavailable():
            return UNREACHABLE
        case _:
            return REFUSED


def load_settings(environment: Mapping[str, str] | None = None) -> Settings:
    """Load the service's settings. Unusable ones end the command with USAGE and a line for each fault."""
    from config import log_sink, settings  # the settings load pydantic, which `--help` does not need

    try:
        return settings.load(os.environ if environment is None else environment)
    except settings.SettingsError as error:
        # The exit code must not depend on whether the message can be written.
        log_sink.LogSink(sys.stderr).write(f"recorder: {error}\n")
        raise typer.Exit(USAGE) from error
