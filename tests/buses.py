"""Buses for tests, one kind per engine: same store, same handlers, and access to dead letters."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Protocol

import aio_pika

from bus import delivery_policy, local, message_reader
from bus import rabbit as rabbit_bus
from bus import topology as topologies
from events import codec
from machine import supervised_task
from store import store as stores
from tests import engines, rabbit, waiting

NAMES = ("local", "rabbitmq")
ROLES = ("api", "machine", "worker")
TASK = "01" + "0" * 23 + "1"
JOB = {"TaskId": TASK, "Speaker": "al", "N": 1, "Epoch": 1}


class Bus(Protocol):
    """The interface of both buses."""

    tasks: list[supervised_task.SupervisedTask]
    listeners: list[Callable[[codec.Event], None]]

    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    async def pause(self, command_type: str, but_own: bool = False) -> None: ...
    async def resume(self, command_type: str) -> None: ...


@dataclass(slots=True)
class Hands:
    """Handlers of a bus under test: they record each message and raise the scripted failures."""

    events: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    failures: dict[str, list[Exception]] = field(default_factory=dict)

    async def on_event(self, event: codec.Event) -> None:
        """Record an event; raise its next scripted failure."""
        self.events.append(event.id)
        if self.failures.get(event.id):
            raise self.failures[event.id].pop(0)

    async def on_command(self, command: codec.Event) -> None:
        """Record a command."""
        self.commands.append(command.id)


@dataclass(slots=True)
class Workshop:
    """Makes buses of one kind on one store; all of them are connected."""

    engine: str
    database: engines.Database
    store: stores.Store
    clock: engines.Clock
    prefix: str = ""

    def make(self, on_event: delivery_policy.Handler, on_command: delivery_policy.Handler, **more: Any) -> Bus:
        """A bus, not started yet."""
        if self.engine == "local":
            return local.LocalBus(self.store, clock=self.clock, on_event=on_event, on_command=on_command, **more)
        return node(self.store, self.clock, self.prefix, on_event=on_event, on_command=on_command, drain_s=0.2, **more)

    async def parked(self, count: int = 1) -> list[str]:
        """The reasons of the dead letters, oldest first, once there are `count` of them."""
        if self.engine == "local":
            query = "SELECT parked FROM outbox WHERE parked <> '' ORDER BY seq"
            rows = await waiting.until(lambda: (r := self.database.ask(query)) and len(r) >= count and r, what="parked messages")
            return [str(row[0]) for row in rows]
        return [str(m.headers.get("x-reason", "")) for m in await taken(topologies.Topology(self.prefix).parked, count)]


def node(
    store: stores.Store,
    clock: Callable[[], int],
    prefix: str,
    *,
    on_event: delivery_policy.Handler,
    on_command: delivery_policy.Handler,
    name: str = "n1",
    roles: Collection[str] = ROLES,
    url: str = "",
    drain_s: float = 5.0,
    on_invalid: message_reader.Refuse | None = None,
    shared_spool: bool = False,
) -> rabbit_bus.RabbitBus:
    """One node's bus on RabbitMQ, not started yet."""
    return rabbit_bus.RabbitBus(
        store,
        url=url or rabbit.shared().url,
        node=name,
        roles=roles,
        clock=clock,
        on_event=on_event,
        on_command=on_command,
        on_invalid=on_invalid,
        keyring=engines.keyring(),
        prefix=prefix,
        shared_spool=shared_spool,
        drain_s=drain_s,
    )


async def taken(queue: str, count: int, url: str = "") -> list[aio_pika.abc.AbstractIncomingMessage]:
    """Take `count` messages from a queue, once they are there."""
    async with await aio_pika.connect(url or rabbit.shared().url) as connection, connection.channel() as channel:
        held = await channel.get_queue(queue, ensure=False)
        found: list[aio_pika.abc.AbstractIncomingMessage] = []

        async def another() -> bool:
            message = await held.get(fail=False)
            if message is not None:
                found.append(message)
                await message.ack()
            return len(found) >= count

        await waiting.until(another, timeout_s=20, what=f"{count} messages in {queue}")
        return found


async def say(exchange: str, key: str, body: bytes, *, url: str = "", **properties: object) -> None:
    """Publish as any other application would."""
    async with await aio_pika.connect(url or rabbit.shared().url) as connection, connection.channel() as channel:
        target = await channel.get_exchange(exchange, ensure=False)
        await target.publish(aio_pika.Message(body, **properties), key, mandatory=False)  # type: ignore[arg-type]


async def failure(bus: Bus) -> BaseException:
    """The error of the first of a bus's background tasks that fails."""
    failed = [task.failed for task in bus.tasks if task.failed is not None]
    done, _ = await asyncio.wait(failed, timeout=waiting.limit_s(20), return_when=asyncio.FIRST_COMPLETED)
    error = next(iter(done)).exception()
    assert error is not None
    return error


class FailingHandler:
    """Raises `error` for each message whose id begins with `bad`, or never returns without an error; records the others."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error
        self.begun: list[str] = []
        self.done: list[str] = []

    async def __call__(self, event: codec.Event) -> None:
        self.begun.append(event.id)
        if event.id.startswith("bad"):
            if self.error is None:
                await asyncio.Event().wait()
            else:
                raise self.error
        self.done.append(event.id)
