"""Watch over what needs attention beyond single sessions, for `/readyz` and the list of stuck sessions.

Rule: the database is read at most once in `EVERY_S`, however often somebody asks. A cause that begins or ends is logged.
"""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Sequence
from dataclasses import replace

import structlog

from machine import attention
from web import dependencies, stuck_sessions

EVERY_S = 1.0
# Rows that cannot be read and stuck sessions are searched less often, because many rows are read for it.
ROWS_EVERY_S = 10.0
# A look reads so many times CANDIDATES sessions.
ROUNDS = 5

log = structlog.get_logger()


class AttentionWatch:
    """The findings of one API."""

    def __init__(self, api: dependencies.Api) -> None:
        self._api = api
        self._turn = asyncio.Lock()
        self._found: Sequence[attention.Attention] = ()
        self._rows: Sequence[attention.Attention] = ()
        self._stuck: Sequence[attention.Attention] = ()
        self._rules: collections.Counter[str] = collections.Counter()
        self._before = ""
        self._until_s = self._rows_until_s = self._stuck_until_s = 0.0
        self._alive: frozenset[str] = frozenset()

    async def look(self) -> Sequence[attention.Attention]:
        """The findings, at most EVERY_S old; those about rows, ROWS_EVERY_S. Raises DatabaseUnavailable."""
        async with self._turn:
            now_s = asyncio.get_running_loop().time()
            if now_s >= self._until_s:
                found = [*self._api.findings(), *await self._stored(now_s)]
                self._found, self._until_s = self._told(self._found, found), now_s + EVERY_S
        # What this node itself warns of is known without the database, and never old.
        return [
            *(attention.Attention(cause=attention.NODE_WARNING, why=warning) for warning in self._api.warnings()),
            *self._found,
        ]

    async def look_at_all(self) -> Sequence[attention.Attention]:
        """`look`, and a finding for each rule that holds for some session. Many sessions are read in several looks."""
        found, alive = await self.look(), await self.alive()
        async with self._turn:
            now_s = asyncio.get_running_loop().time()
            if now_s >= self._stuck_until_s:
                await self._read_sessions(alive)
                done_and_none = not self._before and not self._stuck
                self._stuck_until_s = now_s + (ROWS_EVERY_S if done_and_none else EVERY_S)
        return [*found, *self._stuck]

    async def _read_sessions(self, alive: frozenset[str] | None) -> None:
        """Read the next sessions. After the last ones, what was found since the first ones counts."""
        limit = ROUNDS * stuck_sessions.CANDIDATES
        listed, self._before = await stuck_sessions.page(self._api, alive, limit=limit, before=self._before, rounds=ROUNDS)
        for _, reasons in listed:
            self._rules.update({reason.rule for reason in reasons})
        if not self._before:
            stuck = [attention.of_sessions(rule, count) for rule, count in sorted(self._rules.items())]
            self._stuck = self._told(self._stuck, stuck)
            self._rules.clear()

    async def alive(self) -> frozenset[str] | None:
        """The nodes that send heartbeats; None where there are no others."""
        if not self._api.distributed:
            return None
        await self.look()
        return self._alive

    async def _stored(self, now_s: float) -> list[attention.Attention]:
        """The findings that the database knows."""
        api, asked = self._api, self._api.attention_queries
        if asked is None:
            return []
        now_ms, alive_ms = api.clock(), 2 * api.policy.lease_ms
        nodes = await asked.nodes() if api.distributed else [await api.own_node()] if api.own_node else []
        self._alive = frozenset(node.node for node in nodes if node.is_alive(now_ms, alive_ms))
        found = attention.of_nodes(nodes, now_ms, alive_ms) if nodes or api.distributed else []
        if now_s >= self._rows_until_s:
            self._rows = await asked.unreadable()
            self._rows_until_s = now_s + (EVERY_S if self._rows else ROWS_EVERY_S)
        return [*found, *await asked.parked(), *self._rows]

    def _told(self, known: Sequence[attention.Attention], found: Sequence[attention.Attention]) -> Sequence[attention.Attention]:
        """Log what began and what ended, and note since when the rest holds."""
        before, after = ({(each.cause, each.subject): each for each in some} for some in (known, found))
        for key in after.keys() - before.keys():
            log.warning("attention.needed", cause=key[0], subject=key[1], why=after[key].why, next=after[key].next)
        for cause, subject in before.keys() - after.keys():
            log.info("attention.over", cause=cause, subject=subject)
        now_ms = self._api.clock()
        since_ms = {key: each.since_ms for key, each in before.items()}
        return [
            each if each.since_ms else replace(each, since_ms=since_ms.get((each.cause, each.subject), now_ms)) for each in found
        ]
