"""Ports for servers that are told their port before they listen: below those that the system gives to connections by itself, and
apart for tests that run side by side. Imports nothing of ours."""

from __future__ import annotations

import itertools
import os
import socket

FIRST, EACH = 12_000, 1_500
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 12
# A run begins where its process number says, so that two runs on one machine seldom ask for the same.
_numbers = itertools.count(os.getpid() * 7)


def free() -> int:
    """A port that nobody listens on, and that no other test of this run is given."""
    for number in itertools.islice(_numbers, EACH):
        port = FIRST + _WORKER * EACH + number % EACH
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port is left")
