"""The sessions that need attention: the database finds candidates, the rules of `web/stuck.py` decide."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import replace
from typing import Any

from machine import model, session_view
from web import dependencies, stuck

# Candidates in one query.
CANDIDATES = 20
MAX_ROUNDS = 50

Found = list[tuple[model.Session, list[stuck.StuckFinding]]]


async def page(
    api: dependencies.Api,
    alive: Container[str] | None,
    *,
    limit: int,
    before: str = "",
    wanted: session_view.SessionFilter = session_view.EVERY_SESSION,
    rounds: int = MAX_ROUNDS,
) -> tuple[Found, str]:
    """At most `limit` of them, newest first, and the `before` of the page after it. `alive`: the nodes that send heartbeats;
    `rounds`: how often CANDIDATES are read."""
    found: Found = []
    for _ in range(rounds):
        candidates, after = await api.queries.sessions(replace(wanted, maybe_stuck=True), before=before, limit=CANDIDATES)
        for snapshot in await snapshots(api, candidates, alive):
            reasons = stuck.findings(snapshot)
            if reasons:
                found.append((snapshot.session, reasons))
            if len(found) == limit:
                return found, snapshot.session.task_id
        if not after:
            return found, ""
        before = after
    # Many candidates and few of them stuck: the caller goes on, and one request does not read the whole database.
    return found, before


async def snapshots(
    api: dependencies.Api, sessions: Sequence[model.Session], alive: Container[str] | None
) -> list[stuck.Snapshot]:
    """Sessions with all the data that the rules read."""
    parts = await api.queries.parts([s.task_id for s in sessions])
    about: dict[str, Any] = {"policy": api.policy, "now_ms": api.clock()} | ({} if alive is None else {"alive": alive})
    return [stuck.Snapshot(session=s, parts=parts[s.task_id], **about) for s in sessions]
