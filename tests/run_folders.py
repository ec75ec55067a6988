"""Folders that a test run makes for its servers, databases and releases, outside of pytest's own.

Rule: each has a mark of its owner, the process that made it. A run begins with the removal of those whose owner is gone
(tests/run_guard.py): a killed run leaves hundreds of MB. A folder without a mark, or of another namespace of processes, stays.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from pathlib import Path

PREFIX = "recorder-"
MARK = ".owner-of-test-folder"
# After the name, which may hold spaces, in /proc/PID/stat: proc(5), field 22.
_STARTED = 19


def make(kind: str, where: Path | None = None) -> Path:
    """A new folder of this process, such as `recorder-postgres-…`, in the system's temporary folder or in `where`."""
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{kind}-", dir=where))
    mark(folder)
    return folder


def mark(folder: Path) -> None:
    """Write down that this process is the folder's owner."""
    owner = {"Namespace": _namespace(), "Pid": os.getpid(), "Started": _started(os.getpid())}
    (folder / MARK).write_text(json.dumps(owner), encoding="ascii")


def remove_orphans(where: Path) -> list[Path]:
    """Remove the folders in `where` whose owner is gone; returns them."""
    removed = []
    for folder in sorted(where.glob(f"{PREFIX}*")):
        if _is_orphan(folder):
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder)
    return removed


def places() -> set[Path]:
    """The folders in which runs make theirs: the system's temporary folder, and the one in memory if there is one."""
    return {Path(tempfile.gettempdir()), *([memory] if (memory := in_memory()) else [])}


def in_memory() -> Path | None:
    """A folder in memory, if this process may write to one."""
    memory = Path("/dev/shm")
    return memory if memory.is_dir() and os.access(memory, os.W_OK) else None


def _is_orphan(folder: Path) -> bool:
    try:
        owner = json.loads((folder / MARK).read_text(encoding="ascii"))
        namespace, pid, started = owner["Namespace"], owner["Pid"], owner["Started"]
    except (OSError, ValueError, LookupError, TypeError):
        return False
    return bool(namespace == _namespace() and _started(pid) != started)


def _namespace() -> str:
    return os.readlink("/proc/self/ns/pid")


def _started(pid: int) -> str:
    """When a process started, in ticks since the system's start; "" if there is none. A later process may have its id."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rsplit(")", 1)[1].split()[_STARTED]
    return ""
