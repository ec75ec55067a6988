"""What a node reports of itself to operators: where it runs, its roles, and its slots."""

from __future__ import annotations

import socket

from assembly import slots
from assembly.identity import VERSION
from config import settings as settings_module
from machine import nodes, states
from store import nodes as node_rows
from worker import worker


def of(settings: settings_module.Settings, made: worker.Worker | None, *, port: int, started_ms: int) -> nodes.NodeReport:
    """The report of this moment. Deliveries that wait for their receiver's turn count as in progress, so they may exceed their
    slots."""
    host = socket.gethostname()
    reached = host if settings.host in ("", "0.0.0.0", "::") else settings.host  # noqa: S104 - compared, not bound
    limits = {states.CAPTURE: settings.max_captures, **slots.by_kind(settings)} if made is not None else {}
    return nodes.NodeReport(
        host=host,
        address=settings.node_url or f"http://{reached}:{port}",
        roles=tuple(settings.roles),
        version=VERSION,
        started_ms=started_ms,
        slots={kind: (made.running(kind), limit) for kind, limit in limits.items()} if made is not None else {},
    )


def cordoned(node: str, rows: node_rows.Nodes) -> list[str]:
    """What an operator must know of a cordon of this node."""
    if rows.cordon == nodes.ACTIVE:
        return []
    return [f"This node is {rows.cordon}: it takes no new captures. `recorder nodes uncordon {node}` ends that."]
