"""Harness: the strikes of a plan at the failpoints of one process, a node or a follower of it.

Rule: each strike happens once, in the first process that reaches it. Just before, the process writes a record of it into the
folder, with the captures that its node runs: a kill takes along these and no others.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

from machine import failpoints
from tests.chaos import open_captures

PLAN = "CHAOS_PLAN"
"""The environment variable by which the followers of a node know its plan."""


class Harness:
    """Counts how often this process reaches each failpoint, and carries out the strikes."""

    def __init__(self, folder: Path, strikes: list[dict[str, Any]], *, follower: bool = False) -> None:
        """`follower`: of the node that is this process's parent, which is killed in its place, as by a power cut."""
        self._folder = folder
        self._follower = follower
        self._open = {n: strike for n, strike in enumerate(strikes) if not self._path(n).exists()}
        self._hits: Counter[str] = Counter()

    def __call__(self, point: str) -> None:
        """Called by every failpoint."""
        self._hits[point] += 1
        due = [n for n, s in self._open.items() if s["Point"] == point and self._hits[point] >= s["Hit"]]
        for number in due:
            strike = self._open.pop(number)
            if self._claimed(number, strike):
                _carry_out(strike["Act"], point, self._node)

    def _claimed(self, number: int, strike: dict[str, Any]) -> bool:
        """Write the record of the strike; False if another process was first."""
        pid = self._node if strike["Act"] == "kill" else os.getpid()
        record = {**strike, "Pid": pid, "MonotonicS": time.monotonic(), "UnixMs": time.time_ns() // 1_000_000}
        record["Captures"] = open_captures.of(pid)
        try:
            with self._path(number).open("x", encoding="utf-8") as file:
                file.write(json.dumps(record))
        except FileExistsError:
            return False
        return True

    @property
    def _node(self) -> int:
        return os.getppid() if self._follower else os.getpid()

    def _path(self, number: int) -> Path:
        return self._folder / f"struck-{number}.json"


def _carry_out(act: str, point: str, node: int) -> None:
    if act == "kill":
        os.kill(node, signal.SIGKILL)
        signal.pause()  # a follower dies with its node
    elif act == "freeze":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif len(point) % 2:
        raise OSError(errno.EIO, f"chaos at {point}")
    else:
        raise RuntimeError(f"chaos at {point}")


def install_in_follower(plan: Path) -> None:
    """Strike this process, a follower, by the plan of its node."""
    read = json.loads(plan.read_text(encoding="utf-8"))
    failpoints.install(Harness(Path(read["Folder"]), read["Strikes"], follower=True))
