"""Notifications to systemd over its datagram socket: when they are sent, and that their failure ends nothing."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli import systemd
from tests import waiting


@pytest.fixture(params=["path", "abstract"])
def supervisor(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """systemd's end of the socket, and its address as a service gets it."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@recorder-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(name.replace("@", "\0"))
        listening.setblocking(False)
        yield listening, name


def heard(listening: socket.socket) -> list[str]:
    """The notifications since the last time."""
    found = []
    while True:
        try:
            found.append(listening.recv(1024).decode())
        except BlockingIOError:
            return found


async def test_ready_alive_stopping(supervisor: tuple[socket.socket, str]) -> None:
    """READY once it has started, WATCHDOG again and again, STOPPING at last, after which nothing follows."""
    listening, name = supervisor
    notified = systemd.Systemd({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "20000", "WATCHDOG_PID": str(os.getpid())})
    assert heard(listening) == []
    await notified.start()
    assert heard(listening)[0] == "READY=1"
    signs: list[str] = []
    await waiting.until(lambda: signs.extend(heard(listening)) or len(signs) > 2, what="heartbeats")
    assert set(signs) == {"WATCHDOG=1"}
    await notified.stop()
    assert heard(listening)[-1] == "STOPPING=1"
    await waiting.passed(0.05)
    assert heard(listening) == []
    await notified.stop()


@pytest.mark.parametrize("more", [{}, {"WATCHDOG_USEC": "20000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "soon"}])
async def test_no_watchdog_of_this_process(supervisor: tuple[socket.socket, str], more: dict[str, str]) -> None:
    """Without a watchdog, or with that of another process, there are no heartbeats."""
    listening, name = supervisor
    notified = systemd.Systemd({"NOTIFY_SOCKET": name} | more)
    await notified.start()
    await waiting.passed(0.05)
    await notified.stop()
    assert heard(listening) == ["READY=1", "STOPPING=1"]


async def test_nobody_to_notify(tmp_path: Path) -> None:
    """Without systemd, or when its socket is gone, the service goes on."""
    for environment in ({}, {"NOTIFY_SOCKET": str(tmp_path / "gone"), "WATCHDOG_USEC": "20000"}):
        notified = systemd.Systemd(environment)
        await notified.start()
        await notified.stop()
