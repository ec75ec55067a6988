"""Identity of this program and its operator, and the two impure functions that everything gets: the clock and new ids."""

from __future__ import annotations

import os
import pwd
import time

from ulid import ULID

from machine import model

VERSION = "0.1.0"


def clock() -> int:
    """Unix time in ms."""
    return time.time_ns() // 1_000_000


def new_id() -> str:
    """A ULID: sorts by the time it was made."""
    return str(ULID())


def operator() -> model.Caller:
    """The caller of a command typed here: the process's user as the system names it, not as the environment does."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's user has no name
        name = str(os.getuid())
    return model.Caller(name=f"cli {name}")
