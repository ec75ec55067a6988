"""`recorder serve`: runs the service until a signal, and the life of such a process.

Rule: whatever ends unexpectedly ends the process; its supervisor restarts it and unfinished work resumes.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import resource
import signal
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Annotated, Any, Protocol

import typer

from cli import exits, systemd
from machine import errors

# New objects before garbage is searched for among them. A hundred requests in progress hold thousands, none of them garbage, and
# with Python's 700 the search costs a callback of TRTC a tenth of its CPU.
YOUNG_OBJECTS = 10_000
# An infinite limit is more than the kernel grants.
MOST_FILES = 1 << 20
# The thread of the database asks for the interpreter after each statement, and waits so long for a busy event loop. With Python's
# 5 ms, a third fewer decisions were made beside one.
SWITCH_S = 0.001
# glibc gives the threads eight heaps for each CPU, and keeps large buffers in them once one was freed. With two heaps a node grew
# by a third less while 80 captures came and went for seven minutes. Parameters of mallopt(3), with their values.
_HEAPS, _LARGE_BYTES = (-8, 2), (-3, 256 << 10)


class Lifecycle(Protocol):
    """A long-lived object; both methods may be called twice."""

    async def start(self) -> None: ...
    async def stop(self) -> None: ...


def serve(
    roles: Annotated[str, typer.Option(help="Roles of this process: a list of api, machine and worker. Overrides ROLES.")] = "",
) -> None:
    """Run the service, with settings from the environment.

    docs/settings.md lists the settings.
    """
    raise typer.Exit(run_service({**os.environ, **({"ROLES": roles} if roles else {})}))


def run_service(environment: Mapping[str, str]) -> int:
    """Run the service until SIGTERM or SIGINT. Returns 0, or 1 after an expected error."""
    # Modules stay loaded until the end: collecting garbage among them again and again costs a fifth of the start.
    gc.disable()
    import structlog

    from assembly import logs, node
    from config import environment as variables
    from config import settings as settings_module

    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS)
    gc.enable()
    settings = exits.load_settings(environment)
    environment = variables.cleaned(environment)
    sink = logs.configure(level=settings.log_level, form=settings.log_format)
    for found in settings_module.misspelled(environment):
        structlog.get_logger().warning("settings.unknown", detail=found)
    # No core dumps: they would hold customers' keys, those of child processes as well.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    raise_file_limit()
    bound_heaps()
    sys.setswitchinterval(SWITCH_S)
    service = node.Node(settings, environment, log_warnings=sink.warnings)
    wait_for_children_by_descriptor()

    async def run_started() -> None:
        gc.freeze()  # what lives until the end is not searched again: 20 ms at each full collection
        await service.run()

    async def run() -> int:
        code = exits.OK
        try:
            await run_until_signal([service, systemd.Systemd(environment)], [run_started])
        except errors.RecorderError as error:
            sink.write(f"recorder: {error.message}\n")
            code = exits.REFUSED
        if service.database_hangs:
            # The end of the event loop and of Python would wait for a call on SQLite's file that does not return.
            os._exit(code)
        return code

    return asyncio.run(run())


def bound_heaps() -> None:
    """Let the memory of the process follow what it uses. Another C library than glibc needs nothing."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        for parameter, value in (_HEAPS, _LARGE_BYTES):
            library.mallopt(parameter, value)


async def run_until_signal(parts: Sequence[Lifecycle], runs: Sequence[Callable[[], Coroutine[Any, Any, None]]] = ()) -> None:
    """Start the parts, wait for SIGTERM, SIGINT or the end of one of `runs`, then stop the parts in reverse order."""
    signaled = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signaled.set)
    async with contextlib.AsyncExitStack() as stack:
        for part in parts:
            stack.push_async_callback(part.stop)
            await part.start()
        tasks: list[asyncio.Task[Any]] = [asyncio.create_task(run()) for run in runs]
        tasks.append(asyncio.create_task(signaled.wait()))
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        for task in done:
            task.result()


def raise_file_limit() -> None:
    """Raise the soft limit of open files to the hard one. The usual 1,024 is enough for about 200 captures."""
    import structlog

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        structlog.get_logger().info("service.file_limit_raised", limit=limit, before=soft)


def wait_for_children_by_descriptor() -> None:
    """Wait for each ffmpeg by its process descriptor instead of a thread, as Python itself does since 3.12."""
    if sys.version_info < (3, 12) and hasattr(os, "pidfd_open"):
        with contextlib.suppress(OSError):  # forbidden on this system: a thread per child
            os.close(os.pidfd_open(os.getpid()))
            asyncio.set_child_watcher(asyncio.PidfdChildWatcher())
