"""systemd's notifications: the service is ready, its event loop runs, it stops.

Rule: outside of systemd nothing is sent, and a notification that fails does not end the service.
Source: sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Mapping


class Systemd:
    """The supervisor of this process. It is started after the service, so it is ready then, and stopped before it."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """`environment` has NOTIFY_SOCKET, and WATCHDOG_USEC and WATCHDOG_PID with a watchdog."""
        self._address = environment.get("NOTIFY_SOCKET", "")
        own = environment.get("WATCHDOG_PID") in (None, "", str(os.getpid()))
        text = environment.get("WATCHDOG_USEC", "")
        # Two heartbeats in each limit, as sd_watchdog_enabled(3) advises.
        self._every_s = int(text) / 2_000_000 if own and text.isdecimal() else 0.0
        self._watchdog: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Say that the service is ready, and from now on that it is alive. Safe to call twice."""
        self._notify("READY=1")
        if self._address and self._every_s and self._watchdog is None:
            self._watchdog = asyncio.create_task(self._stay_alive(), name="systemd.watchdog")

    async def stop(self) -> None:
        """Say that the service stops: from then on systemd limits the time of the stop. Safe to call twice."""
        self._notify("STOPPING=1")
        watchdog, self._watchdog = self._watchdog, None
        if watchdog is not None:
            watchdog.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watchdog

    async def _stay_alive(self) -> None:
        while True:
            self._notify("WATCHDOG=1")
            await asyncio.sleep(self._every_s)

    def _notify(self, state: str) -> None:
        if not self._address:
            return
        # An @ stands for the zero byte of an abstract name.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notified:
                notified.sendto(state.encode(), socket.MSG_DONTWAIT, address)
        except OSError as error:
            import structlog  # which `--help` does not need

            structlog.get_logger().warning("systemd.not_notified", state=state, reason=error.strerror)
