"""Frozen processes."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from pathlib import Path

from tests import waiting

LIMIT_S = 10.0
HALTED = "TtZX"
"""States of a thread that does not run, in proc(5)."""


def freeze(pid: int) -> None:
    """Send SIGSTOP and wait until all threads have stopped: on a busy machine they run for a moment longer. A process that has
    ended is left to its parent's wait. Raises AssertionError."""
    os.kill(pid, signal.SIGSTOP)
    ends_s = time.monotonic() + waiting.limit_s(LIMIT_S)
    while running := [thread for thread in Path(f"/proc/{pid}/task").glob("*/stat") if _state(thread) not in HALTED]:
        assert time.monotonic() < ends_s, running
        select.select([], [], [], 0.005)


def _state(stat: Path) -> str:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return stat.read_text("ascii", "replace").rpartition(")")[2].split()[0]
    return "X"
