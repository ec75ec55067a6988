"""A test run that starts processes of every kind and then waits to be killed: `pytest tests/doomed_run.py`, by `test_run_guard`.

`DOOMED_ENGINE` is the engine of its service. When `DOOMED_FOLDER`/started exists, all of its processes run.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from tests import backends, nginx_rtmp, service_process, waiting

FOLDER = Path(os.environ.get("DOOMED_FOLDER", ""))
DAEMON = """
import os, signal, sys
if os.fork():
    os._exit(0)
os.setsid()
if os.fork():
    os._exit(0)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(sys.argv[1], "w").write(str(os.getpid()))
while True:
    signal.pause()
"""
"""Two forks, a session and an environment of its own; SIGTERM does nothing."""


async def test_everything_starts() -> None:
    """nginx, the service on its servers, and a daemon run until the run is killed."""
    server = nginx_rtmp.Edge(FOLDER / "edge")
    await server.start()
    data = FOLDER / "service"
    data.mkdir()
    made = backends.make(os.environ["DOOMED_ENGINE"], data / "data")
    await service_process.ServiceProcess(
        data, {"MIN_FREE": "1MiB", "COS_ENDPOINT": "http://127.0.0.1:9", **made.settings}
    ).start()
    daemon = FOLDER / "daemon"
    await asyncio.create_subprocess_exec(sys.executable, "-c", DAEMON, str(daemon), env={})
    await waiting.until(lambda: daemon.exists() and daemon.read_text(), what="the daemon to run")
    (FOLDER / "started").touch()
    await asyncio.Event().wait()
