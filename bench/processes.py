"""CPU time of processes, by `/proc`. It imports only the standard library, because other environments use it.

Rule: a process counts with its threads and with the children that it has waited for; a tree counts its living descendants too.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """User and system time of one process, without its children."""
    fields = _fields(pid)
    return (int(fields[11]) + int(fields[12])) / TICKS


def tree_cpu_s(pid: int) -> float:
    """User and system time of a process and its descendants, dead ones included."""
    used = 0
    for each in tree(pid):
        # One that has ended meanwhile is in the figures of its parent.
        with contextlib.suppress(OSError):
            used += sum(map(int, _fields(each)[11:15]))
    return used / TICKS


def children(pid: int) -> set[int]:
    """The living children of a process."""
    return {child for child, parent in _parents().items() if parent == pid}


def trees(pids: Iterable[int]) -> set[int]:
    """Processes and their living descendants."""
    parents, found, fresh = _parents(), set[int](), set(pids)
    while fresh:
        found |= fresh
        fresh = {pid for pid, parent in parents.items() if parent in fresh} - found
    return found


def tree(pid: int) -> set[int]:
    """A process and its living descendants."""
    return trees((pid,))


def pss_mib(pid: int) -> float:
    """The memory of a process, shared pages in equal parts."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii")
    return int(next(line for line in text.splitlines() if line.startswith("Pss:")).split()[1]) / 1024


def _parents() -> dict[int, int]:
    """The parent of each living process."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            found[int(stat.parent.name)] = int(_fields(int(stat.parent.name))[1])
    return found


def _fields(pid: int) -> list[str]:
    """The fields of `stat` after the name: state, parent, …"""
    return Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rsplit(")", 1)[1].split()
