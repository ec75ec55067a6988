"""Checks of `recorder doctor` about what nodes share: broker, clocks, living workers, dead letters, receivers.

Rule: they read the database and the broker themselves, so they also work while no node answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cli.doctor_case import Case, Finding, ok, warn
from machine import errors

if TYPE_CHECKING:
    from assembly.inspection import Overview

# So many messages wait in no queue of a healthy installation.
BACKLOG = 1_000
SEE_DATABASE = "not known: see database"


def check_clock(case: Case) -> Finding:
    """This machine's clock is the database's, as are those of the living nodes."""
    if case.is_file:
        return ok("the database is on this machine")
    try:
        warnings = list(case.schema.clock_warnings)
    except (errors.RecorderError, OSError):
        return ok(SEE_DATABASE)
    if warnings:
        meaning = "Nothing is lost; times in the log and in other programs differ."
        return warn(" ".join(warnings), meaning, "timedatectl set-ntp true")
    return ok("as the database's")


def check_broker(case: Case) -> Finding:
    """The broker answers, has the queues, and each has a consumer."""
    if not case.distributed:
        return ok("no broker")
    try:
        queues = case.queues
    except errors.RecorderError as error:
        return warn(str(error), "Messages wait in the database.", "Start RabbitMQ, or correct AMQP_URL.")
    missing = [name for name, messages, _ in queues if messages is None]
    if len(missing) == len(queues):
        return ok("it answers; the first start declares its queues")
    if missing:
        meaning = "Messages for them are parked."
        return warn("no queue " + ", ".join(missing), meaning, "Restart a node: it declares the queues that are missing.")
    waiting = [f"{name}: {messages} waiting" for name, messages, _ in queues if messages and messages > BACKLOG]
    idle = [name for name, _, consumers in queues if not consumers]
    if idle:
        meaning = "Their messages wait: no node with the role for them is connected."
        return warn("nobody consumes " + ", ".join(idle), meaning, "recorder serve  # with the roles machine and worker")
    if waiting:
        meaning = "Nodes take messages more slowly than they come."
        return warn(", ".join(waiting), meaning, "Start more nodes, or look for a slow database.")
    return ok(f"it answers; {sum(messages or 0 for _, messages, _ in queues)} messages wait in {len(queues)} queues")


def check_workers(case: Case) -> Finding:
    """A worker sends heartbeats."""
    if not case.distributed:
        return ok("one process: see service")
    found = _overview(case)
    if isinstance(found, Finding):
        return found
    alive_ms = int(2_000 * case.settings.lease_s)
    living = [node for node in found.nodes if node.is_alive(found.now_ms, alive_ms)]
    workers = [node.node for node in living if node.needed_bytes is not None]
    if not workers:
        silent = f"; the last heartbeat was {(found.now_ms - found.nodes[0].seen_ms) // 1000} s ago" if found.nodes else ""
        meaning = "Nothing is captured, finished or uploaded."
        return warn(f"no living worker{silent}", meaning, "recorder serve --roles=worker")
    return ok(f"{len(workers)} of {len(living)} living nodes: {', '.join(sorted(workers))}")


def check_dead_letters(case: Case) -> Finding:
    """No message is parked, and the broker's queue for them has space."""
    from assembly import inspection

    found = _overview(case)
    parked = [] if isinstance(found, Finding) else [one.why for one in found.parked]
    warnings: list[str] = []
    if case.distributed:
        try:
            _ = case.queues  # which answers in time, or raises
            count, warnings = inspection.dead_letters(case.settings)
        except errors.RecorderError:
            return ok("not known: see broker")
        parked += [f"{count} {'message is' if count == 1 else 'messages are'} parked (broker)."] * bool(count)
    if warnings:
        return warn(" ".join(parked), "The broker refuses more at a limit; those then take slots.", " ".join(warnings))
    if parked:
        return warn(" ".join(parked), "Handling them failed for good.", "recorder parked list  # then requeue or drop them")
    return found if isinstance(found, Finding) else ok("none")


def check_receivers(case: Case) -> Finding:
    """No receiver of results has failed so often that its circuit is open."""
    found = _overview(case)
    if isinstance(found, Finding):
        return found
    if found.receivers:
        named = ", ".join(f"{origin.removesuffix('/…')} ({count} waiting)" for origin, count in found.receivers[:3])
        rest = f" and {len(found.receivers) - 3} more" if len(found.receivers) > 3 else ""
        meaning = "They failed 5 times in a row or more; results are posted to them after pauses only."
        return warn(named + rest, meaning, "recorder sessions --stuck  # names the sessions and the reasons")
    return ok("none fails")


def _overview(case: Case) -> Overview | Finding:
    try:
        found = case.overview
    except errors.RecorderError:
        return ok(SEE_DATABASE)
    return found if found is not None else ok("the database has no tables yet")
