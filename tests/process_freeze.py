"""Frozen processes."""

from __future__ import annotations

import os
import signal


def freeze(pid: int) -> None:
    """Send SIGSTOP to a child and wait until all of its threads have stopped: on a busy machine they run for a moment longer. A
    child that has ended is left to its parent's wait."""
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
