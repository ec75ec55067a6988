"""What needs attention beyond single sessions: workers, disks, clocks, dead letters, damaged rows. Pure.

Rule: one definition, used by `recorder sessions --stuck`, its API, `recorder doctor`, `/readyz` and the log. Each finding has its
cause, its subject, the time since when it holds, one sentence, and the next command. The causes within one session, such as a
receiver that refuses its result, are the rules of `web/stuck.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from machine import database_clock

NO_WORKER = "no-worker"
SPOOL_UNREADABLE = "spool-unreadable"
DISK_LOW = "disk-low"
CLOCK_OFF = "clock-off"
PARKED = "parked"
ROW_UNREADABLE = "row-unreadable"
# What a node itself warns of, such as a log that cannot be written.
NODE_WARNING = "node-warning"
CAUSES = (NO_WORKER, SPOOL_UNREADABLE, DISK_LOW, CLOCK_OFF, PARKED, ROW_UNREADABLE, NODE_WARNING)
# The subjects of dead letters: rows of the outbox, or messages of the broker's queue.
IN_DATABASE = "database"
IN_BROKER = "broker"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """The last heartbeat of a node (Unix ms), with the spare capacity of a worker. `needed_bytes` is None for other nodes,
    `free_bytes` for a spool that cannot be read. `skew_ms` is how far its clock is ahead of the database's."""

    node: str
    seen_ms: int
    free_bytes: int | None
    needed_bytes: int | None
    skew_ms: int | None = None

    def is_alive(self, now_ms: int, alive_ms: int) -> bool:
        """Whether its last heartbeat is at most `alive_ms` old."""
        return now_ms - self.seen_ms <= alive_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """One finding. `subject` is a node, a row or a place, or "" for all; `since_ms` (Unix ms) is 0 if unknown; `count` is
    the number of sessions or dead letters, else 1."""

    cause: str
    subject: str = ""
    since_ms: int = 0
    why: str
    next: str = ""
    count: int = 1

    @property
    def text(self) -> str:
        """The finding in one line, without its subject."""
        return self.why if self.cause == NODE_WARNING else f"{self.cause}: {self.why} {self.next}"


def of_nodes(nodes: Sequence[NodeView], now_ms: int, alive_ms: int) -> list[Attention]:
    """The findings about the nodes of an installation."""
    living = [node for node in nodes if node.is_alive(now_ms, alive_ms)]
    workers = [node for node in nodes if node.needed_bytes is not None]
    found = [each for node in living for each in (*_of_spool(node), *_of_clock(node))]
    if not any(node.is_alive(now_ms, alive_ms) for node in workers):
        no_worker = Attention(
            cause=NO_WORKER,
            since_ms=max((node.seen_ms for node in workers), default=0),
            why="No worker is alive: nothing is captured, made or uploaded.",
            next="`recorder serve --roles=worker` starts one.",
        )
        found.insert(0, no_worker)
    return found


def of_parked(place: str, count: int, since_ms: int = 0, *, more: bool = False) -> list[Attention]:
    """The finding about dead letters; `more`: there are more than `count`."""
    if not count:
        return []
    number = f"More than {count} messages are" if more else "1 message is" if count == 1 else f"{count} messages are"
    why = f"{number} parked ({place}): handling failed for good, and it is not retried."
    next_step = "`recorder parked list` shows them with the reason; `recorder parked requeue` and `drop` remove them."
    return [Attention(cause=PARKED, subject=place, since_ms=since_ms, why=why, next=next_step, count=count)]


def of_row(table: str, row_id: str) -> Attention:
    """The finding about a row that cannot be read. Its content stays in the log, because anyone may call a probe."""
    return Attention(
        cause=ROW_UNREADABLE,
        subject=row_id,
        why=f"A row of the table {table} cannot be read or does not match its session, which does not go on.",
        next="The log has its id and reason (row.unreadable); repair that row in the database.",
    )


def of_sessions(rule: str, count: int) -> Attention:
    """The finding that a rule of stuck sessions holds for `count` sessions."""
    number = "1 session" if count == 1 else f"{count} sessions"
    return Attention(
        cause=rule,
        why=f"{number} cannot continue without you.",
        next="`recorder sessions --stuck` has the reasons.",
        count=count,
    )


def _of_spool(node: NodeView) -> list[Attention]:
    """The finding about the spool of a living worker."""
    if node.needed_bytes is None:
        return []
    if node.free_bytes is None:
        # Without the reason, which names the folder: anyone may call a probe.
        why, cause = "A worker cannot read its spool.", SPOOL_UNREADABLE
        next_step = "`recorder doctor` on that node checks the folder; repair its disk or mount."
    elif node.free_bytes < node.needed_bytes:
        cause = DISK_LOW
        why = f"A worker has {node.free_bytes >> 20} MiB free in its spool and needs {node.needed_bytes >> 20} MiB."
        next_step = "`recorder doctor` on that node names the folder; free space there, or lower MIN_FREE."
    else:
        return []
    return [Attention(cause=cause, subject=node.node, why=why, next=next_step)]


def _of_clock(node: NodeView) -> list[Attention]:
    """The finding about the clock of a living node."""
    off = database_clock.off(node.skew_ms or 0)
    if not off:
        return []
    return [Attention(cause=CLOCK_OFF, subject=node.node, why=f"The clock of a node's machine {off}", next=database_clock.REMEDY)]
