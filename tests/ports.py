"""Ports for servers that must know their port before they listen: below the system's ephemeral range, and separate for parallel
tests.
"""

from __future__ import annotations

import itertools
import os
import socket

FIRST, EACH = 12_000, 1_500
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 12
# A run begins at an offset of its process number, so that two runs on one machine rarely collide.
_numbers = itertools.count(os.getpid() * 7)


def free() -> int:
    """A free port that no other test of this run gets."""
    for number in itertools.islice(_numbers, EACH):
        port = FIRST + _WORKER * EACH + number % EACH
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port is left")
