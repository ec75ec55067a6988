"""Aborted connections, as failing networks abort them.

Rule: the peer sees a TCP reset, never an orderly end.
"""

from __future__ import annotations

import socket
import struct

from aiohttp import web


def reset(request: web.Request) -> None:
    """Send a TCP reset and drop the queued bytes; every later write raises ConnectionError."""
    transport = request.transport
    if transport is not None:
        connection = transport.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
