"""Entry point of the command `recorder`."""

from __future__ import annotations

from collections.abc import Callable

from cli import app, streams
from machine import failpoints


def main(harness: Callable[[str], None] | None = None) -> None:
    """Run the command line. Tests pass a `harness`: a function that every failpoint calls with its name."""
    failpoints.install(harness)
    streams.run(app.app)
