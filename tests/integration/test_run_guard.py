"""No process outlives the test run that started it, whichever of the run's processes is killed (`tests/run_guard.py`)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests import backends, run_guard, service_process, waiting

FRONT, WATCHER, RUN = "front", "watcher", "run"


@contextlib.asynccontextmanager
async def doomed(folder: Path, engine: str, *options: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A guarded run whose processes have all started."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", run_guard.VARIABLE))}
    with (folder / "run.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            # A shell starts background jobs with SIGINT ignored, which a child inherits: Ctrl-C would do nothing.
            "env", "--default-signal=INT",
            sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, "tests/doomed_run.py",
            cwd=service_process.ROOT, env=environment | {"DOOMED_FOLDER": str(folder), "DOOMED_ENGINE": engine},
            stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip

    def started() -> bool:
        assert process.returncode is None, (folder / "run.log").read_text()
        return (folder / "started").exists()

    try:
        await waiting.until(started, 60, f"everything to run; see {folder / 'run.log'}", every_s=0.1)
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


def identities(pids: set[int]) -> set[tuple[int, str]]:
    """Each process that has not ended, by its id and the time of its start: ids are given again."""
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            state, *fields = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rsplit(")", 1)[1].split()
            if state not in "ZX":
                found.add((pid, fields[18]))
    return found


def programs(pids: set[int]) -> str:
    """Their command lines."""
    lines = []
    for pid in pids:
        with contextlib.suppress(OSError):
            lines.append(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return "\n".join(lines)


def first_child(pid: int) -> int:
    """The process that this one started first; a watcher adopts others later."""
    return min(identities(set(service_process.children(pid))), key=lambda one: int(one[1]))[0]


@pytest.mark.parametrize(
    ("engine", "whom", "options"),
    [
        (backends.EMBEDDED, FRONT, ()),
        (backends.EMBEDDED, WATCHER, ()),
        (backends.EMBEDDED, RUN, ()),
        (backends.DISTRIBUTED, RUN, ("-n", "1")),
    ],
)
async def test_a_killed_run_leaves_no_process(tmp_path: Path, engine: str, whom: str, options: tuple[str, ...]) -> None:
    """kill -9 of one process of the run: nginx, the service, its servers and a daemon that left the run's session end as well."""
    async with doomed(tmp_path, engine, *options) as process:
        watcher = first_child(process.pid)
        victim = {FRONT: process.pid, WATCHER: watcher, RUN: first_child(watcher)}[whom]
        begun = run_guard.descendants(process.pid)
        shown = programs(begun)
        servers = ("postgres", "epmd", "beam.smp") if engine == backends.DISTRIBUTED else ()
        for wanted in ("nginx", "serve", "signal.pause", *servers):
            assert wanted in shown, shown
        before = identities(begun)
        os.kill(victim, signal.SIGKILL)
        await waiting.until(lambda: not before & identities(begun), 20, "every process of the run to have ended", every_s=0.1)


async def test_an_interrupted_run_leaves_no_process(tmp_path: Path) -> None:
    """Ctrl-C, on the embedded engine: pytest ends in order, with its own exit code, and nothing goes on."""
    async with doomed(tmp_path, backends.EMBEDDED) as process:
        begun = run_guard.descendants(process.pid)
        before = identities(begun)
        process.send_signal(signal.SIGINT)
        assert await process.wait() == pytest.ExitCode.INTERRUPTED
        assert not before & identities(begun)
