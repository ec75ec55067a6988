"""One node of the recorder with a harness at its failpoints: `python -m tests.chaos.node PLAN serve …`.

PLAN is a JSON file: {"Folder", "Strikes": [{"Point", "Hit", "Act"}], "Skews": [[s after the start, ms ahead]]}. Rule: each strike
happens once, in the first process that reaches it. Just before, the process writes a record of it into the folder, with the
captures that it runs: a kill takes along these and no others.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import service
from media import ffmpeg_process
from tests import quick_following
from tests.chaos import open_captures


class Harness:
    """Counts how often this process reaches each failpoint, and carries out the strikes."""

    def __init__(self, folder: Path, strikes: list[dict[str, Any]]) -> None:
        self._folder = folder
        self._open = {n: strike for n, strike in enumerate(strikes) if not self._path(n).exists()}
        self._hits: Counter[str] = Counter()

    def __call__(self, point: str) -> None:
        """Called by every failpoint."""
        self._hits[point] += 1
        due = [n for n, s in self._open.items() if s["Point"] == point and self._hits[point] >= s["Hit"]]
        for number in due:
            strike = self._open.pop(number)
            if self._claimed(number, strike):
                _carry_out(strike["Act"], point)

    def _claimed(self, number: int, strike: dict[str, Any]) -> bool:
        """Write the record of the strike; False if another process was first."""
        record = {**strike, "Pid": os.getpid(), "MonotonicS": time.monotonic(), "UnixMs": time.time_ns() // 1_000_000}
        record["Captures"] = open_captures.own()
        try:
            with self._path(number).open("x", encoding="utf-8") as file:
                file.write(json.dumps(record))
        except FileExistsError:
            return False
        return True

    def _path(self, number: int) -> Path:
        return self._folder / f"struck-{number}.json"


def skew_clock(skews: list[list[float]]) -> None:
    """Let this process see a machine whose clock is off, and is set at some moments."""
    began_s = time.monotonic()
    set_clock(lambda: [ms for after_s, ms in skews if after_s <= time.monotonic() - began_s][-1])


def set_clock(ahead_ms: Callable[[], float]) -> None:
    """Let this process see a machine whose clock is so far ahead at each moment: the time and the times of files."""
    time_ns, stat, fstat = time.time_ns, os.stat, os.fstat

    def ahead_ns() -> int:
        return round(ahead_ms() * 1_000_000)

    def moved(found: os.stat_result) -> os.stat_result:
        names = [name for name in dir(found) if name.startswith("st_")]
        fields = {name: getattr(found, name) for name in names}
        fields["st_mtime_ns"] += ahead_ns()
        fields["st_mtime"] = fields["st_mtime_ns"] / 1e9
        return os.stat_result(tuple(found), fields)

    time.time_ns = lambda: time_ns() + ahead_ns()
    time.time = lambda: time.time_ns() / 1e9
    os.stat = lambda *args, **options: moved(stat(*args, **options))
    os.fstat = lambda *args, **options: moved(fstat(*args, **options))


def _carry_out(act: str, point: str) -> None:
    if act == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif act == "freeze":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif len(point) % 2:
        raise OSError(errno.EIO, f"chaos at {point}")
    else:
        raise RuntimeError(f"chaos at {point}")


def main() -> None:
    """Install the harness and run the service."""
    plan = json.loads(Path(sys.argv.pop(1)).read_text(encoding="utf-8"))
    if plan["Skews"]:
        skew_clock(plan["Skews"])
    if os.environ.get("FOLLOW") == "True":
        quick_following.install()
        ffmpeg_process.ENVIRONMENT["RUN"] = plan["Folder"]  # the audit knows the run's processes by it
    service.main(Harness(Path(plan["Folder"]), plan["Strikes"]))


if __name__ == "__main__":
    main()
