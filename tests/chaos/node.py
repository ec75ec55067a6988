"""One node of the recorder with a harness at its failpoints: `python -m tests.chaos.node PLAN serve …`.

PLAN is a JSON file: {"Folder", "Strikes": [{"Point", "Hit", "Act"}], "Skews": [[s after the start, ms ahead]]}.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import service
from media import ffmpeg_process
from tests import quick_following
from tests.chaos import harness


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


def main() -> None:
    """Install the harness and run the service."""
    path = Path(sys.argv.pop(1))
    plan = json.loads(path.read_text(encoding="utf-8"))
    if plan["Skews"]:
        skew_clock(plan["Skews"])
    if os.environ.get("FOLLOW") == "True":
        quick_following.install()
        ffmpeg_process.ENVIRONMENT[harness.PLAN] = str(path)  # the audit knows the run's processes by it too
    service.main(harness.Harness(Path(plan["Folder"]), plan["Strikes"]))


if __name__ == "__main__":
    main()
