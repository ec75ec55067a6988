"""Who this program is, and the two things that are not pure and that everything is given: the time, and new ids. Imports nothing
of ours."""

from __future__ import annotations

import time

from ulid import ULID

VERSION = "0.1.0"


def clock() -> int:
    """Unix time in ms."""
    return time.time_ns() // 1_000_000


def new_id() -> str:
    """A ULID: sorts by the time it was made."""
    return str(ULID())
