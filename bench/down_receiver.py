"""Receiver of forwarded callbacks, in a process of its own: it answers 503 for some seconds, then 200.

    .venv/bin/python -m bench.down_receiver 5

Rule: it prints its port, and at the end of its input the number of callbacks that it took.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

from aiohttp import web


@dataclass(slots=True, kw_only=True)
class Running:
    """A running receiver; `took` counts after the end."""

    url: str
    took: int = 0


@contextlib.contextmanager
def running(down_s: float) -> Iterator[Running]:
    """Run a receiver that is down at first."""
    command = [sys.executable, "-m", "bench.down_receiver", str(down_s)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        found = Running(url=f"http://127.0.0.1:{int(process.stdout.readline())}/trtc")
        yield found
        process.stdin.close()
        found.took = int(process.stdout.readline())


async def serve(down_s: float) -> None:
    """Serve until the end of the input."""
    took, began_s = 0, 0.0

    async def answer(request: web.Request) -> web.Response:
        nonlocal took, began_s
        await request.read()
        began_s = began_s or time.monotonic()
        if time.monotonic() - began_s < down_s:
            return web.Response(status=503)
        took += 1
        return web.json_response({"code": 0})

    application = web.Application()
    application.router.add_post("/trtc", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    sys.stdout.write(f"{runner.addresses[0][1]}\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)
    await runner.cleanup()
    sys.stdout.write(f"{took}\n")


if __name__ == "__main__":
    asyncio.run(serve(float(sys.argv[1])))
