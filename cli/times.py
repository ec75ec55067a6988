"""Times for people: local with the offset from UTC, or UTC with --utc; a terminal also shows how long ago.

Rule: every command that prints text prints times so. JSON has the times of the API, in UTC.
"""

from __future__ import annotations

import contextvars
import sys
import time
from datetime import UTC, datetime
from typing import Annotated

import typer

UNITS = ((86_400.0, "days"), (3_600.0, "h"), (60.0, "min"), (1.0, "s"))

_utc = contextvars.ContextVar("utc", default=False)


def _choose(utc: bool) -> bool:
    """Note --utc of the command that runs."""
    _utc.set(utc)
    return utc


Utc = Annotated[bool, typer.Option("--utc", callback=_choose, help="Print times in UTC, not in local time.")]


def shown(text: str, *, precise: bool = False) -> str:
    """An ISO 8601 time as people read it, to the second; `precise`: to the ms, and without the distance. "" stays ""."""
    if not text:
        return ""
    at = datetime.fromisoformat(text)
    local = at.astimezone(UTC if _utc.get() else None)
    if precise or not sys.stdout.isatty():
        return local.isoformat(" ", "milliseconds" if precise else "seconds")
    return f"{local.isoformat(' ', 'seconds')} ({distance(time.time() - at.timestamp())})"


def distance(ago_s: float) -> str:
    """`3 min ago`, or `in 3 min` for a time to come."""
    size_s = abs(ago_s)
    for unit_s, name in UNITS:
        if size_s >= unit_s:
            number = f"{size_s // unit_s:.0f} {'day' if name == 'days' and size_s < 2 * unit_s else name}"
            return f"{number} ago" if ago_s > 0 else f"in {number}"
    return "now"
