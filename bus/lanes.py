"""Lanes of the local bus: messages of one session in order, sessions side by side, each class of messages with its own slots.

Rules:
- Messages of one lane run one after the other. A message without a session has a lane of its own.
- Requests of users and all other messages have separate slots, so neither class waits for the other.
- A lane takes few messages in advance. One session with many messages leaves room for the others.
- What was full takes no message until half of it is free. The reader skips it meanwhile, and reads the messages behind it.
"""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Awaitable, Callable, Set
from dataclasses import dataclass, field

import structlog

from bus import message_types
from machine import due_work

log = structlog.get_logger()

LANE_LENGTH = 16


@dataclass(slots=True)
class _Class:
    """Messages that share slots: `slots` run at a time, and `capacity` are taken in advance."""

    capacity: int
    slots: asyncio.Semaphore
    taken: set[int] = field(default_factory=set)
    full: bool = False

    def take(self, seq: int) -> None:
        """Take a message."""
        self.taken.add(seq)
        self.full = self.full or len(self.taken) >= self.capacity

    def forget(self, seqs: Set[int]) -> None:
        """Free the places of these messages."""
        self.taken -= seqs
        self.full = self.full and len(self.taken) > self.capacity // 2


class Lanes:
    """Runs `deliver` for each message that was put in."""

    def __init__(self, deliver: Callable[[due_work.OutboxMessage], Awaitable[None]]) -> None:
        self._deliver = deliver
        # A start waits for checks, each with a limit of seconds, most of the time: slow ones of one user must leave slots.
        self._requests = _Class(256, asyncio.Semaphore(128))
        self._others = _Class(256, asyncio.Semaphore(32))
        self._lanes: dict[str, collections.deque[due_work.OutboxMessage]] = {}
        self._full_lanes: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def put(self, message: due_work.OutboxMessage) -> bool:
        """Take a message, unless its class or its lane is full; returns whether it was taken."""
        of, lane = self._class(message), message.task_id or f"#{message.seq}"
        queue = self._lanes.get(lane)
        if of.full or lane in self._full_lanes:
            return False
        of.take(message.seq)
        if queue is not None:
            queue.append(message)
            if len(queue) >= LANE_LENGTH:
                self._full_lanes.add(lane)
            return True
        self._lanes[lane] = collections.deque([message])
        task = asyncio.create_task(self._run(lane), name=f"bus.lane {lane}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    def forget(self, seqs: Set[int]) -> None:
        """Free the places of these messages: they are marked in the database, or must be read again."""
        self._requests.forget(seqs)
        self._others.forget(seqs)

    async def stop(self) -> None:
        """Cancel what runs, and take nothing of it any further."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._lanes.clear()
        self.forget(self.taken)

    @property
    def taken(self) -> set[int]:
        """The numbers of the messages that were put in and not forgotten."""
        return self._requests.taken | self._others.taken

    @property
    def full_types(self) -> set[str]:
        """The types of which no further message can be taken."""
        return {t for t in message_types.ALL if (self._requests if t in message_types.REQUESTS else self._others).full}

    @property
    def full_lanes(self) -> set[str]:
        """The sessions of which no further message can be taken."""
        return set(self._full_lanes)

    def _class(self, message: due_work.OutboxMessage) -> _Class:
        return self._requests if message.type in message_types.REQUESTS else self._others

    async def _run(self, lane: str) -> None:
        """Deliver the messages of a lane until it is empty."""
        queue = self._lanes[lane]
        try:
            while queue:
                async with self._class(queue[0]).slots:
                    await self._deliver(queue[0])
                queue.popleft()
                if len(queue) <= LANE_LENGTH // 2:
                    self._full_lanes.discard(lane)
        except Exception:
            # The policy decides on every failure of a handler, so this is a bug. The messages are read again.
            log.exception("bus.lane_failed", lane=lane)
        finally:
            self.forget({message.seq for message in queue})
            self._lanes.pop(lane, None)
            self._full_lanes.discard(lane)
