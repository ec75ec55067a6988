"""Processes that stand still. Imports nothing of ours."""

from __future__ import annotations

import os
import signal


def freeze(pid: int) -> None:
    """SIGSTOP to a child of ours, and wait until all of its threads have stopped: on a busy machine they go on for a moment. What
    has ended is left for whoever waits for it."""
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
