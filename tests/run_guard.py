"""Run guard: every process that a test run starts ends with the run, also when the run is killed with SIGKILL.

A pytest plugin (`-p tests.run_guard`); chaos, soak and histories call `protect` themselves. Two processes sit between the shell
and the run. Both are child subreapers (prctl(2)): the kernel gives them every orphan of the run, also a daemon, and a process
with an environment or a session of its own.

    front (the id that the shell knows) → watcher (a session of its own) → the run → whatever it starts

Rule: only descendants are killed. The watcher ends all of them when the run or the front has ended. When the watcher is killed,
the kernel kills the run (PR_SET_PDEATHSIG), and the front ends the rest.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import NoReturn

import pytest

from tests import machine_probe, run_folders

VARIABLE = "RECORDER_TEST_RUN"
"""The id of the front: a run inside a run is guarded already."""
GRACE_S = 2.0
GIVE_UP_S = 30.0
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
RELAYED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_load_initial_conftests() -> Generator[None, object, object]:
    """Measure the machine and guard the run, before pytest takes over the output; processes of pytest-xdist are part of a run."""
    machine_probe.machine()
    if "PYTEST_XDIST_WORKER" not in os.environ:
        protect()
    return (yield)


def protect() -> None:
    """Return in a guarded process, after the folders that killed runs left are removed; the caller's own process becomes the
    front. Call it before any thread is started."""
    if VARIABLE in os.environ:
        return
    os.environ[VARIABLE] = str(os.getpid())
    sys.stdout.flush()
    sys.stderr.flush()
    _adopt_orphans()
    alive, front_end = os.pipe()
    watcher = os.fork()
    if watcher:
        os.close(alive)
        _front(watcher)
    os.close(front_end)
    os.setsid()
    _adopt_orphans()
    parent = os.getpid()
    run = os.fork()
    if run:
        _watch(run, alive)
    os.close(alive)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    for place in run_folders.places():
        run_folders.remove_orphans(place)


def _front(watcher: int) -> NoReturn:
    """Relay signals and wait for the watcher. The watcher notices the front's death by the pipe that the front alone holds."""
    for number in RELAYED:
        signal.signal(number, lambda number, _: _send(watcher, number))
    code = _exit_code(os.waitpid(watcher, 0)[1])
    end_descendants()
    os._exit(code)


def _watch(run: int, alive: int) -> NoReturn:
    """Wait until the run has ended or the front is gone; then end every descendant."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for number in RELAYED:
        signal.signal(number, lambda number, _: _send(run, number))
    status = _reaped(run)
    while status is None:
        ready, _, _ = select.select([woken, alive], [], [])
        if woken in ready:
            os.read(woken, 4096)
        status = _reaped(run)
        if alive in ready:
            break
    end_descendants()
    os._exit(1 if status is None else _exit_code(status))


def end_descendants() -> None:
    """SIGTERM to all descendants of this process, SIGKILL after `GRACE_S`, until none is left; prints those that remain."""
    begun_s, told = time.monotonic(), set[int]()
    while True:
        _reaped(0)
        left = descendants(os.getpid())
        took_s = time.monotonic() - begun_s
        if not left:
            return
        if took_s > GIVE_UP_S:
            sys.stderr.write(f"processes of the test run that could not be ended: {sorted(left)}\n")
            return
        for pid in left - told if took_s < GRACE_S else left:
            _send(pid, signal.SIGTERM if took_s < GRACE_S else signal.SIGKILL)
            _send(pid, signal.SIGCONT)
        told |= left
        with contextlib.suppress(InterruptedError):
            select.select([], [], [], 0.05)


def descendants(pid: int) -> set[int]:
    """The ids of the processes below this one that have not ended."""
    parents: dict[int, int] = {}
    ended = set[int]()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = stat.read_text("ascii", "replace").rsplit(")", 1)[1].split()[:2]
            parents[int(stat.parent.name)] = int(parent)
            if state in "ZX":
                ended.add(int(stat.parent.name))
    found, ahead = set[int](), {pid}
    while ahead:
        ahead = {child for child, parent in parents.items() if parent in ahead} - found
        found |= ahead
    return found - ended


def _adopt_orphans() -> None:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def _reaped(run: int) -> int | None:
    """Reap every child that has ended; the status of `run` if it is among them."""
    status = None
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            status = ended[1] if ended[0] == run else status
    return status


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _exit_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code
