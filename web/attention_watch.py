"""Watch over what needs attention, for the log, `/readyz` and the list of stuck sessions.

Rules: the database is read at most once in `EVERY_S`, however often somebody asks. A cause that begins or ends is logged, also
while nobody asks: the task looks by itself. An outage of the database is logged once, and ends neither task nor probe.
"""

from __future__ import annotations

import asyncio
import collections
import string
from collections.abc import Sequence
from dataclasses import replace

import structlog

from machine import attention, errors, supervised_task
from web import dependencies, stuck_sessions

EVERY_S = 1.0
# Rows that cannot be read and stuck sessions are searched less often, because many rows are read for it.
ROWS_EVERY_S = 10.0
# A look reads so many times CANDIDATES sessions.
ROUNDS = 5
# Sessions that the overview of the console lists.
LISTED = 50
# A probe waits so long for a look. Whoever probes has a time limit too, and the database answered already.
PATIENCE_S = 5.0
SLOW = "What needs attention may be out of date: reading it takes longer than a probe can wait."
UNKNOWN = "What needs attention is not known: the log has the reason (attention.look_failed)."
_WITHOUT_DIGITS = str.maketrans("", "", string.digits)

log = structlog.get_logger()


class AttentionWatch:
    """The findings of one API. `task` looks every ROWS_EVERY_S."""

    def __init__(self, api: dependencies.Api) -> None:
        self._api = api
        self._turn = asyncio.Lock()
        self._warned: Sequence[attention.Attention] = ()
        self._found: Sequence[attention.Attention] = ()
        self._rows: Sequence[attention.Attention] = ()
        self._stuck: Sequence[attention.Attention] = ()
        self._rules: collections.Counter[str] = collections.Counter()
        self._before = ""
        # The first sessions that the last search found, with their reasons; and the nodes as they were last read.
        self.listed: stuck_sessions.Found = []
        self._listing: stuck_sessions.Found = []
        self.nodes: Sequence[attention.NodeView] = ()
        self._until_s = self._rows_until_s = self._stuck_until_s = 0.0
        self._alive: frozenset[str] = frozenset()
        self._outage = ""
        self.task = supervised_task.SupervisedTask("attention", self._run)

    async def start(self) -> None:
        """Begin to look without being asked."""
        self.task.start()

    async def stop(self) -> None:
        """End the looks of the task."""
        await self.task.stop()

    async def _run(self) -> None:
        while True:
            # First the pause: nodes that start together send their first heartbeats meanwhile.
            await asyncio.sleep(EVERY_S if self._before else ROWS_EVERY_S)
            await self.run_once()

    async def run_once(self) -> None:
        """Look at all, and log what prevents it: an outage once, a defect each time. The next look continues."""
        try:
            await self.look_at_all()
        except errors.RecorderError as error:
            self._note_outage(error.message)
        except Exception:
            log.exception("attention.look_failed")
        else:
            self._note_outage("")

    def _note_outage(self, reason: str) -> None:
        if reason and not self._outage:
            log.warning("attention.unknown", reason=reason)
        elif self._outage and not reason:
            log.info("attention.known")
        self._outage = reason

    async def look_for_probe(self) -> Sequence[attention.Attention]:
        """`look_at_all` for a caller that nothing may keep waiting. If it takes long or fails, the findings of before, and a
        warning. Raises DatabaseUnavailable."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await self.look_at_all()
        except TimeoutError:
            why = SLOW
        except errors.Unavailable:
            raise
        except Exception:
            log.exception("attention.look_failed")
            why = UNKNOWN
        return [attention.Attention(cause=attention.NODE_WARNING, why=why), *self._warned, *self._found, *self._stuck]

    def counts(self) -> dict[str, int]:
        """The last findings without another look: their number by cause, of sessions by rule."""
        counted: collections.Counter[str] = collections.Counter()
        for each in (*self._warned, *self._found, *self._stuck):
            counted[each.cause] += each.count
        return dict(counted)

    async def look(self) -> Sequence[attention.Attention]:
        """The findings, at most EVERY_S old; those about rows, ROWS_EVERY_S. Raises DatabaseUnavailable."""
        # What this node itself warns of is known without the database, and never old.
        warnings = [attention.Attention(cause=attention.NODE_WARNING, why=warning) for warning in self._api.warnings()]
        self._warned = self._told(self._warned, warnings)
        async with self._turn:
            now_s = asyncio.get_running_loop().time()
            if now_s >= self._until_s:
                found = [*self._api.findings(), *await self._stored(now_s)]
                self._found, self._until_s = self._told(self._found, found), now_s + EVERY_S
        return [*self._warned, *self._found]

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
        self._listing = [*self._listing, *listed][:LISTED]
        for _, reasons in listed:
            self._rules.update({reason.rule for reason in reasons})
        if not self._before:
            stuck = [attention.of_sessions(rule, count) for rule, count in sorted(self._rules.items())]
            self._stuck = self._told(self._stuck, stuck)
            self.listed, self._listing = self._listing, []
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
        self.nodes = nodes
        self._alive = frozenset(node.node for node in nodes if node.is_alive(now_ms, alive_ms))
        found = attention.of_nodes(nodes, now_ms, alive_ms) if nodes or api.distributed else []
        if now_s >= self._rows_until_s:
            self._rows = await asked.unreadable()
            self._rows_until_s = now_s + (EVERY_S if self._rows else ROWS_EVERY_S)
        return [*found, *await asked.parked(), *self._rows]

    def _told(self, known: Sequence[attention.Attention], found: Sequence[attention.Attention]) -> Sequence[attention.Attention]:
        """Log what began and what ended, and note since when the rest holds."""
        before, after = ({_key(each): each for each in some} for some in (known, found))
        for key in after.keys() - before.keys():
            log.warning("attention.needed", cause=key[0], subject=key[1], why=after[key].why, next=after[key].next)
        for cause, subject, _ in before.keys() - after.keys():
            log.info("attention.over", cause=cause, subject=subject)
        now_ms = self._api.clock()
        since_ms = {key: each.since_ms for key, each in before.items()}
        return [each if each.since_ms else replace(each, since_ms=since_ms.get(_key(each), now_ms)) for each in found]


def _key(each: attention.Attention) -> tuple[str, str, str]:
    """What stays the same from look to look. A node's own warnings differ in their words, and the numbers in them grow."""
    words = each.why.translate(_WITHOUT_DIGITS) if each.cause == attention.NODE_WARNING else ""
    return each.cause, each.subject, words
