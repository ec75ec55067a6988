"""A node as operators see it: what it reports with its heartbeat, whether it is cordoned, and which leases it holds. Pure.

Rule: a cordon is in the database only, so it survives a restart of the node, which reads it with each heartbeat.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from machine import states

ACTIVE, CORDONED, DRAINING = "", "cordoned", "draining"
"""What an operator asked of a node: nothing, to take no new capture, and also to hand over the captures that it has."""
DRAINED, AWAY = "drained", "away"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReport:
    """What a node reports of itself. `slots` has the jobs in progress and their limit (0: none) by the kind of job."""

    host: str
    address: str
    roles: tuple[str, ...]
    version: str
    started_ms: int
    slots: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def to_json(self) -> str:
        """The form in the row of the node."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> NodeReport | None:
        """The opposite of `to_json`, also for a later version's report; None for "", which an earlier version left."""
        if not text:
            return None
        body: dict[str, Any] = json.loads(text)
        slots = {kind: (int(used), int(limit)) for kind, (used, limit) in body["slots"].items()}
        return NodeReport(
            host=str(body["host"]),
            address=str(body["address"]),
            roles=tuple(body["roles"]),
            version=str(body["version"]),
            started_ms=int(body["started_ms"]),
            slots=slots,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRow:
    """The last heartbeat of a node (Unix ms), the cordon, and the number of its leases by the kind of job. `free_bytes`,
    `needed_bytes`, `busy` and `skew_ms` as in `model.SpareCapacity` and `attention.NodeView`."""

    node: str
    seen_ms: int
    alive: bool
    cordon: str
    free_bytes: int | None
    needed_bytes: int | None
    busy: str
    skew_ms: int | None
    report: NodeReport | None
    leases: Mapping[str, int]

    @property
    def is_worker(self) -> bool:
        """Whether it takes captures. A node of an earlier version reports no roles, but a worker its spare capacity."""
        return "worker" in self.report.roles if self.report is not None else self.needed_bytes is not None

    @property
    def state(self) -> str:
        """`active`, `cordoned`, `draining`, `drained` or `away`. A drained node can be stopped without moving a capture."""
        if not self.alive:
            return AWAY
        if self.cordon == DRAINING and not self.leases.get(states.CAPTURE):
            return DRAINED
        return self.cordon or "active"
